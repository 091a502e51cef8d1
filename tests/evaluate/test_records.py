"""Results of several calls in one file: joined where they are of the same thing, put aside where they are not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from belvedere.errors import UserError
from belvedere.evaluate.contract import Result
from belvedere.evaluate.intervals import mean_percent, resample
from belvedere.evaluate.records import join, put_aside, read_results, write_results

SETTINGS: dict[str, Any] = {
    "reading": "cls",
    "encoder": "e",
    "seed": 0,
    "split": "the test images given",
    "train": {"files": "a", "labels": "b", "images": 90},
    "test": {"files": "t", "labels": "l", "images": 60, "masks": "m"},
    "subjects": {"run": "e", "pixels": "pixels", "weights/dino.pth": "d"},
}


def result(protocol: str, answers: int = 0, **settings: Any) -> Result:
    """A result of made-up answers of the run, of pixels and of given weights."""
    rng = np.random.default_rng(answers)
    items = {name: {"top1": rng.integers(2, size=60).astype(float)} for name in SETTINGS["subjects"]}
    metrics = {name: {"top1": mean_percent(found["top1"], resample(60, 0))} for name, found in items.items()}
    return Result(protocol, metrics, {"k": 5}, {**SETTINGS, "seconds": 1.5, **settings}, items)


def same(one: Result, other: Result) -> bool:
    """Equal in everything that is kept."""
    equal = all(
        np.array_equal(values, other.items[subject][metric])
        for subject, found in one.items.items()
        for metric, values in found.items()
    )
    return equal and one.items.keys() == other.items.keys() and one.to_json() == other.to_json()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = [result("knn"), replace(result("ood"), metrics={}, items={}, settings={**SETTINGS, "error": "no"})]
    write_results(written, tmp_path / "r.json")
    read = read_results(tmp_path / "r.json")
    assert all(map(same, written, read))
    (tmp_path / "r.npz").unlink()
    with pytest.raises(UserError, match=r"r.json: it or its \.npz cannot be read"):
        read_results(tmp_path / "r.json")


def test_one_call_after_the_other_leaves_what_one_call_leaves(tmp_path: Path) -> None:
    knn, logistic = result("knn"), result("logistic", answers=1)
    write_results([knn, logistic], tmp_path / "both.json")
    assert join([knn], tmp_path / "r.json") == ([knn], "")
    write_results([knn], tmp_path / "r.json")
    every, unlike = join([logistic], tmp_path / "r.json")
    assert unlike == ""
    write_results(every, tmp_path / "r.json")
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "both.json").read_bytes()
    verdict = json.loads((tmp_path / "r.json").read_text())["verdict"]
    assert [sentence.split(",")[0] for sentence in verdict] == ["In k-NN", "With a logistic probe"]
    with np.load(tmp_path / "r.npz") as one, np.load(tmp_path / "both.npz") as other:
        assert one.files == other.files
        assert "knn/weights/dino.pth/top1" in one.files


def test_a_protocol_is_replaced_unless_it_failed(tmp_path: Path) -> None:
    write_results([result("knn"), result("logistic")], tmp_path / "r.json")
    again = result("knn", answers=5, temperature=0.1)
    every, unlike = join([again], tmp_path / "r.json")
    assert unlike == ""
    assert [one.protocol for one in every] == ["knn", "logistic"]
    assert same(every[0], again)
    failed = [Result(name, {}, {}, {**SETTINGS, "error": "no luck"}) for name in ("knn", "linear")]
    every, _ = join(failed, tmp_path / "r.json")
    assert [one.protocol for one in every] == ["knn", "logistic", "linear"]
    assert every[0].metrics
    assert every[2].settings["error"] == "no luck"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"reading": "avg"}, "another reading of the encoder"),
        ({"encoder": "f"}, "other weights of the run"),
        ({"seed": 1}, "another seed"),
        ({"selected_on_test": True}, "another way to choose settings (--paper-protocol)"),
        ({"split": "a stratified tenth"}, "another split"),
        ({"train": {**SETTINGS["train"], "labels": "c"}}, "other training images, labels, masks or objects"),
        ({"test": {**SETTINGS["test"], "masks": "n"}}, "other test images, labels, masks or objects"),
        ({"subjects": {"run": "e"}}, "other encoders beside the run"),
    ],
)
def test_results_of_something_else_are_not_joined(tmp_path: Path, changed: dict[str, Any], words: str) -> None:
    write_results([result("knn")], tmp_path / "r.json")
    new = result("logistic", **changed)
    assert join([new], tmp_path / "r.json") == ([new], f"they are of {words}")


def test_other_images_matter_only_to_what_reads_them(tmp_path: Path) -> None:
    write_results([result("knn"), result("ood", other={"files": "x"})], tmp_path / "r.json")
    assert join([result("logistic")], tmp_path / "r.json")[1] == ""
    assert join([result("shift", other={"files": "x"})], tmp_path / "r.json")[1] == ""
    assert join([result("shift", other={"files": "y"})], tmp_path / "r.json")[1] == "they are of other images elsewhere"


def test_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    for number in (1, 2):
        write_results([result("knn", answers=number)], path)
        (tmp_path / "r").mkdir()
        (tmp_path / "r" / "knn.webp").write_bytes(bytes([number]))
        assert put_aside(path) == tmp_path / f"r-{number}.json"
        assert not any(part.exists() for part in (path, tmp_path / "r.npz", tmp_path / "r"))
    for number in (1, 2):
        assert same(read_results(tmp_path / f"r-{number}.json")[0], result("knn", answers=number))
        assert (tmp_path / f"r-{number}" / "knn.webp").read_bytes() == bytes([number])
    path.write_text("{")
    assert join([result("knn")], path)[1] == "they cannot be read"
    assert put_aside(path).read_text() == "{"
