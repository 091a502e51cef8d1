"""The benchmark of view policies in small: plan, tables, pictures, the frontier on a tiny network, a trial."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cifar_runs
import views as benchmark
import views_frontier
from belvedere.distributed import has_batchnorm
from belvedere.pretrain.compose import make_policy, work_of
from newcomer import photo_folder
from tiny import NETWORK, tiny_canvases, tiny_config, tiny_trainer
from views_frontier import OBJECTIVES, frontier_text, recommended
from views_pictures import draw_frontier, draw_sweep, draw_time, mean_curve

NAMES = {run.name for run in benchmark.all_runs([0, 1, 2])}


def test_the_plan_is_the_question() -> None:
    """Two recipes and eight policies at the same time, three of them at the same steps, SimCLR on few images."""
    assert len(NAMES) == 3 * (2 * (8 + 2) + 7)
    assert {"dino_20000_hard-learned_4min_minutes_seed2", "dino_20000_learned_4min_steps_seed0"} <= NAMES
    assert "simclr_5000_iou_4min_minutes_seed1" in NAMES
    large = {run.name for run in benchmark.all_runs([0, 1, 2], large=True)} - NAMES
    assert len(large) == 3 * 2 * 7
    assert "dino_6500_hard_4min_minutes_seed2" in large
    assert not NAMES & {run.name for run in benchmark.all_runs([0, 1, 2], minutes=2)}
    seconds = {"simclr/random": 0.5, "simclr/hard": 0.8, "simclr/learned": 0.6}
    hard = benchmark.Run("simclr", 20000, "hard", "minutes", 0)
    assert benchmark.steps_of(hard, seconds) == round(0.92 * 240 / 0.8)
    assert benchmark.steps_of(hard._replace(same="steps"), seconds) == round(0.92 * 240 / 0.5)
    assert benchmark.steps_of(hard._replace(minutes=2), seconds) == round(0.92 * 120 / 0.8)
    assert benchmark.steps_of(hard._replace(policy="learned-0.7"), seconds) == round(0.92 * 240 / 0.6)


def test_the_sweep_turns_one_knob() -> None:
    """Its default is the run that the benchmark has anyway."""
    runs = list(benchmark.sweep_runs([0]))
    assert {run.settings.get("views.retention", benchmark.DEFAULTS.retention) for run in runs} == {
        *(0.05, 0.15, 0.25, 0.45, 0.7)
    }
    assert all(run.settings["views.policy"] == "learned" for run in runs)
    assert len({run.name for run in runs} & NAMES) == 1


class Paces:
    """In place of `pace`: a machine on which everything takes twice as long while policies rest."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, set[str]]] = []
        monkeypatch.setattr(benchmark, "pace", self.pace)

    def pace(self, trainers: dict[str, Any], rounds: int, *, first: int = 500) -> dict[str, Any]:
        self.calls.append((first, set(trainers)))
        seconds = {"random": 0.5, "iou": 0.5, "learned": 1.0} if first else {"random": 1.0, "learned": 1.2}
        return {"seconds_a_step": {name: seconds[name.split("/")[1]] for name in trainers}, "rounds": rounds}


