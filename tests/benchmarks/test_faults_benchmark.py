"""The drill of random kills, with few of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    words = ["--kills", "3", "--seed", "5", "--work", str(tmp_path / "work"), "--out", str(tmp_path / "faults.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert (found["kills"], found["lost"]) == (3, 0)
    assert all(kill["after_seconds"] > 0 for kill in found["each"])
