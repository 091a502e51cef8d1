"""What the protocols found, drawn: every picture has a caption, an alt text, and a table that holds its numbers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from belvedere.evaluate.contract import Result
from belvedere.evaluate.suite import Given, prepare
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import LARGEST
from belvedere.report.protocols import draw_results
from belvedere.report.protocols._classification import MOST_CLASSES, chosen_classes, wilson
from belvedere.report.protocols._images import Thumbnails, shortened
from belvedere.report.protocols.cluster import members
from belvedere.report.protocols.map import spread

Make = Callable[..., Any]
SHORT: dict[str, dict[str, Any]] = {"linear": {"epochs": 3, "rates": [0.05]}, "fewshot": {"draws": 2}}
CLASSIFYING = ("knn", "logistic", "linear")


def drawn(folder: Path, encoder: Encoder, given: Given, *protocols: str) -> tuple[dict[str, Any], list[Result]]:
    """The pictures of every protocol as the page finds them, and the results."""
    given = replace(given, options={name: SHORT[name] for name in protocols if name in SHORT})
    prepared = prepare(encoder, given, protocols, "cpu", None)
    results = prepared.run()
    assert not [one.settings["error"] for one in results if "error" in one.settings]
    draw_results(folder, results, prepared.data)
    return json.loads((folder / "pictures.json").read_text()), results


def table(folder: Path, picture: dict[str, str]) -> list[dict[str, str]]:
    with (folder / picture["table"]).open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check(folder: Path, picture: dict[str, str]) -> None:
    assert picture["title"]
    if picture["skipped"]:  # only where there may be nothing of the kind to show
        assert picture["name"].endswith("_errors") or picture["name"] in ("duplicates", "twins", "suspects")
        return
    file = folder / picture["file"]
    assert file.stat().st_size <= LARGEST
    assert np.ptp(np.asarray(Image.open(file).convert("L"))) > 60
    assert len(picture["caption"]) > 60
    assert len(picture["alt"]) > 20
    assert table(folder, picture)


@pytest.mark.parametrize("channels", [1, 3])
def test_every_protocol_is_drawn(tmp_path: Path, make_canvases: Make, make_encoder: Make, channels: int) -> None:
    canvases: Canvases = make_canvases(channels=channels)
    given = Given(canvases.subset(np.arange(0, 40, 2)), canvases.subset(np.arange(1, 40, 2)))
    names = (*CLASSIFYING, "fewshot", "retrieval", "cluster", "map", "duplicates")
    found, _ = drawn(tmp_path, make_encoder(channels=channels), given, *names)
    assert list(found) == list(names)
    assert [p["name"] for p in found["knn"]] == ["knn_confusion", "knn_classes", "knn_errors"]
    assert [p["name"] for p in found["duplicates"]] == ["duplicates", "twins", "suspects"]
    for pictures in found.values():
        for picture in pictures:
            check(tmp_path, picture)


def test_queries_and_what_was_found(tmp_path: Path, make_canvases: Make, make_encoder: Make) -> None:
    """The table has what every subject found, nearest first, never the query; the caption the numbers of two."""
    canvases = make_canvases()
    given = Given(canvases.subset(np.arange(0, 40, 2)), canvases.subset(np.arange(1, 40, 2)), floors=("pixels",))
    found, (result,) = drawn(tmp_path, make_encoder(), given, "retrieval")
    rows = table(tmp_path, found["retrieval"][0])
    assert len(rows) == 2 * 6 * 6
    assert {row["subject"] for row in rows} == {"run", "pixels"}
    assert all((row["label"] == row["its_label"]) == (row["same"] == "1") for row in rows)
    assert all(row["query"] != row["found"] for row in rows)
    for first, second in pairwise(rows):
        if first["query"] == second["query"] and first["subject"] == second["subject"]:
            assert int(second["rank"]) == int(first["rank"]) + 1
            assert float(second["cosine"]) <= float(first["cosine"])
    numbers = [f"{result.metrics[name]['recall1'].value:.0f} %" for name in ("run", "pixels")]
    assert f"right for {numbers[0]}, by pixels for {numbers[1]}." in found["retrieval"][0]["caption"]


def test_tables_hold_the_numbers_of_the_results(tmp_path: Path, make_canvases: Make, make_encoder: Make) -> None:
    canvases = make_canvases()
    given = Given(canvases.subset(np.arange(0, 40, 2)), canvases.subset(np.arange(1, 40, 2)), floors=("pixels",))
    found, results = drawn(tmp_path, make_encoder(), given, "knn", "fewshot", "map")
    knn, fewshot, atlas = results
    confusion = table(tmp_path, found["knn"][0])
    assert sum(int(row["images"]) for row in confusion) == 20
    right = sum(int(row["images"]) for row in confusion if row["class"] == row["answer"])
    assert 100 * right / 20 == pytest.approx(knn.metrics["run"]["top1"].value)
    bars = table(tmp_path, found["knn"][1])
    assert {row["encoder"] for row in bars} == {"run", "pixels"}
    for row in bars:
        assert float(row["low"]) <= float(row["percent"]) + 1e-3
        assert float(row["percent"]) <= float(row["high"]) + 1e-3
    curve = table(tmp_path, found["fewshot"][0])
    for row in curve:
        number = fewshot.metrics[row["encoder"]][f"shots{row['labels_a_class']}"]
        assert float(row["percent"]) == pytest.approx(number.value, rel=1e-4)
    assert len(table(tmp_path, found["map"][0])) == 2 * atlas.settings["images"]


def test_images_without_labels_are_drawn_and_no_label_is_suspected(
    tmp_path: Path, make_canvases: Make, make_encoder: Make
) -> None:
    found, _ = drawn(tmp_path, make_encoder(), Given(make_canvases(labels=False)), "cluster", "map", "duplicates")
    assert [p["name"] for p in found["duplicates"]] == ["duplicates", "twins"]
    for pictures in found.values():
        for picture in pictures:
            check(tmp_path, picture)
    assert all(row["class"] == "" for row in table(tmp_path, found["map"][0]))


def test_no_errors_no_picture(tmp_path: Path, make_canvases: Make, make_encoder: Make) -> None:
    canvases = make_canvases()
    found, results = drawn(tmp_path, make_encoder(), Given(canvases, canvases), "knn", "duplicates")
    assert results[1].metrics["run"]["test_twins"].value == 100
    twins = found["duplicates"][1]
    assert len(table(tmp_path, twins)) == len(canvases)
    errors = found["knn"][2]
    assert bool(errors["skipped"]) == (results[0].metrics["run"]["top1"].value == 100)


def test_a_class_without_test_images_has_no_row_and_many_classes_are_cut() -> None:
    confusion = np.diag([5, 0, 7])
    assert chosen_classes(confusion) == [0, 2]
    many = np.diag(np.full(60, 10))
    many[40:, 0] = np.arange(20)
    shown = chosen_classes(many)
    assert len(shown) == MOST_CLASSES
    assert {0, *range(41, 60)} <= set(shown)


def test_wilson_is_never_empty_nor_beyond_the_scale() -> None:
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == 100
    low, high = wilson(50, 100)
    assert low == pytest.approx(40.38, abs=0.01)
    assert high == pytest.approx(59.62, abs=0.01)


def test_members_are_ordered_from_the_centre() -> None:
    clusters = np.array([0] * 20 + [1] * 3)
    distances = np.concatenate([np.arange(20)[::-1], [0.3, 0.1, 0.2]]).astype(float)
    near, far = members(clusters, distances, 0)
    assert near == list(range(19, 7, -1))
    assert far == [0, 1, 2, 3]
    assert members(clusters, distances, 1) == ([21, 22, 20], [])


def test_no_thumbnail_hides_another() -> None:
    points = np.random.default_rng(0).standard_normal((500, 2)).astype(np.float32)
    cells = spread(points, 10)
    assert len(cells) <= 100
    assert all(0 <= column < 10 and 0 <= row < 10 for column, row in cells)
    assert len(set(cells.values())) == len(cells)
    assert spread(np.zeros((4, 2), np.float32), 10) == {(0, 0): 0}


def test_thumbnails_show_the_middle_and_names_keep_their_end(make_canvases: Make) -> None:
    canvases = make_canvases()
    assert np.array_equal(np.round(255 * Thumbnails(canvases)[3]), canvases.pixels(3))
    assert Thumbnails(canvases, 16)[3].shape == (16, 16, 3)
    assert Thumbnails(make_canvases(channels=1), 16)[3].shape == (16, 16)
    assert shortened("a/very/long/name_017.png", 12) == "…ame_017.png"
    assert shortened("short", 12) == "short"