def test_a_policy_that_rests_is_paced_by_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the steps of `learned` neither anchor nor learn; what all steps then took longer is left out."""
    paces = Paces(monkeypatch)
    trainers = {
        f"simclr/{policy}": tiny_trainer("simclr", views__policy=policy) for policy in ("random", "iou", "learned")
    }
    found = benchmark.paced(trainers)
    assert paces.calls == [(500, set(trainers)), (0, {"simclr/random", "simclr/learned"})]
    working = {"simclr/random": 0.5, "simclr/iou": 0.5, "simclr/learned": 1.0}
    assert found["working"] == working
    assert found["resting"] == {"simclr/learned": pytest.approx(0.6)}
    assert found["seconds_a_step"] == {**working, "simclr/learned": pytest.approx(0.92)}
    assert found["resting_as_measured"]["seconds_a_step"] == {"simclr/random": 1.0, "simclr/learned": 1.2}
    assert found["expected_cost"]["simclr/random"] == 1.0 < found["expected_cost"]["simclr/learned"]


def test_costs_are_measured_recipe_by_recipe_and_change_no_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paces = Paces(monkeypatch)
    policies = ("random", "learned")
    monkeypatch.setattr(benchmark, "COUNTED", policies[1:])
    trainer = tiny_trainer("simclr", views__policy="learned")
    monkeypatch.setattr(benchmark, "trainer_of", lambda *_: trainer)
    desk: Any = SimpleNamespace(train=tmp_path, network={}, device="cpu", side=32)
    benchmark.measure_costs(tmp_path / "costs.json", desk)
    assert paces.calls == [(500, {f"{recipe}/{policy}" for policy in policies}) for recipe in ("simclr", "dino")]
    found = json.loads((tmp_path / "costs.json").read_text())
    assert found["working"] == {
        f"{r}/{p}": x for r in ("simclr", "dino") for p, x in [("random", 0.5), ("learned", 1.0)]
    }
    assert found["expected_cost"].keys() == found["working"].keys()
    assert "seconds_a_step" not in found
    assert "**too much**" in benchmark.cost_text(found)


def test_rests_alone_are_paced_into_the_file_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "RESTING", {"learned": 0.2})
    monkeypatch.setattr(benchmark, "trainer_of", lambda *_: None)
    paces, file = Paces(monkeypatch), tmp_path / "paces.json"
    known = {"working": {}, "seconds_a_step": {}, "resting": {"simclr/learned": 9.0}, "machine": "as it was"}
    known["working"] = {f"{recipe}/{policy}": 2.0 for recipe in ("simclr", "dino") for policy in benchmark.POLICIES}
    file.write_text(json.dumps(known))
    desk: Any = SimpleNamespace(train=tmp_path, network={}, device="cpu", side=32)
    benchmark.pace_resting(file, desk)
    found = json.loads(file.read_text())
    assert paces.calls == [(0, {"simclr/random", "simclr/learned", "dino/random", "dino/learned"})]
    assert found["resting"] == {"simclr/learned": pytest.approx(2.4), "dino/learned": pytest.approx(2.4)}
    assert found["seconds_a_step"]["dino/learned"] == pytest.approx(0.8 * 2 + 0.2 * 2.4)
    assert found["seconds_a_step"]["dino/hard"] == 2
    assert {name: found[name] for name in ("working", "machine")} == {
        name: known[name] for name in ("working", "machine")
    }


def test_further_policies_are_paced_by_their_ratio_to_random(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "trainer_of", lambda *_: None)
    paces, file = Paces(monkeypatch), tmp_path / "paces.json"
    working = {"simclr/random": 3.0, "dino/random": 1.0, "dino/hard": 2.0}
    known = {"working": working, "seconds_a_step": {**working, "dino/hard": 1.9}, "machine": "as it was"}
    file.write_text(json.dumps(known))
    desk: Any = SimpleNamespace(train=tmp_path, network={}, device="cpu", side=32)
    benchmark.pace_more(file, desk, ["iou"])
    found = json.loads(file.read_text())
    assert paces.calls == [(500, {"simclr/random", "simclr/iou", "dino/random", "dino/iou"})]
    assert found["working"] == {**working, "simclr/iou": 3.0, "dino/iou": 1.0}
    assert found["seconds_a_step"] == {**found["working"], "dino/hard": 1.9}
    assert found["machine"] == "as it was"


def test_clocks_stand_where_they_are_asked_to() -> None:
    class Stub:
        def __init__(self) -> None:
            self.steps: list[int] = []

        def step(self, step: int, micro_batches: Any) -> None:
            self.steps.append(step)

        def stream(self, start: int, stop: int) -> Any:
            return iter(range(start, stop))

    for first in (0, 500):
        stub: Any = Stub()
        cifar_runs.pace({"one": (stub, stub)}, rounds=3, first=first)
        assert stub.steps == list(range(first, first + 5))


def result(policy: str, same: str, seed: int, value: float, minutes: float = 4) -> dict[str, Any]:
    """What a run's JSON holds."""
    run = benchmark.Run("simclr", 20000, policy, same, seed, minutes)
    top1 = {"top1": {"value": value, "low": value - 1, "high": value + 1}}
    test = {protocol: {"metrics": {"run": top1}} for protocol in ("knn", "logistic")}
    curve = [
        {"step": step, "elapsed": 40 * step, "knn": knn}
        for step, knn in ((0, 30.0), (3, 35.0), (6, value - 1), (9, value))
    ]
    factor = {"random": 1.0, "hard": 1.6}.get(policy, 1.3)
    return {**run._asdict(), "steps": 9, "time_of_a_step": factor, "test": test, "curve": curve}


