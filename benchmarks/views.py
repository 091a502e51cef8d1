"""View policies on CIFAR-10 for the same budget of minutes and of steps, and what choosing views costs.

    python benchmarks/views.py --pace       # seconds a step of both recipes with every policy, on a quiet machine
    python benchmarks/views.py --pace-resting  # the same, but only of the steps in which a policy rests
    python benchmarks/views.py --pace-more hard-half    # the same of these policies, beside the paces there are
    python benchmarks/views.py --cost       # steps that choose or learn in turn with `random`; changes no budget
    python benchmarks/views.py --frontier   # cost against kept hardness of cheap ways to choose, every objective
    python benchmarks/views.py              # all runs, and what of the frontier is missing: about 6 hours of two cores
    python benchmarks/views.py --sweep      # learned views by their strength, `views.retention`: another hour
    python benchmarks/views.py --table      # only write docs/views.md and its pictures anew

Trains without labels on images in ../shared/data. Settings are those that each recipe derives, policies have their
defaults; nothing was chosen on the test images, which are read once, at the end of a run. A budget is a number of
steps: as many as the recipe with that policy does in 4 minutes by its pace on a quiet machine, or ("steps") as many as
`random` does. A run may take longer on a machine that it shares.
Killed, it goes on where it was when the same command is given again; a finished run is not done twice. Writes one JSON
a run to benchmarks/results/views and the tables and pictures of docs/views.md. On a CUDA device the network is a ViT-S
with patch 4, and Imagenette's images of 128 px are added, for equal minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imagenette
from belvedere.pretrain.compose import work_of
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.trainer import Trainer
from belvedere.views.policies.learned import FLOOR_OF, Learned
from cifar_runs import Case, Desk, command, pace, spread, steps_in, trainer_of
from views_frontier import OBJECTIVES, frontier_text, frontiers, measure_frontier
from views_pictures import draw_frontier, draw_sweep, draw_time

POLICIES: dict[str, dict[str, Any]] = {
    "random": {},
    "randaugment": {"views.policy": "randaugment"},
    "trivial": {"views.policy": "trivial"},
    "iou": {"views.policy": "iou"},
    "hard": {"views.policy": "hard"},
    "learned": {"views.policy": "learned"},
    "hard-learned": {"views.policy": "hard", "views.inner": "learned"},
    # What costs least among the ways of the frontier that choose as hard as `hard` does.
    "hard-half": {"views.policy": "hard", "views.candidates": 6, "views.scale": 0.5},
}
PAPERS = tuple(name for name in POLICIES if name != "hard-half")
DEFAULTS = Learned.Options()
STRENGTHS = (0.05, 0.15, 0.25, 0.45, 0.7)
# Learned views by retention; the default is the run of `learned`.
SWEEP = {"learned" if r == DEFAULTS.retention else f"learned-{r:g}": r for r in STRENGTHS}
RESTING = {"learned": DEFAULTS.warmup + DEFAULTS.freeze, "hard-learned": DEFAULTS.warmup + DEFAULTS.freeze}
"""Shares of a run in which a policy does not learn; its steps are cheaper then."""
COUNTED = ("hard", "learned", "hard-learned")
ALLOWED = 0.05
"""Above the analytic cost of a step."""
RECIPES = ("simclr", "dino")
SEEDS = 3
"""Fewer say nothing about an expectation."""


class Expectation(NamedTuple):
    """That a policy is above another one where `same` is equal; it holds if the mean is more than `least` k-NN points.

    What papers lead one to expect is the issue's and the specification's; `least` is how we read their words.
    """

    policy: str
    words: str
    over: str
    same: str
    least: float


EXPECTED = (
    Expectation("hard", "about 1 point above", "random", "steps", 0.5),
    Expectation("hard", "above", "random", "minutes", 0.0),
    Expectation("hard", "above", "iou", "minutes", 0.0),
    Expectation("learned", "far above", "randaugment", "minutes", 3.0),
    Expectation("learned", "at or above", "random", "steps", -0.5),
    Expectation("learned", "at or above", "random", "minutes", -0.5),
    Expectation("learned", "above", "trivial", "minutes", 0.0),
    Expectation("hard-learned", "at or above", "hard", "minutes", -0.5),
)


class Run(NamedTuple):
    """One run: `same` is what all policies have alike, "minutes" or "steps" (those of `random` in so many minutes)."""

    recipe: str
    images: int
    policy: str
    same: str
    seed: int
    minutes: float = 4

    @property
    def name(self) -> str:
        """Of its JSON file and its folder."""
        return f"{self.recipe}_{self.images}_{self.policy}_{self.minutes:g}min_{self.same}_seed{self.seed}"

    @property
    def settings(self) -> dict[str, Any]:
        """Of its policy."""
        if self.policy in POLICIES:
            return POLICIES[self.policy]
        return {"views.policy": "learned", "views.retention": SWEEP[self.policy]}


def all_runs(seeds: Sequence[int], minutes: float = 4, large: bool = False) -> Iterator[Run]:
    """Seed by seed, so that an unfinished benchmark compares all policies; `large`: with Imagenette."""
    for seed in seeds:
        for recipe in RECIPES:
            for policy in POLICIES:
                yield Run(recipe, 20000, policy, "minutes", seed, minutes)
            # `random` is the same run at equal minutes and equal steps.
            yield from (Run(recipe, 20000, policy, "steps", seed, minutes) for policy in ("hard", "learned"))
        yield from (Run("simclr", 5000, policy, "minutes", seed, minutes) for policy in PAPERS)
        for recipe in RECIPES if large else ():
            yield from (Run(recipe, imagenette.IMAGES, policy, "minutes", seed, minutes) for policy in PAPERS)


def sweep_runs(seeds: Sequence[int], minutes: float = 4) -> Iterator[Run]:
    """Learned views from gentle to strong."""
    for seed in seeds:
        yield from (Run("simclr", 20000, policy, "minutes", seed, minutes) for policy in SWEEP)


def steps_of(run: Run, seconds: Mapping[str, float]) -> int:
    """The budget of a run in steps."""
    paced = "random" if run.same == "steps" else "learned" if run.policy in SWEEP else run.policy
    return steps_in(run.minutes, seconds[f"{run.recipe}/{paced}"])


Trainers = Mapping[str, tuple[Trainer, Feed]]


def paced(trainers: Trainers, rounds: int = 40) -> dict[str, Any]:
    """Seconds a step by "recipe/policy", as a mean over a run in which some policies rest for a while.

    Beside it the time of a step that learns (or chooses), of one that rests, and the counted cost of the former.
    """
    found = costs_of(trainers, rounds)
    return found | with_resting(found["working"], trainers, rounds)


def costs_of(trainers: Trainers, rounds: int = 40) -> dict[str, Any]:
    """Seconds of a step that learns or chooses by "recipe/policy", measured in turn, and its counted cost."""
    found = pace(trainers, rounds)
    working = found.pop("seconds_a_step")
    counted = {
        name: trainer.parts.policy.expected_cost(work_of(trainer.config)) for name, (trainer, _) in trainers.items()
    }
    return {"working": working, "expected_cost": counted, **found}


def with_resting(working: Mapping[str, float], trainers: Trainers, rounds: int = 40) -> dict[str, Any]:
    """Measure the steps in which policies rest; mean over a run, seconds of steps that work, and of those that rest.

    They are timed in turn with `random`, at another time than the steps that work. Only what was timed in turn can be
    compared, so `resting` is the ratio to that `random`, in seconds of the one timed with the steps that work.
    """
    # A run's first steps are in its warmup.
    rest = {name: both for name, both in trainers.items() if policy_of(name) in ("random", *RESTING)}
    measured = pace(rest, rounds, first=0)
    seconds = measured["seconds_a_step"]
    resting = {
        name: working[random_of(name)] * seconds[name] / seconds[random_of(name)]
        for name in seconds
        if policy_of(name) in RESTING
    }
    shares = {name: RESTING[policy_of(name)] for name in resting}
    mean = {name: (1 - share) * working[name] + share * resting[name] for name, share in shares.items()}
    return {
        "seconds_a_step": {**working, **mean},
        "working": dict(working),
        "resting": resting,
        "resting_as_measured": measured,
    }


def policy_of(name: str) -> str:
    """Of "recipe/policy"."""
    return name.partition("/")[2]


def random_of(name: str) -> str:
    """The same recipe with `random`."""
    return f"{name.partition('/')[0]}/random"


def trainers_of(desk: Desk, policies: Iterable[str], recipes: Iterable[str] = RECIPES) -> Trainers:
    """By "recipe/policy", each at its first step."""
    return {
        f"{recipe}/{policy}": trainer_of(
            recipe, desk.train, {**desk.network, **POLICIES[policy]}, desk.device, desk.side
        )
        for recipe in recipes
        for policy in policies
    }


def paces_of(path: Path, desk: Desk, again: bool) -> dict[str, Any]:
    """What `paced` found of every recipe and policy, from a file, or measured into it once (or `again`)."""
    if again or not path.exists():
        write_paces(path, paced(trainers_of(desk, POLICIES)))
    return dict(json.loads(path.read_text()))


def pace_resting(path: Path, desk: Desk) -> None:
    """Measure the steps in which policies rest again; all else in the file of paces stays."""
    known = json.loads(path.read_text())
    write_paces(path, known | with_resting(known["working"], trainers_of(desk, ("random", *RESTING))))


def pace_more(path: Path, desk: Desk, policies: Sequence[str]) -> None:
    """Add the paces of further policies to the file, timed in turn with `random` and told by their ratio to it."""
    known = json.loads(path.read_text())
    measured = pace(trainers_of(desk, ("random", *policies)), 40)
    seconds = measured["seconds_a_step"]
    more = {
        name: known["working"][random_of(name)] * seconds[name] / seconds[random_of(name)]
        for name in seconds
        if policy_of(name) in policies
    }
    both = {key: {**known[key], **more} for key in ("seconds_a_step", "working")}
    write_paces(path, known | both | {"more_as_measured": measured})


def measure_costs(path: Path, desk: Desk) -> None:
    """What steps that choose or learn cost, of one recipe after the other: the fewer networks, the quieter."""
    found = [costs_of(trainers_of(desk, ("random", *COUNTED), [recipe])) for recipe in RECIPES]
    both = {key: {name: x for one in found for name, x in one[key].items()} for key in ("working", "expected_cost")}
    write_paces(path, found[-1] | both)


def write_paces(path: Path, found: Mapping[str, Any]) -> None:
    """Into their file."""
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {path}", flush=True)


# --- texts ------------------------------------------------------------------------------------------------------------


def read(results: Path) -> list[dict[str, Any]]:
    """All runs that are done."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


