"""Time to accuracy in small: the script runs on a CPU, is not done twice, and its table says what the files say."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from cifar_runs import curve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def archive(shared_data: Path, tmp_path: Path) -> Path:
    """Every twentieth image of the real archive, under its name."""
    small = tmp_path / "imagenette128.tar"
    with tarfile.open(shared_data / "imagenette128.tar") as whole, tarfile.open(small, "w") as some:
        for member in [member for member in whole if member.isfile()][::20]:
            some.addfile(member, whole.extractfile(member))
    return small


def test_the_minutes_of_a_resumed_run_are_of_all_its_parts(tmp_path: Path) -> None:
    elapsed = [10.0, 60.0, 20.0, 50.0, 30.0]  # two looks, and two more and one after resumes
    looks = [{"step": 10 * k, "look": {"knn": 1.0}, "health": "ok", "elapsed": at} for k, at in enumerate(elapsed)]
    lines = [json.dumps(line) for look in looks for line in ({"step": look["step"], "loss": 1.0}, look)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [look["elapsed"] for look in curve(tmp_path)] == [10, 60, 80, 110, 140]


@pytest.mark.slow
def test_the_script_in_small(archive: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "imagenette.py"), "--device", "cpu", "--tiny"]
    command += ["--epochs", "1", "--recipes", "simclr", "ibot", "--archives", str(archive.parent)]
    command += ["--work", str(tmp_path / "work"), "--results", str(tmp_path)]
    first = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    results = tmp_path / "imagenette_cpu"
    assert first.count(f"written: {results}") == 2
    found = {path.stem: json.loads(path.read_text()) for path in results.iterdir()}
    assert set(found) == {"simclr_seed0", "ibot_seed0"}
    for one in found.values():
        assert set(one["test"]) == {"knn", "linear"}
        assert one["minutes"] > 0
    assert "| simclr | 1 | 1 |" in first
    second = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "written:" not in second
    assert second.splitlines() == first.splitlines()[-4:]