RUNS = [
    result("random", "minutes", 0, 40.0),
    result("random", "minutes", 1, 41.0),
    result("hard", "minutes", 0, 41.0),
    result("hard", "minutes", 1, 43.0),
    result("hard", "steps", 0, 44.0),
    result("hard", "minutes", 0, 20.0, minutes=0.5),
]
PACES = {
    "working": {f"{recipe}/{policy}": 1.5 for recipe in ("simclr", "dino") for policy in benchmark.POLICIES}
    | {"simclr/random": 1.0, "dino/random": 1.0},
    "expected_cost": {f"{recipe}/{policy}": 1.25 for recipe in ("simclr", "dino") for policy in benchmark.POLICIES}
    | {"simclr/hard": 1.43},
}


def test_how_cheap_scores_chose_is_told(tmp_path: Path) -> None:
    """Of an untrained network they tell little."""
    log = [{"step": 0, "hard/fidelity": 0.9, "hard/kept": 0.95}, {"step": 1, "loss": 2.0}, {"step": 2, "look": {}}]
    log += [{"step": 10, "hard/fidelity": 0.2, "hard/kept": 0.5}, {"step": 20, "hard/fidelity": 0.3, "hard/kept": 0.7}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    found = cifar_runs.choosing(tmp_path)
    assert found == {"fidelity": pytest.approx(0.25), "kept": pytest.approx(0.6)}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(log[1]))
    assert cifar_runs.choosing(tmp_path) == {}
    half = {**result("hard-half", "minutes", 0, 41.0), "choosing": found}
    text = " ".join(benchmark.cheap_choices([*RUNS, half]))
    assert "with simclr, scores at half size chose the pair that full ones would in 25% of cases, and kept 0.60" in text
    assert "dino" not in text
    assert text in benchmark.runs_text([*RUNS, half], None, set(), "time.png").replace("\n", " ")


def test_the_table_compares_with_random() -> None:
    """Paired by seed; runs of other minutes stand apart."""
    lines = benchmark.table(RUNS).splitlines()[2:]
    single = "20.0 [19.0, 21.0] |  | 20.0 [19.0, 21.0] |  |"
    random, hard = "40.5 (40.0 to 41.0) | ", "42.0 (41.0 to 43.0) | +1.5 (+1.0 to +2.0)"
    steps = "44.0 [43.0, 45.0] | +4.0"
    assert lines == [
        f"| simclr | 20,000 | 0.5 minutes | `hard` | 1.60 | 9 | 1 | {single}",
        f"| simclr | 20,000 | 4 minutes | `random` | 1.00 | 9 | 2 | {random} | {random} |",
        f"| simclr | 20,000 | 4 minutes | `hard` | 1.60 | 9 | 2 | {hard} | {hard} |",
        f"| simclr | 20,000 | steps of 4 minutes | `random` | 1.00 | 9 | 2 | {random} | {random} |",
        f"| simclr | 20,000 | steps of 4 minutes | `hard` | 1.60 | 9 | 1 | {steps} | {steps} |",
    ]