Group = tuple[str, int, float, str]


def grouped(runs: Sequence[dict[str, Any]]) -> dict[Group, dict[str, list[dict[str, Any]]]]:
    """(recipe, images, minutes, what is the same) -> policy -> its seeds; `random` is in both kinds of groups."""
    found: dict[Group, dict[str, list[dict[str, Any]]]] = {}
    for one in runs:
        key = one["recipe"], one["images"], one["minutes"], one["same"]
        found.setdefault(key, {}).setdefault(one["policy"], []).append(one)
    for (recipe, images, minutes, same), by_policy in found.items():
        timed = found.get((recipe, images, minutes, "minutes"), {})
        if same == "steps" and "random" in timed:
            by_policy["random"] = timed["random"]
    return dict(sorted(found.items(), key=lambda one: (RECIPES.index(one[0][0]), -one[0][1], *one[0][2:])))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row a policy: mean time of a step, steps, k-NN and logistic probe with paired differences to `random`."""
    lines = [
        "| recipe | images | the same | policy | time of a step | steps | seeds "
        "| k-NN, % | to `random` | logistic, % | to `random` |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (recipe, images, minutes, same), by_policy in grouped(runs).items():
        for policy in (name for name in POLICIES if name in by_policy):
            some = by_policy[policy]
            cells = [recipe, f"{images:,}", budget_of(same, minutes), f"`{policy}`", f"{some[0]['time_of_a_step']:.2f}"]
            cells += [str(some[0]["steps"]), str(len(some))]
            for protocol in ("knn", "logistic"):
                cells += [spread(some, protocol, "run"), paired(some, by_policy.get("random", []), protocol)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def budget_of(same: str, minutes: float) -> str:
    """What all policies of a group have alike."""
    return f"{minutes:g} minutes" if same == "minutes" else f"steps of {minutes:g} minutes"


def paired(some: Sequence[dict[str, Any]], random: Sequence[dict[str, Any]], protocol: str) -> str:
    """Mean difference to `random` of the same seed, lowest to highest; empty for `random` itself."""
    return "" if some[0]["policy"] == "random" else with_range(gains(some, random, protocol))


def gains(some: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], protocol: str) -> list[float]:
    """Differences in accuracy to others of the same seed, of the seeds that both have."""
    yardstick = {one["seed"]: top1(one, protocol) for one in others}
    return [top1(one, protocol) - yardstick[one["seed"]] for one in some if one["seed"] in yardstick]


def with_range(differences: Sequence[float]) -> str:
    """Their mean, and lowest to highest where there are several; empty where there is none."""
    if not differences:
        return ""
    mean = f"{statistics.mean(differences):+.1f}"
    return mean if len(differences) == 1 else f"{mean} ({min(differences):+.1f} to {max(differences):+.1f})"


def top1(run: Mapping[str, Any], protocol: str) -> float:
    """Accuracy on the test images, percent."""
    return float(run["test"][protocol]["metrics"]["run"]["top1"]["value"])


def analytic_cost(counted: Mapping[str, float], recipe: str, policy: str) -> float:
    """Forward passes of a step over those of `random` (spec view_policies 1.5, 2.8): one anchor where it learns.

    Our own count of `learned` has 1 / FLOOR_OF of a forward more, for what crops alone lose; no bound may rest on that.
    """
    crops = (counted[f"{recipe}/learned"] - 1) / (FLOOR_OF + 1) if "learned" in policy else 0.0
    return counted[f"{recipe}/{policy}"] - crops


def cost_text(costs: Mapping[str, Any]) -> str:
    """Time of a step that chooses or learns over that with `random`: measured, analytic, by our count, the verdict."""
    lines = ["| recipe | policy | measured | analytic | our count | |", "|---|---|---|---|---|---|"]
    beyond = []
    for recipe in RECIPES:
        for policy in COUNTED:
            name = f"{recipe}/{policy}"
            measured = costs["working"][name] / costs["working"][f"{recipe}/random"]
            analytic = analytic_cost(costs["expected_cost"], recipe, policy)
            over = measured / analytic - 1
            verdict = "no more than 5 % above" if over <= ALLOWED else f"{100 * over:.0f} % above: **too much**"
            beyond += [f"{recipe} `{policy}`"] if over > ALLOWED else []
            numbers = measured, analytic, costs["expected_cost"][name]
            lines.append(f"| {recipe} | `{policy}` | {' | '.join(f'{x:.2f}' for x in numbers)} | {verdict} |")
    lines += [
        "",
        "Analytic: forward passes alone, a backward one as two; four candidates a step for `hard`, one forward of",
        "clean images for `learned`. Measured time may be 5 % above it. Our count adds what `learned` forwards beside",
        f"them: the plain crops of every {FLOOR_OF}th image. Neither counts drawing and applying operations.",
    ]
    return "\n".join([*lines, f"The bound **does not hold** for {', '.join(beyond)}."] if beyond else lines)


def slower(runs: Sequence[dict[str, Any]]) -> str:
    """How long runs took by the clock."""
    times = [one["curve"][-1]["elapsed"] / 60 / one["minutes"] for one in runs if one["same"] == "minutes"]
    return f"By the clock the runs took {min(times):.1f} to {max(times):.1f} times their minutes."


def cheap_choices(runs: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence a recipe: how cheap scores chose in the runs, whose networks learned from what they chose."""
    lines = []
    for recipe in RECIPES:
        some = [one["choosing"] for one in runs if (one["recipe"], one["policy"]) == (recipe, "hard-half")]
        if some:
            alike, kept = (statistics.mean(one[name] for one in some) for name in ("fidelity", "kept"))
            lines += [
                f"In the runs of `hard-half` with {recipe}, scores at half size chose the pair that full ones would in",
                f"{alike:.0%} of cases, and kept {kept:.2f} of the hardness of six full candidates.",
            ]
    return lines


