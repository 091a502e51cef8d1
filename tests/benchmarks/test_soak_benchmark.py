"""The soak drill: it sees a leak, and it watches a real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from belvedere import demo

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import soak

    warming = [{"memory_mb": 100.0 + 50 * k, "files": 3.0, "threads": 2.0} for k in range(10)]
    steady = [{"memory_mb": 600.0 + k % 2, "files": 30.0, "threads": 8.0} for k in range(90)]
    assert all(one["flat"] for one in soak.judge(warming + steady).values())
    for name, leak in (("memory_mb", 0.3), ("files", 0.02), ("threads", 0.02)):
        leaking = [
            one | {name: one[name] + int(leak * k) if leak < 0.1 else one[name] + leak * k}
            for k, one in enumerate(steady)
        ]
        found = soak.judge(warming + leaking)
        assert [key for key, one in found.items() if not one["flat"]] == [name]


@pytest.mark.slow
def test_a_run_is_watched(tmp_path: Path) -> None:
    images = demo.write_tiles(tmp_path / "images") / "train"
    words = ["--minutes", "0.2", "--every", "0.5", "--images", str(images), "--recipe", "simclr"]
    out = tmp_path / "soak.json"
    command = [sys.executable, str(BENCHMARKS / "soak.py"), *words, "--work", str(tmp_path), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # So short a run is all warm-up: whether it is flat says nothing, only that it was judged.
    assert done.returncode == 0 or done.stderr.strip().endswith("not flat"), done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert len(found["samples"]) >= 5
    assert len((tmp_path / "soak_samples.jsonl").read_text().splitlines()) >= len(found["samples"])
    assert found["steps"] > 0
    assert all(found["quantities"][name]["highest"] >= 1 for name in ("memory_mb", "files", "threads"))


def test_the_committed_run_is_what_the_guide_says() -> None:
    """Two hours of training in which nothing grew."""
    found = json.loads((BENCHMARKS / "results" / "soak.json").read_text())
    assert found["trained_seconds"] >= 7200
    assert found["flat"]
    memory, files, threads = (found["quantities"][name] for name in ("memory_mb", "files", "threads"))
    assert memory["last"] <= 1.02 * memory["first"]
    assert files["last"] <= files["first"]
    assert threads["last"] <= threads["first"]
    told = f"{memory['first']:.0f} MB at first and {memory['last']:.0f} MB at last"
    guide = (BENCHMARKS.parent / "docs" / "faults.md").read_text()
    assert told in guide
    assert f"{found['steps']:,} steps" in guide
    assert f"{files['last']:.0f} open files and {threads['last']:.0f} threads" in guide