def test_verdicts_need_three_seeds_that_both_have() -> None:
    runs = [
        result(policy, same, seed, value + seed)
        for policy, same, value, seeds in (
            ("random", "minutes", 40.0, 4),
            ("hard", "minutes", 40.0, 2),
            ("hard", "steps", 40.6, 3),
            ("learned", "minutes", 39.6, 3),
            ("randaugment", "minutes", 36.7, 3),
        )
        for seed in range(seeds)
    ]
    runs[-1]["test"]["knn"]["metrics"]["run"]["top1"]["value"] += 1.5
    lines = benchmark.verdicts(runs, list(benchmark.all_runs([0, 1, 2]))).splitlines()[2:]
    assert len(lines) == 2 * len(benchmark.EXPECTED) + sum(one.same == "minutes" for one in benchmark.EXPECTED)
    four = "4 minutes | simclr | 20,000"
    assert [line for line in lines if "| simclr | 20,000" in line] == [
        "| `hard` about 1 point above `random` | steps of 4 minutes | simclr | 20,000 | +0.5 "
        "| +0.6 (+0.6 to +0.6) | 3 | holds |",
        f"| `hard` above `random` | {four} | +0 | +0.0 (+0.0 to +0.0) | 2 of 3 | not enough seeds yet |",
        f"| `hard` above `iou` | {four} | +0 |  | 0 of 3 | not enough seeds yet |",
        f"| `learned` far above `randaugment` | {four} | +3 | +2.4 (+1.4 to +2.9) | 3 | **does not hold** |",
        "| `learned` at or above `random` | steps of 4 minutes | simclr | 20,000 | -0.5 "
        "|  | 0 of 3 | not enough seeds yet |",
        f"| `learned` at or above `random` | {four} | -0.5 | -0.4 (-0.4 to -0.4) | 3 | holds |",
        f"| `learned` above `trivial` | {four} | +0 |  | 0 of 3 | not enough seeds yet |",
        f"| `hard-learned` at or above `hard` | {four} | -0.5 |  | 0 of 3 | not enough seeds yet |",
    ]
    assert all(line.endswith("|  | 0 of 3 | not enough seeds yet |") for line in lines if "| dino |" in line)


def test_the_cost_is_judged_by_the_analytic_one() -> None:
    lines = benchmark.cost_text(PACES).splitlines()
    assert "| simclr | `hard` | 1.50 | 1.43 | 1.43 | no more than 5 % above |" in lines
    assert "| simclr | `learned` | 1.50 | 1.22 | 1.25 | 23 % above: **too much** |" in lines
    assert lines[-1].startswith("The bound **does not hold** for simclr `learned`, simclr `hard-learned`, dino `hard`")
    within = {**PACES, "working": dict.fromkeys(PACES["working"], 1.0)}
    assert "does not hold" not in benchmark.cost_text(within)


def test_the_analytic_cost_is_the_specification_s() -> None:
    """Two views of student and, with DINO, teacher; four candidates; one anchor in place of ours and an eighth."""
    for recipe, forwards, hard in (("simclr", 6, 5 / 3), ("dino", 8, 2)):
        counted = {}
        for policy in benchmark.COUNTED:
            given = {key.replace(".", "__"): value for key, value in benchmark.POLICIES[policy].items()}
            config = tiny_config(recipe, tiny_canvases(), **{"views__locals": 0, **given})
            counted[f"{recipe}/{policy}"] = make_policy(config, 3).expected_cost(work_of(config))
        analytic = {policy: benchmark.analytic_cost(counted, recipe, policy) for policy in benchmark.COUNTED}
        assert analytic["hard"] == pytest.approx(hard)
        assert analytic["learned"] == pytest.approx(1 + 1 / forwards)
        assert analytic["hard-learned"] == pytest.approx(hard + 1 / forwards)


