"""The drill of random kills, with few of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import faults

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "faults.py"
PHASES = {"building the index", "building the cache", "starting", "training"}
PHASES |= {"writing a checkpoint", "evaluation", "report"}


def test_the_committed_drill_is_what_the_guide_says() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "faults.json").read_text())
    assert (found["kills"], len(found["each"]), found["lost"]) == (100, 100, 0)
    assert not any(kill["differs"] for kill in found["each"])
    assert set(found["at"]) == PHASES
    assert set(found["at"].values()) == {14, 15}
    assert "A hundred more at random moments" in (ROOT / "docs" / "faults.md").read_text()


def test_kills_that_lose_something_are_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the second of three kills the log is another, and all kills are written down before that is told."""
    outcomes = iter([{"log": [1]}, {"log": [1]}, {"log": []}, {"log": [1]}])
    monkeypatch.setattr(faults, "outcome", lambda run: next(outcomes))
    monkeypatch.setattr(faults, "do_all", lambda images, place, until=("", 0.0): (until[0], {"training": 1.0}))
    monkeypatch.setattr(faults.demo, "write_tiles", lambda folder: folder.mkdir(parents=True) or folder)
    out = tmp_path / "faults.json"
    words = ["faults.py", "--kills", "3", "--work", str(tmp_path / "work"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end:
        faults.main()
    assert end.value.code == f"1 of 3 kills lost something, see {out}"
    found = json.loads(out.read_text())
    assert (found["kills"], found["lost"]) == (3, 1)


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    words = ["--kills", "1", "--seed", "5", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "faults.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert (found["kills"], found["lost"]) == (1, 0)
    assert all(kill["after_seconds"] > 0 for kill in found["each"])
