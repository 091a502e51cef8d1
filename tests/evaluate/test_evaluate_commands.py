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


def test_images_that_pretraining_saw_are_said(place: Path, tmp_path: Path) -> None:
    """The run of `place` was made on its folder `photos`; paths are all that it knows of them."""
    told = "this run saw the test images in pretraining, without their labels"
    new = folder(tmp_path / "new", {"cats": range(4), "dogs": range(4, 8)})
    own, _ = numbers(place, tmp_path, place / "photos", "--protocol", "knn")
    held, _ = numbers(place, tmp_path, place / "photos", "--protocol", "knn", "--test", new)
    other, _ = numbers(place, tmp_path, new, "--protocol", "knn")
    assert [told in said.text for said in (own, held, other)] == [True, False, False]


def test_a_folder_brings_its_own_test_images(place: Path, tmp_path: Path) -> None:
    """train/ and val/ are what they say, in folders and in the column of a CSV file; a test/ goes before val/."""
    data = tmp_path / "data"
    folder(data / "train", {"cat": range(8), "dog": range(8, 16)})
    folder(data / "val", {"cat": range(16, 19), "dog": range(19, 22)})
    _, own = numbers(place, tmp_path, data, "--protocol", "knn")
    _, given = numbers(place, tmp_path, data / "train", "--protocol", "knn", "--test", data / "val")
    assert own["knn"]["metrics"] == given["knn"]["metrics"]
    assert own["knn"]["settings"]["test"]["images"] == 6
    (data / "val").rename(data / "test")
    lines = ["path,label,split", *(f"train/cat/{i:03}.png,a,train" for i in range(8))]
    lines += [f"train/dog/{i:03}.png,b,{'train' if i < 12 else 'test'}" for i in range(8, 16)]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    _, listed = numbers(place, tmp_path, data, "--protocol", "knn", "--labels", tmp_path / "labels.csv")
    assert listed["knn"]["settings"]["test"]["images"] == 4


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
    assert results["knn"]["chosen"]["on"] == "10 of 30 training images, whole groups"
    assert results["knn"]["settings"]["split"].startswith("a tenth of the groups")
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


def test_protocols_one_after_the_other(place: Path, tmp_path: Path) -> None:
    """The second call adds to the first; other images put the results of both aside, and nothing is lost."""
    run = tmp_path / "run"
    shutil.copytree(place / "run", run)
    data = folder(tmp_path / "data", {"astronauts": range(0, 80, 4), "cups": range(1, 80, 4)})
    for protocol in ("knn", "logistic"):
        said = belvedere(place, "evaluate", run, data, "--protocol", protocol)
        assert said.code == 0, said.text
        assert "kept in" not in said.text
    joined = json.loads((run / "evaluation.json").read_text())
    assert [one["protocol"] for one in joined["results"]] == ["knn", "logistic"]
    assert set(joined["seconds"]) == {"knn", "logistic"}
    assert len(joined["verdict"]) == 2
    pictures = json.loads((run / "evaluation" / "pictures.json").read_text())
    assert set(pictures) == {"knn", "logistic"}
    with np.load(run / "evaluation.npz") as items:
        assert {"knn/run/top1", "logistic/run/top1"} <= set(items.files)
    page, card = run / "report.html", tmp_path / "exported" / "README.md"
    assert belvedere(place, "report", run).code == 0
    assert belvedere(place, "export", run, "--out", card.parent, "--format", "safetensors").code == 0
    assert all(heading in page.read_text() for heading in ("k-NN", "Logistic probe"))
    assert all(f"**{name}**" in card.read_text() for name in ("knn", "logistic"))
    more = folder(tmp_path / "more", {"astronauts": range(0, 100, 4), "cups": range(1, 80, 4)})
    said = belvedere(place, "evaluate", run, more, "--protocol", "knn")
    assert said.code == 0, said.text
    line = f"the results of before are kept in {run / 'evaluation-1.json'}: they are of another split"
    assert line in said.text.splitlines()
    assert json.loads((run / "evaluation-1.json").read_text()) == joined
    assert {one["protocol"] for one in json.loads((run / "evaluation.json").read_text())["results"]} == {"knn"}
    assert (run / "evaluation-1" / "pictures.json").is_file()
    assert (run / "evaluation-1.npz").is_file()
