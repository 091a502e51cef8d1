"""Time to accuracy in small: the script runs on a CPU, is not done twice, and its table says what the files say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import imagenette
from cifar_runs import curve


def test_the_minutes_of_a_resumed_run_are_of_all_its_parts(tmp_path: Path) -> None:
    elapsed = [10.0, 60.0, 20.0, 50.0, 30.0]  # two looks, and two more and one after resumes
    looks = [{"step": 10 * k, "look": {"knn": 1.0}, "health": "ok", "elapsed": at} for k, at in enumerate(elapsed)]
    lines = [json.dumps(line) for look in looks for line in ({"step": look["step"], "loss": 1.0}, look)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [look["elapsed"] for look in curve(tmp_path)] == [10, 60, 80, 110, 140]


@pytest.mark.slow
def test_the_script_in_small(few_imagenette: Path, script: Callable[..., str], tmp_path: Path) -> None:
    command = ["--device", "cpu", "--tiny", "--epochs", "1", "--recipes", "simclr", "ibot"]
    command += ["--archives", str(few_imagenette)]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    first = script(imagenette, *command)
    results = tmp_path / "imagenette_cpu"
    assert first.count(f"written: {results}") == 2
    found = {path.stem: json.loads(path.read_text()) for path in results.iterdir()}
    assert set(found) == {"simclr_seed0", "ibot_seed0"}
    for one in found.values():
        assert set(one["test"]) == {"knn", "linear"}
        assert one["minutes"] > 0
    assert "| simclr | 1 | 1 |" in first
    second = script(imagenette, *command)
    assert "written:" not in second
    assert second.splitlines() == first.splitlines()[-4:]