def test_what_is_missing_is_said_while_it_is() -> None:
    planned = {benchmark.Run(*(one[field] for field in benchmark.Run._fields)).name for one in RUNS}
    assert "has not been run yet" in benchmark.runs_text([], None, planned, "time.png")
    half = benchmark.runs_text(RUNS[:3], PACES, planned, "time.png")
    assert "3 of 6 runs" in half
    whole = benchmark.runs_text(RUNS, PACES, planned, "time.png")
    assert "yet" not in whole
    assert "](time.png)" in whole
    assert "took 1.5 to 12.0 times their minutes" in whole
    assert "not been run" in benchmark.sweep_text(RUNS, "sweep.png")
    swept = benchmark.sweep_text(
        [*RUNS, result("learned", "minutes", 0, 42), result("learned-0.7", "minutes", 0, 39)], ""
    )
    assert "yet" not in swept
    assert "| 0.7 | 4 minutes | 1 | 39.0 [38.0, 40.0] |" in swept
    way = {"way": "4 candidates", "cost": 1.5, "expected_cost": 1.6, "kept": 1.0}
    some = frontier_text({"dino": [way]}, "frontier.png")
    assert "**Not measured yet**: simclr, simsiam, mocov3, dino-no-bn, ibot." in some
    assert "| 1 | 4 candidates | 1.50 (1.60), 1.00 |" in some
    assert "| 11 | teacher reused | BatchNorm |" in some
    assert "](frontier.png)" in some
    assert "yet" not in frontier_text({name: [way] for name in OBJECTIVES}, "frontier.png")


