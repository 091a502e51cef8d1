"""The benchmark of tasks in small: what is planned and with which settings, the table, and a trial."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cifar_runs
import imagenette
import tasks as benchmark
from belvedere import config
from belvedere.backbones.build import build_backbone
from belvedere.derive import Facts
from belvedere.pretrain.compose import settle
from cifar_runs import Case, Desk
from newcomer import photo_folder
from tiny import NETWORK

SEEDS, MINUTES = (0, 1, 2), 4


def desk_of(device: str) -> Desk:
    """A desk without images."""
    desk = Desk.__new__(Desk)
    desk.device, desk.network = device, cifar_runs.NETWORKS[device]
    return desk


def planned(device: str) -> list[Case]:
    desk = desk_of(device)
    seconds = dict.fromkeys(benchmark.compositions(device), 0.5)
    found = [case for seed in SEEDS for case in benchmark.cifar10_cases(desk, MINUTES, seconds, seed)]
    if device == "cuda":
        there = desk.beside(Path(), Path(), 128, imagenette.NETWORK)
        found += [case for seed in SEEDS for case in benchmark.imagenette_cases(there, MINUTES, seconds, seed)]
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_plan_is_as_long_as_is_said(device: str) -> None:
    cases = planned(device)
    assert len({case.name for case in cases}) == len(cases)
    page = (Path(benchmark.__file__).parents[1] / "docs" / "tasks.md").read_text(encoding="utf-8")
    said = f"{len(cases)} runs"
    hours = f"{len(cases) * MINUTES / 60:.1f} hours"
    for text in (benchmark.__doc__ or "", page):
        assert said in " ".join(text.split())
        assert hours in " ".join(text.split())
    assert {case.about["data"] for case in cases} == {"cpu": {"CIFAR-10"}, "cuda": {"CIFAR-10", "Imagenette"}}[device]
    assert {case.name for case in cases if case.head} == {case.name for case in cases if case.about["labelled"]}
    staged = next(case for case in cases if case.about["what"] == "relvit, then supervised")
    assert staged.start is not None
    assert (staged.start.recipe, staged.start.head) == ("relvit", False)
    assert staged.about["steps"] == [staged.start.settings["train.steps"], staged.settings["train.steps"]]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_settings_are_possible(device: str) -> None:
    pytest.importorskip("kymatio")
    for name, case in {case.about["what"]: case for case in planned(device)}.items():
        side = 128 if case.about["data"] == "Imagenette" else 32
        facts = Facts(case.images, side, 3, 10, (0.5,) * 3, (0.25,) * 3, class_sizes=(case.images // 10,) * 10)
        settled = settle(config.resolve(case.recipe, case.settings), facts)[0].config
        assert settled.backbone.name.startswith("scatnet8_l4" if name == benchmark.SMOKE else "")
        assert case.about["smoke"] is (name == benchmark.SMOKE)
        if name.endswith("rotation"):
            own, theirs = settled.task["rotation"], config.resolve("scatsimclr", {}).config.task["rotation"]
            assert {key: own[key] for key in theirs} == theirs
        if "selfpatch" in name:
            assert settled.backbone.class_token is False
            assert settled.tasks == (() if "without" in name else ("selfpatch",))


def test_both_networks_of_scatsimclr_s_comparison_have_as_many_parameters() -> None:
    pytest.importorskip("kymatio")
    counts = []
    for _, settings in benchmark.SCATTERING["cuda"].values():
        network = build_backbone(settings["backbone.name"], size=(32, 32), channels=3)
        counts.append(sum(p.numel() for p in network.parameters()))
    assert counts[0] == pytest.approx(counts[1], rel=0.02)


def result(what: str, images: int, labelled: bool, **tests: float) -> dict[str, Any]:
    """What a run's JSON holds."""
    test = {
        name: {"metrics": {"run": {"top1": {"value": value, "low": value - 1, "high": value + 1}}}}
        for name, value in tests.items()
    }
    return {"what": what, "data": "CIFAR-10", "images": images, "labelled": labelled, "steps": [9], "test": test}


