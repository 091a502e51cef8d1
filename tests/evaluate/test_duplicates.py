"""Near-duplicates and suspected labels: what was planted is found and named."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from belvedere.evaluate.protocols.duplicates import disagreeing, judgeable
from belvedere.evaluate.suite import Given, evaluate_encoder, prepare
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.report.protocols.duplicates import draw

Make = Callable[..., Canvases]


@pytest.fixture
def planted(tmp_path: Path) -> Callable[[str, int], Canvases]:
    """24 cuts of a brown and 24 of a red photograph; of the training images 2 stand in the wrong folder."""

    def make(part: str, first: int) -> Canvases:
        rng = np.random.default_rng(first)
        for label in ("coffee", "retina"):
            (tmp_path / part / label).mkdir(parents=True)
        for label, other in (("coffee", "retina"), ("retina", "coffee")):
            photo = getattr(skimage.data, label)()
            for i in range(24):
                y, x = rng.integers(200, 300), rng.integers(200, 300)
                wrong = part == "train" and i == 0
                folder = tmp_path / part / (other if wrong else label)
                name = f"{'wrong' if wrong else 'right'}_{label}_{i:02}.png"
                Image.fromarray(photo[y : y + 32, x : x + 32]).save(folder / name)
        if part == "train":
            copy = tmp_path / part / "coffee" / "right_coffee_05.png"
            (tmp_path / part / "retina" / "copy.png").write_bytes(copy.read_bytes())
            (tmp_path / "test").mkdir(exist_ok=True)
        return open_canvases(find_images(tmp_path / part), 32, cache_dir=tmp_path, workers=1, progress=False)

    return make


def test_planted_errors_and_copies_are_named(planted: Callable[[str, int], Canvases], encoder: Encoder) -> None:
    train = planted("train", 0)
    test = train.subset(np.array([3, 30]))
    (result,) = evaluate_encoder(encoder, Given(train, test), ["duplicates"])
    assert set(result.metrics) == {"run", "untrained", "pixels"}
    told = result.settings
    suspects = {one["image"].split("/")[-1] for one in told["suspects"]}
    assert {"wrong_coffee_00.png", "wrong_retina_00.png"} <= suspects
    assert "copy.png" in suspects
    assert len(suspects) < 10
    assert any(
        {"train: coffee/right_coffee_05.png", "train: retina/copy.png"} <= set(group) for group in told["groups"]
    )
    at_odds = told["groups_of_different_labels"]
    assert any("train: retina/copy.png" in group for group in at_odds)
    assert [one["pair"] for one in told["test_twins"]] == [[f"test: {n}", f"train: {n}"] for n in test.names]
    assert all(one["exact"] for one in told["test_twins"])
    assert told["counts"]["exact_test_twins"] == told["counts"]["test_twins"] == 2
    assert told["counts"]["exact_duplicates"] >= 3  # the copy, and both test images
    assert result.metrics["run"]["test_twins"].value == 100
    for metric, number in result.metrics["run"].items():
        assert number.value == pytest.approx(100 * result.items["run"][metric].mean())
        assert number.low <= number.value <= number.high


def test_without_labels_copies_are_named_and_no_label_is_judged(make_folder: Make, encoder: Encoder) -> None:
    images = replace(make_folder({"coffee": 10, "retina": 10}), labels=None, classes=[])
    twice = images.subset(np.array([*range(20), 4]))
    (result,) = evaluate_encoder(encoder, Given(twice, images.subset(np.array([1, 2, 3]))), ["duplicates"])
    assert set(result.metrics["run"]) == {"duplicated", "test_twins"}
    assert result.settings["judged_labels"] == 0
    assert result.settings["counts"]["test_twins"] == 3
    assert [f"train: {images.names[4]}"] * 2 in result.settings["groups"]


@pytest.mark.parametrize("counts", [{"coffee": 2, "rocket": 1}, {"coffee": 1, "rocket": 1, "retina": 1}])
def test_tiny_sets_give_a_result(make_folder: Make, encoder: Encoder, counts: dict[str, int]) -> None:
    (result,) = evaluate_encoder(encoder, Given(make_folder(counts)), ["duplicates"])
    assert "error" not in result.settings, result.settings


def test_only_labels_that_can_be_voted_for_are_judged() -> None:
    labels = np.array([0, 0, 1, -1, 2, 2, -1])
    assert judgeable(labels).tolist() == [0, 1, 4, 5]
    assert judgeable(np.full(4, -1)).tolist() == []
    assert disagreeing([[0, 1], [1, 2], [3, 4], [2, 3, 6]], labels) == [[1, 2]]


def test_exact_and_near_twins_are_named_apart(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    train = make_folder({"astronaut": 12, "coffee": 12})
    for i, image in ((0, train.pixels(5)), (1, train.pixels(14)), (2, 255 - train.pixels(3))):
        changed = Image.fromarray(image).point(lambda level: 0.8 * level) if i == 1 else Image.fromarray(image)
        (tmp_path / "test").mkdir(exist_ok=True)
        changed.save(tmp_path / "test" / f"{i}.png")
    test = open_canvases(find_images(tmp_path / "test"), 32, cache_dir=tmp_path, workers=1, progress=False)
    prepared = prepare(encoder, Given(train, test, floors=()), ["duplicates"], "cpu", None)
    (result,) = prepared.run()
    twins = {tuple(one["pair"]): one["exact"] for one in result.settings["test_twins"]}
    assert twins == {
        ("test: 0.png", f"train: {train.names[5]}"): True,
        ("test: 1.png", f"train: {train.names[14]}"): False,
    }
    assert result.settings["counts"]["exact_test_twins"] == 1
    drawn = draw(tmp_path, result, prepared.data)[1]
    assert drawn.caption.startswith(
        "2 of 3 test images (left) are twins of a training image (right): 1 exact (all pixels equal) and 1 near"
    )
    with (tmp_path / "twins.csv").open() as file:
        assert [row["kind"] for row in csv.DictReader(file)] == ["exact", "near"]
