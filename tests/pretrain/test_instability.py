"""Deliberately broken runs are named by the health monitor before a third of them is over; healthy ones raise no alarm.

The cases are those that the bands were calibrated on (benchmarks/health.py), on tiles of real photographs.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from belvedere import demo
from belvedere.report.page import write_report


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "health.py"
    spec = importlib.util.spec_from_file_location("health_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


benchmark = _benchmark()
HEALTHY = [name for name, case in benchmark.CASES.items() if not case.words]
BROKEN = [name for name, case in benchmark.CASES.items() if case.words]


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's training tiles."""
    return demo.write_tiles(tmp_path_factory.mktemp("tiles") / "images") / "train"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BELVEDERE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_raises_no_alarm(name: str, tiles: Path, tmp_path: Path) -> None:
    run = benchmark.train(benchmark.CASES[name], tmp_path / "run", tiles, {})
    said = benchmark.verdicts(run)
    assert len(said) > 10
    assert benchmark.first_alarm(said) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_run_is_named_before_a_third_of_it(name: str, tiles: Path, tmp_path: Path) -> None:
    case = benchmark.CASES[name]
    run = benchmark.train(case, tmp_path / "run", tiles, {})
    said = benchmark.verdicts(run)
    told = [(verdict["step"], verdict["color"], verdict["health"]) for verdict in said]
    assert benchmark.is_right(case, said, (benchmark.SETTINGS | case.settings)["train.steps"]), told
    alarm = benchmark.first_alarm(said)
    assert alarm["health"] in case.words, told
    assert write_report(run).read_text().count(case.words[0]) > 0