def runs_text(runs: Sequence[dict[str, Any]], costs: Mapping[str, Any] | None, planned: set[str], picture: str) -> str:
    """The table of the runs, what is missing of it, the cost of a step, and the picture."""
    done = {Run(*(one[field] for field in Run._fields)).name for one in runs}
    missing = planned - done
    lines = []
    if missing == planned:
        lines += [
            "It **has not been run yet**: it takes about six hours of two cores. Until then there is the probe below.",
            "",
        ]
    elif missing:
        lines += [f"**Not finished yet**: {len(planned) - len(missing)} of {len(planned)} runs are done.", ""]
    if runs:
        lines += [
            table(runs),
            "",
            "Time of a step: the mean over a run, over that of `random`. Accuracy is on the test images: the mean over",
            "seeds (lowest to highest), or one run with its 95 % interval. Differences are between runs of one seed.",
        ]
    if any(one["same"] == "minutes" for one in runs):
        lines += [
            "",
            f"![k-NN accuracy over minutes, a line a policy]({picture})",
            "",
            "While they train: k-NN on training images over minutes of the budget, which are steps times the pace of a",
            f"quiet machine; means over seeds. {slower(runs)}",
            *cheap_choices(runs),
        ]
    if costs is not None:
        lines += [
            "",
            "Steps that choose or learn, timed in turn on a quiet machine, over those of `random` (the column above is",
            "the earlier and longer pacing of all policies together that the budgets come from):",
            "",
            cost_text(costs),
        ]
    return "\n".join(lines).strip()


