"""The benchmark of all protocols in small: it runs, is not done twice, and its table says what the file says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evaluation
from belvedere import plugins
from belvedere.evaluate.contract import Number, Result

ROOT = Path(__file__).parents[2]
MARKS = ("<!-- evaluation, written by benchmarks/evaluation.py -->", "<!-- end of evaluation -->")


@pytest.mark.slow
def test_a_data_set_in_seconds(shared_data: Path, script: Callable[..., str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\n{MARKS[1]}\nafter\n")
    arguments = ["--only", "coil20", "--steps", "4", "--archives", str(shared_data), "--work", str(tmp_path / "work")]
    arguments += ["--device", "cpu", "--results", str(tmp_path), "--page", str(page)]
    assert "coil20.json" in script(evaluation, *arguments)
    found = json.loads((tmp_path / "evaluation" / "coil20.json").read_text())
    assert set(found["test"]) == {"knn", "retrieval", "duplicates", "cluster"}
    assert found["settings"]["train.steps"] == 4
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    top = found["test"]["knn"]["metrics"]["run"]["top1"]
    assert f"| k-NN | top-1, % | {top['value']:.1f} [{top['low']:.1f}, {top['high']:.1f}] |" in text
    assert "4 steps of 128 images" in text
    again = script(evaluation, *arguments)
    assert "coil20.json" not in again
    assert page.read_text() == text


def test_every_protocol_runs_on_some_data_set_and_has_a_headline() -> None:
    run_ = {protocol for case in evaluation.CASES for protocol in case.protocols}
    assert run_ == set(plugins.names("protocol")) == set(evaluation.HEADLINES)


def test_committed_results_are_of_the_cases_as_they_are() -> None:
    folder = ROOT / "benchmarks" / "results" / "evaluation"
    for case in evaluation.CASES:
        found = json.loads((folder / f"{case.name}.json").read_text())
        assert tuple(found["test"]) == case.protocols
        assert found["settings"]["train.steps"] == case.steps
        assert not [one["settings"]["error"] for one in found["test"].values() if "error" in one["settings"]]
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert evaluation.table(folder) in page


def test_gains_are_paired_and_told_bold_when_they_are_sure() -> None:
    run_, floor = np.ones(50), np.zeros(50)
    items = {"run": {"top1": run_}, "untrained": {"top1": floor}, "pixels": {"top1": run_}}
    numbers = {"run": Number(100, 100, 100), "untrained": Number(0, 0, 0), "pixels": Number(100, 100, 100)}
    metrics = {name: {"top1": number} for name, number in numbers.items()}
    gains = evaluation.gains(Result("knn", metrics, {}, {}, items))
    assert gains["top1"]["untrained"] == {"value": 100, "low": 100, "high": 100}
    found = {"test": {"knn": {"metrics": {n: {"top1": vars(x)} for n, x in numbers.items()}}}, "gains": {"knn": gains}}
    (row,) = evaluation.rows_of("knn", found)
    assert row[2:] == ["100.0 [100.0, 100.0]", "0.0 [0.0, 0.0]", "100.0 [100.0, 100.0]", "+0.0 [+0.0, +0.0]"]
    del found["test"]["knn"]["metrics"]["pixels"]
    (row,) = evaluation.rows_of("knn", found)
    assert row[4:] == ["", "**+100.0 [+100.0, +100.0]**"]