def test_the_table_tells_smoke_runs_and_learned_classes(tmp_path: Path) -> None:
    several = [
        result(benchmark.SMOKE, 5000, False, knn=30, logistic=31),
        result("supervised", 500, True, knn=40, logistic=41, head=42),
        result("relvit, then supervised", 500, True, knn=50, logistic=51, head=52) | {"steps": [3, 4]},
    ]
    for number, one in enumerate(several):
        (tmp_path / f"{number}.json").write_text(json.dumps(one))
    lines = benchmark.table(tmp_path, "cpu").splitlines()
    assert "| scatsimclr, smoke run | 5,000 of CIFAR-10 | 9 | 1 | 30.0 [29.0, 31.0] | 31.0 [30.0, 32.0] |" in lines
    row = "| 500 of CIFAR-10 | {} | 1 | {}.0 [{}.0, {}.0] | {}.0 [{}.0, {}.0] | {}.0 [{}.0, {}.0] |"
    assert "| supervised " + row.format(9, 40, 39, 41, 41, 40, 42, 42, 41, 43) in lines
    assert "| relvit, then supervised " + row.format("3 + 4", 50, 49, 51, 51, 50, 52, 52, 51, 53) in lines
    assert any("classes learned, %" in line for line in lines)


@pytest.mark.slow
def test_a_trial_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain command does the runs and the table; once more it does nothing."""
    pytest.importorskip("kymatio")
    folders = photo_folder(tmp_path / "train", count=160), photo_folder(tmp_path / "test", count=40)
    monkeypatch.setattr(cifar_runs, "unpack", lambda *_: folders)
    shape = {key: value for key, value in NETWORK.items() if key != "backbone.heads"}  # of no scattering network
    small = {**shape, "train.batch": 16, "train.precision": "float32", "monitor.knn": 40, "monitor.probe": 16}
    monkeypatch.setitem(cifar_runs.NETWORKS, "cpu", small)
    pair = {name: benchmark.GROUPS[3][name] for name in ("simclr", "simclr + rotation")}
    staged = "relvit, then supervised"
    monkeypatch.setattr(benchmark, "GROUPS", (pair,))
    monkeypatch.setattr(benchmark, "LABELLED", {staged: benchmark.LABELLED[staged]})
    monkeypatch.setattr(benchmark, "IMAGES", (160,))
    monkeypatch.setattr(benchmark, "FEW", (80,))
    monkeypatch.setattr(benchmark, "paces", paces_noting_trainers)
    page, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    page.write_text("<!-- tasks, written by benchmarks/tasks.py -->\n<!-- end of tasks -->")
    given = {"--minutes": "0.02", "--seeds": "0", "--device": "cpu", "--page": str(page)}
    given |= {"--work": str(tmp_path / "work"), "--results": str(results)}
    monkeypatch.setattr(sys, "argv", ["tasks.py", *(word for pair in given.items() for word in pair)])
    benchmark.main()
    written = {path: path.read_bytes() for path in sorted((results / "tasks").glob("*.json"))}
    found = {one["what"]: SimpleNamespace(**one) for one in map(json.loads, written.values())}
    assert set(found) == {*pair, staged, benchmark.SMOKE}
    assert {what: one.smoke for what, one in found.items() if one.smoke} == {benchmark.SMOKE: True}
    assert found[benchmark.SMOKE].settings["backbone.name"] == "scatnet8_l4"
    head = found[staged].test["head"]["metrics"]["run"]["top1"]
    assert 0 <= head["low"] <= head["value"] <= head["high"] <= 100
    assert not any("head" in one.test for what, one in found.items() if what != staged)
    text = page.read_text()
    assert "| simclr + rotation | 160 of CIFAR-10 | 2 | 1 |" in text
    assert "| relvit, then supervised | 80 of CIFAR-10 | 1 + 1 | 1 |" in text
    benchmark.main()
    assert {path: path.read_bytes() for path in sorted((results / "tasks").glob("*.json"))} == written


def paces_noting_trainers(path: Path, cases: dict[str, Any], desk: Desk, again: bool) -> dict[str, float]:
    """In place of measuring: every trainer that would be paced can be built."""
    for recipe, settings in cases.values():
        cifar_runs.trainer_of(recipe, desk.train, settings, desk.device, desk.side)
    return dict.fromkeys(cases, 0.5)


def test_a_composition_without_a_pace_has_all_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = list[list[str]]()
    desk: Any = SimpleNamespace(train=None, device="cpu", side=32)

    def pace(trainers: dict[str, Any]) -> dict[str, Any]:
        measured.append(list(trainers))
        return {"seconds_a_step": dict.fromkeys(trainers, 1.0)}

    monkeypatch.setattr(cifar_runs, "trainer_of", lambda *_: None)
    monkeypatch.setattr(cifar_runs, "pace", pace)
    for names in (["a"], ["a"], ["a", "b"], ["b"]):
        found = cifar_runs.paces(tmp_path / "pace.json", dict.fromkeys(names, ("simclr", {})), desk, False)
        assert set(names) <= found.keys()
    assert measured == [["a"], ["a", "b"]]
