"""The benchmark of feeding in small: what it measures is there, and its tables say what the file says."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

import feeding
from belvedere.pretrain.profile import PARTS

ROOT = Path(__file__).parents[2]


def test_decoding_is_timed_with_one_thread_and_with_one_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "ROUNDS", 1)
    monkeypatch.setattr(feeding.os, "cpu_count", lambda: 2)
    found = feeding.decoded((50, 40), 32, 6, tmp_path)
    assert (found["size"], found["images"], found["by"]) == ((50, 40), 6, "threads")
    assert list(found["images_a_second"]) == ["1", "2"]
    assert all(rate > 0 for rate in found["images_a_second"].values())
    assert not list(tmp_path.iterdir())


def test_the_tables_tell_shares_and_ratios() -> None:
    seconds = dict.fromkeys(PARTS, 0.1) | {"waiting": 0.01, "views": 0.19}
    one = {"data": "photos", "recipe": "dino", "batch": 64, "renderer": "compiled", "seconds": seconds}
    share = 0.19 / sum(seconds.values())
    assert feeding.steps_table([one]).endswith(f"| photos | dino, 64 | compiled | 900 ms | 1.11% | {share:.1%} |")
    rates: dict[str, Any] = {"size": [50, 40], "images": 2000, "side": 32, "by": "threads"}
    rates["images_a_second"] = {"1": 1000.0, "2": 1500.0}
    row = "| 2,000 of 50 x 40 px | 32 px | 1,000 a second | 1,500 | threads | 1.50 |"
    assert feeding.decoding_table([rates]).endswith(row)


def test_the_page_says_what_the_file_says() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "feeding.json").read_text())
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert feeding.steps_table(found["steps"]) in page
    assert feeding.decoding_table(found["decoding"]) in page


@pytest.mark.slow
def test_a_recipe_is_profiled(few_cifar10: Path, tmp_path: Path) -> None:
    arguments = argparse.Namespace(archives=few_cifar10, work=tmp_path, seconds=0.2)
    found = feeding.profiled("CIFAR-10, 32 px", "simclr", arguments)
    assert found["steps"] >= 1
    assert set(found["seconds"]) == set(PARTS)