def verdicts(runs: Sequence[dict[str, Any]], planned: Sequence[Run]) -> str:
    """A row an expectation and group of planned runs: the difference found in k-NN, and whether it is as expected."""
    lines = [
        "| expected of k-NN | the same | recipe | images | holds above | found | seeds | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    done = grouped(runs)
    for one in EXPECTED:
        concerned = (run for run in planned if (run.policy, run.same) == (one.policy, one.same))
        for recipe, images, minutes in dict.fromkeys((run.recipe, run.images, run.minutes) for run in concerned):
            by_policy = done.get((recipe, images, minutes, one.same), {})
            found = gains(by_policy.get(one.policy, []), by_policy.get(one.over, []), "knn")
            cells = [f"`{one.policy}` {one.words} `{one.over}`", budget_of(one.same, minutes), recipe, f"{images:,}"]
            seeds = str(len(found)) if len(found) >= SEEDS else f"{len(found)} of {SEEDS}"
            cells += [f"{one.least:+g}", with_range(found), seeds, verdict(found, one.least)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(differences: Sequence[float], least: float) -> str:
    """Whether their mean is more than `least`, if there are enough."""
    if len(differences) < SEEDS:
        return "not enough seeds yet"
    return "holds" if statistics.mean(differences) > least else "**does not hold**"


def swept(runs: Sequence[dict[str, Any]]) -> dict[Group, dict[str, list[dict[str, Any]]]]:
    """The groups in which learned views have another strength than the default too."""
    return {key: by_policy for key, by_policy in grouped(runs).items() if by_policy.keys() & (SWEEP.keys() - POLICIES)}


def sweep_text(runs: Sequence[dict[str, Any]], picture: str) -> str:
    """A row a retention: k-NN and logistic probe."""
    found = swept(runs)
    if not found:
        return "The sweep of `views.retention` (`python benchmarks/views.py --sweep`) **has not been run yet**."
    lines = ["| `views.retention` | the same | seeds | k-NN, % | logistic, % |", "|---|---|---|---|---|"]
    for (_, _, minutes, _), by_policy in found.items():
        for policy in (name for name in SWEEP if name in by_policy):
            seeds = by_policy[policy]
            cells = [f"{SWEEP[policy]:g}", f"{minutes:g} minutes", str(len(seeds))]
            cells += [spread(seeds, protocol, "run") for protocol in ("knn", "logistic")]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"![Accuracy over the strength of learned views]({picture})"]
    return "\n".join(lines)


def write_page(desk: Desk, arguments: argparse.Namespace, costs_at: Path, points: Path) -> None:
    """All that docs/views.md has of this benchmark, from the results there are."""
    everything, known = read(desk.results), frontiers(points)
    runs = [one for one in everything if one["policy"] in POLICIES]
    costs = json.loads(costs_at.read_text()) if costs_at.exists() else None
    pictures = {name: f"views-{name}{desk.ending}.png" for name in ("frontier", "time", "retention")}
    beside = desk.page.parent
    budgets = {one["minutes"] for one in runs} or {arguments.minutes}
    large = desk.device == "cuda"
    planned = [run for minutes in sorted(budgets) for run in all_runs(arguments.seeds, minutes, large)]
    if known:
        draw_frontier(known, beside / pictures["frontier"])
    if timed := [one for one in runs if one["same"] == "minutes"]:
        draw_time(grouped(timed), tuple(POLICIES), beside / pictures["time"])
    if strengths := swept(everything):
        draw_sweep(strengths, SWEEP, beside / pictures["retention"])
    desk.write("frontier", "views.py", frontier_text(known, pictures["frontier"]))
    desk.write("runs", "views.py", runs_text(runs, costs, {run.name for run in planned}, pictures["time"]))
    desk.write("verdicts", "views.py", verdicts(runs, planned))
    desk.write("sweep", "views.py", sweep_text(everything, pictures["retention"]))


# --- the command ------------------------------------------------------------------------------------------------------


def cases(desk: Desk, arguments: argparse.Namespace, seconds: Mapping[str, float]) -> Iterator[Case]:
    """The runs on the desk's images whose name holds what was asked for."""
    large = desk.side == imagenette.SIDE
    planned = sweep_runs(arguments.seeds, arguments.minutes)
    if not arguments.sweep:
        planned = all_runs(arguments.seeds, arguments.minutes, large)
    for run in planned:
        if arguments.only in run.name and large == (run.images == imagenette.IMAGES):
            steps = steps_of(run, seconds)
            settings = desk.settings(train__steps=steps, train__seed=run.seed) | run.settings
            policy = "learned" if run.policy in SWEEP else run.policy
            factor = seconds[f"{run.recipe}/{policy}"] / seconds[f"{run.recipe}/random"]
            about = run._asdict() | {"steps": steps, "time_of_a_step": factor}
            yield Case(run.name, run.recipe, run.images, settings, about)


def main() -> None:
    parser = command(__doc__, "views.md", minutes=4)
    parser.add_argument("--pace-resting", action="store_true", help="only measure the steps in which policies rest")
    parser.add_argument(
        "--pace-more", nargs="+", choices=POLICIES, metavar="POLICY", help="only add the paces of these"
    )
    parser.add_argument("--cost", action="store_true", help="only measure what choosing and learning cost a step")
    parser.add_argument("--only", default="", help="do only runs whose name contains this")
    parser.add_argument("--frontier", action="store_true", help="only measure cost against kept hardness")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), help="of the frontier")
    parser.add_argument("--steps", type=int, default=200, help="steps before the frontier is measured")
    parser.add_argument("--sweep", action="store_true", help="only the runs of learned views by their strength")
    arguments = parser.parse_args()
    desk = Desk("views", arguments)
    paced_at, costs_at, points = (
        arguments.results / f"views_{kind}{desk.ending}.json" for kind in ("pace", "cost", "frontier")
    )
    if arguments.cost:
        measure_costs(costs_at, desk)
    elif arguments.frontier:
        measure_frontier(desk, arguments.objectives, arguments.steps, points)
    elif not arguments.table:
        desks = {paced_at: desk}
        if desk.device == "cuda":
            desks[arguments.results / f"views_pace_imagenette{desk.ending}.json"] = imagenette.beside(desk, arguments)
        only_paces = arguments.pace or arguments.pace_resting or arguments.pace_more
        for path, at in desks.items():
            seconds = paces_of(path, at, arguments.pace)["seconds_a_step"]
            if arguments.pace_resting:
                pace_resting(path, at)
            if arguments.pace_more:
                pace_more(path, at, arguments.pace_more)
            if not only_paces:
                at.run(cases(at, arguments, seconds))
        if not (only_paces or arguments.sweep or arguments.only):
            missing = [name for name in arguments.objectives if name not in frontiers(points)]
            measure_frontier(desk, missing, arguments.steps, points)
    write_page(desk, arguments, costs_at, points)


if __name__ == "__main__":
    main()
