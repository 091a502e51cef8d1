"""`belvedere evaluate --quick` on the folders that users have: a result, or one clear sentence and exit code 2."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from newcomer import Said, belvedere, finished_run
from tiny import tiles


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `run` in it."""
    place = tmp_path_factory.mktemp("commands")
    finished_run(place)
    return place


def folder(path: Path, classes: dict[str, Sequence[int]]) -> Path:
    """A folder of classes, each of the tiles of the given numbers."""
    every = tiles(1 + max(number for numbers in classes.values() for number in numbers))
    for name, numbers in classes.items():
        (path / name).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(every[number]).save(path / name / f"{number:03}.png")
    return path


def numbers(place: Path, out: Path, data: Path, *words: object) -> tuple[Said, dict[str, Any]]:
    """What the command said, and the results by protocol; every number is finite and in its interval."""
    said = belvedere(place, "evaluate", place / "run", data, "--out", out / "r.json", *words)
    assert "Traceback" not in said.text
    results = {one["protocol"]: one for one in json.loads((out / "r.json").read_text())["results"]}
    for result in results.values():
        for metrics in result["metrics"].values():
            assert all(np.isfinite(n["value"]) and n["low"] <= n["high"] for n in metrics.values())
    return said, results


def test_a_messy_folder(place: Path, tmp_path: Path) -> None:
    """Grey and 16-bit images, a corrupt file, an empty class, a class of one image, and one missing in test."""
    data = folder(tmp_path / "data", {"astronauts": range(0, 48, 4), "cups": range(1, 48, 4), "cats": [2]})
    colour = tiles(48)
    Image.fromarray(colour[0, ..., 0]).save(data / "astronauts" / "000.png")
    Image.fromarray(colour[1, ..., 0].astype(np.uint16) * 257).save(data / "cups" / "001.png")
    (data / "cups" / "broken.png").write_bytes(b"no image")
    (data / "nothing").mkdir()
    test = folder(tmp_path / "test", {"astronauts": [52, 56], "cups": [53]})
    said, results = numbers(place, tmp_path, data, "--test", test, "--quick")
    assert said.code == 0, said.text
    assert {"knn", "logistic", "fewshot", "retrieval"} <= set(results)
    for result in results.values():
        assert [name for name, _ in result["settings"]["train"]["skipped"]] == ["cups/broken.png"]
        assert result["settings"]["train"]["images"] == 25
        assert result["settings"]["test"]["images"] == 3
        assert result["settings"]["classes"] == 3


def test_one_image_a_class(place: Path, tmp_path: Path) -> None:
    """Retrieval has nothing to find and says so; what else there is to tell is told."""
    data = folder(tmp_path / "data", {name: [number] for number, name in enumerate("abcdef")})
    said, results = numbers(place, tmp_path, data, "--protocol", "knn,retrieval")
    assert said.code == 2
    assert said.text.splitlines()[-1].startswith(
        "belvedere: failed: retrieval (retrieval: no test image has another one of its class to find; "
    )
    assert results["knn"]["metrics"]["run"]
    assert results["retrieval"]["metrics"] == {}


def test_groups_stay_together(place: Path, tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"all": range(40)})
    rows = [f"all/{i:03}.png,{'even' if i % 2 else 'odd'},writer{i // 10}" for i in range(40)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path,label,group", *rows]))
    said, results = numbers(place, tmp_path, data, "--labels", table, "--protocol", "knn")
    assert said.code == 0, said.text
    # A tenth of four writers is one writer, and a tenth of the other three is one of these.
    assert results["knn"]["settings"]["test"]["images"] == 10
    assert results["knn"]["chosen"]["on"] == "10 of 30 training images"
    table.write_text(re.sub(r"writer\d", "writer0", table.read_text()))
    told = belvedere(place, "evaluate", place / "run", data, "--labels", table).refusal()
    assert told.startswith("only one group to split into training and test")


def test_nothing_usable_to_test_on(place: Path, tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"astronauts": range(0, 24, 4), "cups": range(1, 24, 4)})
    (tmp_path / "test" / "cups").mkdir(parents=True)
    told = belvedere(place, "evaluate", place / "run", data, "--test", tmp_path / "test").refusal()
    assert told.startswith(f"{tmp_path / 'test'}: no images found")
    for number in range(3):
        (tmp_path / "test" / "cups" / f"{number}.png").write_bytes(b"no image")
    told = belvedere(place, "evaluate", place / "run", data, "--test", tmp_path / "test").refusal()
    assert told.startswith(f"{tmp_path / 'test'}: ")
    shutil.rmtree(tmp_path / "test" / "cups")
    folder(tmp_path / "test", {"cups": [50]})
    told = belvedere(place, "evaluate", place / "run", data, "--test", tmp_path / "test").refusal()
    assert told == f"{tmp_path / 'test'}: only 1 usable image; at least 2 are needed"