def test_the_frontier_judges_views_that_were_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an epoch after those of the thousand steps of its clock, with the run's seed."""
    trainer, feed = tiny_trainer("simclr", views__policy="hard", train__steps=1000, train__seed=3)
    proposed, policy = [], views_frontier.policy_of(trainer, {})
    propose = policy.propose

    def watched(index: Any, sizes: Any, epoch: int, seed: int) -> Any:
        proposed.append((epoch, seed))
        return propose(index, sizes, epoch, seed)

    monkeypatch.setattr(policy, "propose", watched)
    assert views_frontier._gain(trainer, feed, policy, batches=1) > 0
    assert proposed == [(999 // trainer.steps_per_epoch + 1, 3)]


def test_teachers_that_are_reused_answer_image_by_image() -> None:
    for name, (recipe, settings) in views_frontier.OBJECTIVES.items():
        given = {key.replace(".", "__"): value for key, value in settings.items()}
        teacher = tiny_trainer(recipe, **given)[0].parts.teacher
        assert (teacher is not None and not has_batchnorm(teacher)) == (name not in views_frontier.NO_REUSE), name


def test_the_recommended_ways() -> None:
    def way(name: str, cost: float, kept: float) -> dict[str, Any]:
        return {"way": name, "options": {}, "cost": cost, "expected_cost": cost, "kept": kept}

    ways = [
        *(way("4 candidates", 1.8, 1.0), way("size 3/4", 1.5, 0.93), way("size 1/2", 1.2, 0.4)),
        *(way("every 2nd step", 1.4, 0.5), way("teacher reused", 1.35, 0.6)),
    ]
    assert [one["way"] for one in recommended(ways)] == ["size 3/4", "size 3/4"]
    assert [one["way"] for one in recommended([*ways, way("for nothing", 0.99, 0.55)])] == ["size 3/4", "for nothing"]
    text = frontier_text({"dino": ways}, "")
    assert "| | *cheapest that keeps 0.9* | size 3/4 |" in text
    assert "| | *most for its time, keeps 0.5* | size 3/4 |" in text


def test_pictures(tmp_path: Path) -> None:
    minutes, knn = mean_curve(RUNS[2:4])
    assert minutes.tolist() == pytest.approx([0, 4 / 3, 8 / 3, 4])
    assert knn.tolist() == [30, 35, 41, 42]
    draw_time(benchmark.grouped(RUNS[:4]), tuple(benchmark.POLICIES), tmp_path / "time.png")
    one = result("learned-0.7", "minutes", 0, 39.0)
    assert list(benchmark.swept([*RUNS, one])) == [("simclr", 20000, 4, "minutes")]
    draw_sweep(benchmark.swept([*RUNS, one]), benchmark.SWEEP, tmp_path / "sweep.png")
    assert all(path.stat().st_size > 5000 for path in (tmp_path / "time.png", tmp_path / "sweep.png"))


@pytest.mark.slow
def test_a_trial_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain command does the runs, then the missing frontier, and writes it all; once more it does nothing."""
    folders = photo_folder(tmp_path / "train", count=160), photo_folder(tmp_path / "test", count=40)
    monkeypatch.setattr(cifar_runs, "unpack", lambda *_: folders)
    small = {**NETWORK, "train.batch": 16, "train.precision": "float32", "monitor.knn": 40, "monitor.probe": 16}
    monkeypatch.setitem(cifar_runs.NETWORKS, "cpu", small)
    runs = [benchmark.Run("simclr", 160, policy, "minutes", 0, 0.02) for policy in ("random", "learned")]
    monkeypatch.setattr(benchmark, "all_runs", lambda *_: runs)
    cheap = {name: views_frontier.CHEAP[name] for name in ("4 candidates", "every 2nd step")}
    monkeypatch.setattr(views_frontier, "CHEAP", cheap)
    page = tmp_path / "page.md"
    marks = [
        f"<!-- {name}, written by benchmarks/views.py -->\n<!-- end of {name} -->"
        for name in ("runs", "verdicts", "frontier")
    ]
    page.write_text("\n".join([*marks, "<!-- sweep, written by benchmarks/views.py --><!-- end of sweep -->"]))
    given = {"--minutes": "0.02", "--objectives": "simsiam", "--steps": "1", "--device": "cpu", "--page": str(page)}
    given |= {"--work": str(tmp_path / "work"), "--results": str(tmp_path / "results")}
    (tmp_path / "results").mkdir()
    paces = {**PACES, "seconds_a_step": {"simclr/random": 0.2, "simclr/learned": 0.3}}
    (tmp_path / "results" / "views_pace.json").write_text(json.dumps(paces))
    monkeypatch.setattr(sys, "argv", ["views.py", *(word for pair in given.items() for word in pair)])
    benchmark.main()
    written = {path: path.read_bytes() for path in sorted((tmp_path / "results").rglob("*.json"))}
    assert [path.name for path in written][:2] == [f"{run.name}.json" for run in reversed(runs)]
    assert list(views_frontier.frontiers(tmp_path / "results" / "views_frontier.json")) == ["simsiam"]
    text = page.read_text()
    assert "| simclr | 160 | 0.02 minutes | `learned` | 1.50 |" in text
    assert "| 2 | every 2nd step |" in text
    assert "| `learned` at or above `random` | 0.02 minutes | simclr | 160 |" in text
    assert "has not been run" in text.partition("<!-- sweep")[2]
    assert {path.name for path in tmp_path.glob("*.png")} == {"views-frontier.png", "views-time.png"}
    benchmark.main()
    assert {path: path.read_bytes() for path in sorted((tmp_path / "results").rglob("*.json"))} == written


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["simclr", "dino-no-bn", "ibot"])
def test_the_frontier(objective: str, tmp_path: Path) -> None:
    folder = photo_folder(tmp_path / "photos", count=160)
    small: dict[str, Any] = {**NETWORK, "train.batch": 8, "train.precision": "float32"}
    ways = {way["way"]: way for way in views_frontier.frontier(objective, folder, small, "cpu", steps=2)}
    assert ("teacher reused" in ways) == (objective != "simclr")
    assert ways["4 candidates"]["kept"] == 1.0
    assert ways["every 4th step"]["kept"] == pytest.approx(1 / 4)
    assert ways["half of the images"]["kept"] == pytest.approx(1 / 2)
    assert ways["size 1/2"]["kept"] < 1 < ways["6 candidates"]["kept"]
    assert all(way["cost"] > 0 for way in ways.values())
    rows = frontier_text({objective: list(ways.values())}, "frontier.png").splitlines()
    assert sum(row.startswith("| ") for row in rows) == 3 + len(views_frontier.CHEAP)
    draw_frontier({objective: list(ways.values())}, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 5000
