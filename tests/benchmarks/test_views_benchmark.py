"""The benchmark of view policies in small: its plan, its table, and the frontier on a tiny network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import views as benchmark
from newcomer import photo_folder
from tiny import NETWORK

NAMES = {run.name for run in benchmark.all_runs([0, 1, 2])}


def test_the_plan_is_the_question() -> None:
    """Two recipes and seven policies at the same time, three of them at the same steps, SimCLR on few images."""
    assert len(NAMES) == 3 * (2 * (7 + 2) + 7)
    assert {"dino_20000_hard-learned_minutes_seed2", "dino_20000_learned_steps_seed0"} <= NAMES
    assert "simclr_5000_iou_minutes_seed1" in NAMES
    seconds = {"simclr/random": 0.5, "simclr/hard": 0.8}
    hard = benchmark.Run("simclr", 20000, "hard", "minutes", 0)
    assert benchmark.steps_of(hard, 4, seconds) == round(0.92 * 240 / 0.8)
    assert benchmark.steps_of(hard._replace(same="steps"), 4, seconds) == round(0.92 * 240 / 0.5)


def test_the_table_compares_with_random(tmp_path: Path) -> None:
    def write(policy: str, same: str, seed: int, value: float) -> None:
        run = benchmark.Run("simclr", 20000, policy, same, seed)
        top1 = {"top1": {"value": value, "low": value - 1, "high": value + 1}}
        test = {protocol: {"metrics": {"run": top1}} for protocol in ("knn", "logistic")}
        (tmp_path / f"{run.name}.json").write_text(json.dumps({**run._asdict(), "steps": 9, "test": test}))

    write("random", "minutes", 0, 40.0)
    write("hard", "minutes", 0, 41.0)
    write("hard", "minutes", 1, 43.0)
    write("hard", "steps", 0, 44.0)
    lines = benchmark.table(tmp_path, {"simclr/random": 0.5, "simclr/hard": 0.8}).splitlines()[2:]
    assert lines == [
        "| simclr | 20,000 | minutes | `random` | 1.00 | 9 | 1 | 40.0 [39.0, 41.0] | 40.0 [39.0, 41.0] |",
        "| simclr | 20,000 | minutes | `hard` | 1.60 | 9 | 2 | 42.0 (41.0 to 43.0) | 42.0 (41.0 to 43.0) |",
        "| simclr | 20,000 | steps | `random` | 1.00 | 9 | 1 | 40.0 [39.0, 41.0] | 40.0 [39.0, 41.0] |",
        "| simclr | 20,000 | steps | `hard` | 1.60 | 9 | 1 | 44.0 [43.0, 45.0] | 44.0 [43.0, 45.0] |",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["simclr", "ibot"])
def test_the_frontier(objective: str, tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos", count=160)
    small: dict[str, Any] = {**NETWORK, "train.batch": 8, "train.precision": "float32"}
    ways = {way["way"]: way for way in benchmark.frontier(objective, folder, small, "cpu", steps=2)}
    assert ("teacher reused" in ways) == (objective == "ibot")
    assert ways["4 candidates"]["kept"] == 1.0
    assert ways["every 4th step"]["kept"] == pytest.approx(1 / 4)
    assert ways["half of the images"]["kept"] == pytest.approx(1 / 2)
    assert ways["size 1/2"]["kept"] < 1 < ways["6 candidates"]["kept"]
    assert all(way["cost"] > 0 for way in ways.values())
    page = benchmark.frontier_table({objective: list(ways.values())})
    assert len(page.splitlines()) == 2 + len(benchmark.CHEAP)
    benchmark.draw_frontier({objective: list(ways.values())}, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5000
