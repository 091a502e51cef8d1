"""The CIFAR-10 benchmark in small: it runs, is not done twice, and its table says what the files say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

import cifar10
from cifar_runs import Case, Desk, spread

ROOT = Path(__file__).parents[2]
Script = Callable[..., str]


@pytest.mark.slow
def test_a_benchmark_of_seconds(few_cifar10: Path, script: Script, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marks = ("<!-- cifar10, written by benchmarks/cifar10.py -->", "<!-- end of cifar10 -->")
    page.write_text(f"before\n{marks[0]}\n{marks[1]}\nafter\n")
    paces = {**dict.fromkeys(cifar10.RECIPES, 1), "simclr": 0.4, "simsiam": 0.6}  # all, else all would be measured
    (tmp_path / "pace_cpu.json").write_text(json.dumps({"seconds_a_step": paces}))
    arguments = ["--recipes", "simclr", "simsiam", "--images", "400", "--minutes", "0.1", "--seeds", "0"]
    arguments += ["--archives", str(few_cifar10), "--work", str(tmp_path / "work"), "--device", "cpu"]
    arguments += ["--results", str(tmp_path), "--page", str(page)]
    assert "simsiam_400_0.1min_seed0.json" in script(cifar10, *arguments)
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "cifar10").iterdir()}
    assert len(found) == 2
    for one in found.values():
        assert {"knn", "logistic"} == set(one["test"])
        assert one["settings"]["train.seed"] == 0
        assert one["settings"]["train.steps"] == {"simclr": 14, "simsiam": 9}[one["recipe"]]
    floors = [set(one["test"]["knn"]["metrics"]) & {"pixels", "untrained"} for one in found.values()]
    assert sorted(map(len, floors)) == [1, 2]
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "| simsiam | 400 | 0.1 | 1 |" in text
    assert "| raw pixels | 400 |" in text
    again = script(cifar10, *arguments)
    assert "seed0.json" not in again
    assert page.read_text() == text


def test_every_page_has_a_place_for_an_accelerator_s_results() -> None:
    """Else hours of runs would end in the message that there is none."""
    pages = {
        "benchmarks.md": ("cifar10",),
        "tasks.md": ("tasks",),
        "views.md": ("runs", "verdicts", "frontier", "sweep"),
    }
    for page, names in pages.items():
        text = (ROOT / "docs" / page).read_text(encoding="utf-8")
        for name in names:
            for ending in ("", "_cuda"):
                assert text.count(f"<!-- {name}{ending}, written by benchmarks/") == 1
                assert text.count(f"<!-- end of {name}{ending} -->") == 1


@pytest.mark.parametrize(
    ("accuracies", "minutes"),
    [
        ([30, 29, 36, 41, 42], 3.75),
        ([30, 41, 36, 39, 42], 5.0),
        ([30, 41, 42, 43, 39], None),
        ([30, 30, 30, 30, 30], None),
    ],
)
def test_a_floor_is_passed_when_it_stays_passed(accuracies: list[float], minutes: float | None) -> None:
    """In a run of 5 minutes and 8 steps with a look at every second one."""
    looks: list[dict[str, Any]] = [{"step": 2 * i, "knn": a} for i, a in enumerate(accuracies)]
    looks[0] |= {"knn_pixels": 40.0}
    found = {"curve": looks, "minutes": 5.0, "settings": {"train.steps": 8}}
    assert cifar10.passed(found, "pixels") == minutes


def test_the_spread_over_seeds_is_told() -> None:
    def one(value: float) -> dict[str, Any]:
        return {"test": {"knn": {"metrics": {"run": {"top1": {"value": value, "low": value - 1, "high": value + 1}}}}}}

    assert spread([one(50.0), one(53.0), one(51.5)], "knn", "run") == "51.5 (50.0 to 53.0)"
    assert spread([one(50.0)], "knn", "run") == "50.0 [49.0, 51.0]"


# k-NN on the test images after 5 minutes, as docs/benchmarks.md has it.
AFTER_FIVE = {
    5000: {"simclr": 41.3, "simsiam": 35.5, "mocov3": 39.2, "dino": 35.9, "ibot": 33.0, "pixels": 36.1},
    20000: {"simclr": 46.8, "simsiam": 39.9, "mocov3": 43.7, "dino": 38.4, "ibot": 36.6, "pixels": 44.6},
}


class Recorder(Desk):
    """Notes the cases instead of running them; a run's result is `AFTER_FIVE`, with seeds half a point apart."""

    def __init__(self, results: Path) -> None:
        self.results, self.network, self.done = results, {}, list[str]()

    def run(self, cases: Iterable[Case]) -> None:
        for case in cases:
            known = AFTER_FIVE[case.images]
            values = {"run": known[case.recipe] + 0.5 * (case.about["seed"] - 1), "pixels": known["pixels"]}
            shown = {name: {"top1": {"value": values[name]}} for name in ("run", *case.floors) if name in values}
            found = {"recipe": case.recipe, "images": case.images, "test": {"knn": {"metrics": shown}}}
            (self.results / f"{case.name}.json").write_text(json.dumps(found | case.about))
            self.done.append(case.name)


def recorded(results: Path, minutes: float | None) -> list[str]:
    arguments = argparse.Namespace(
        minutes=minutes, seeds=[0, 1, 2], images=[5000, 20000], recipes=list(cifar10.RECIPES)
    )
    desk = Recorder(results)
    cifar10.run_all(desk, arguments, dict.fromkeys(cifar10.RECIPES, 0.5))
    return desk.done


def test_one_command_runs_longer_what_five_minutes_do_not_bring_above_raw_pixels(tmp_path: Path) -> None:
    """MoCo v3 and SimCLR pass them on 5,000 images, SimCLR alone on 20,000."""
    done = recorded(tmp_path, minutes=None)
    assert len([name for name in done if "_5min_" in name]) == 2 * 5 * 3
    longer = {f"{recipe}_5000" for recipe in ("simsiam", "dino", "ibot")}
    longer |= {f"{recipe}_20000" for recipe in ("simsiam", "mocov3", "dino", "ibot")}
    assert set(done[30:]) == {f"{name}_20min_seed{seed}" for name in longer for seed in range(3)}


def test_given_minutes_are_the_only_budget(tmp_path: Path) -> None:
    done = recorded(tmp_path, minutes=7)
    assert len(done) == 30
    assert all("_7min_" in name for name in done)
