"""Every objective on CIFAR-10 after the same wall-clock: k-NN and logistic probe beside raw pixels and no training.

    python benchmarks/cifar10.py --pace                        # seconds a step of every recipe, on a quiet machine
    python benchmarks/cifar10.py                               # five objectives x 5,000 and 20,000 images x 3 seeds
    python benchmarks/cifar10.py --recipes dino --minutes 20   # one budget only
    python benchmarks/cifar10.py --table                       # only write docs/benchmarks.md anew

Every run has 5 minutes. An objective that is then not above raw pixels on so many images (k-NN on the test images, mean
of its seeds) is run for 20 minutes as well, and both rows are in the table. `--minutes` does that one budget instead.

Trains on images in ../shared/data without labels, with what each recipe derives from the number of images and the
budget. The wall-clock becomes a number of steps by the pace that was measured once, all recipes in turn, so that a
run is the same whatever else the machine does meanwhile. Choices (k, the probe's C) are made on a part of train; the
10,000 test images are read once, at the end of a run. Killed, it goes on where it was when the same command is given
again; a finished run is not done twice. Writes one JSON a run to benchmarks/results/cifar10 and the table of
docs/benchmarks.md. On a CUDA device the network is a ViT-S with patch 4, and the JSON lies in
benchmarks/results/cifar10_cuda.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from cifar_runs import Case, Desk, command, paces, spread, steps_in

RECIPES = ("simclr", "simsiam", "mocov3", "dino", "ibot")
# Minutes of every run, and of those that the first do not suffice for.
SHORT, LONG = 5, 20


def passed(found: dict[str, Any], floor: str) -> float | None:
    """Minutes of the budget after which the online k-NN was above a floor for good; None when it was not at the end."""
    looks = [look for look in found["curve"] if "knn" in look]
    level = looks[0][f"knn_{floor}"]
    since = None
    for look in looks:
        if look["knn"] <= level or look["step"] == 0:
            since = None
        elif since is None:
            since = found["minutes"] * look["step"] / found["settings"]["train.steps"]
    return since


def read(results: Path) -> list[dict[str, Any]]:
    """All results of a folder."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


def needs_longer(found: list[dict[str, Any]], recipe: str, images: int) -> bool:
    """Whether a recipe's short runs on so many images are not above raw pixels: test k-NN, mean over the seeds."""
    same = [one for one in found if one["images"] == images]
    short = [one for one in same if one["recipe"] == recipe and one["minutes"] == SHORT]
    pixels = next(one for one in same if "pixels" in one["test"]["knn"]["metrics"])
    return statistics.mean(_top1(one, "run") for one in short) <= _top1(pixels, "pixels")


def _top1(one: dict[str, Any], encoder: str) -> float:
    return float(one["test"]["knn"]["metrics"][encoder]["top1"]["value"])


def table(results: Path) -> str:
    """Markdown tables of all results of a folder: a row an objective and data size, mean and spread over the seeds."""
    found = read(results)
    rows = [
        "| objective | images | minutes | seeds | k-NN, % | logistic, % | steps | passes untrained | passes pixels |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault((one["images"], one["minutes"], RECIPES.index(one["recipe"])), []).append(one)
    for (images, minutes, place), runs in sorted(groups.items()):
        steps = statistics.mean(one["settings"]["train.steps"] for one in runs)
        cells = [spread(runs, protocol, "run") for protocol in ("knn", "logistic")]
        when = [_when(runs, floor) for floor in ("untrained", "pixels")]
        cells = [RECIPES[place], f"{images:,}", f"{minutes:g}", str(len(runs)), *cells, f"{steps:.0f}", *when]
        rows.append(f"| {' | '.join(cells)} |")
    for images in sorted({one["images"] for one in found}):
        same = [one for one in found if one["images"] == images]
        for floor in ("pixels", "untrained"):
            known = [one for one in same if floor in one["test"]["knn"]["metrics"]]
            if known:
                cells = [spread(known, protocol, floor) for protocol in ("knn", "logistic")]
                name = {"pixels": "raw pixels", "untrained": "untrained network"}[floor]
                networks = len({one["test"]["knn"]["metrics"][floor]["top1"]["value"] for one in known})
                rows.append(f"| {name} | {images:,} | | {networks} | {' | '.join(cells)} | | | |")
    return "\n".join(rows)


def _when(runs: list[dict[str, Any]], floor: str) -> str:
    minutes = [passed(one, floor) for one in runs]
    known = [m for m in minutes if m is not None]
    if len(known) < len(minutes):
        return "**never**" if not known else f"in {len(known)} of {len(minutes)} runs"
    return f"{statistics.mean(known):.1f} min"


def cases(
    desk: Desk, minutes: float, seeds: Sequence[int], pairs: Sequence[tuple[int, str]], seconds: dict[str, float]
) -> Iterator[Case]:
    """A budget's runs of all (images, recipe): seed by seed, so that an unfinished benchmark compares all of them."""
    for seed, (images, recipe) in product(seeds, pairs):
        # Pixels are the same for all runs on the same images, and slow to fit: measured once.
        known = bool(list(desk.results.glob(f"*_{images}_*.json")))
        yield Case(
            f"{recipe}_{images}_{minutes:g}min_seed{seed}",
            recipe,
            images,
            desk.settings(train__steps=steps_in(minutes, seconds[recipe]), train__seed=seed),
            {"minutes": minutes, "seed": seed},
            ("untrained",) if known else ("untrained", "pixels"),
        )


def run_all(desk: Desk, arguments: argparse.Namespace, seconds: dict[str, float]) -> None:
    """The runs of one budget, or the short ones and then the long ones of what they do not suffice for."""
    pairs = list(product(arguments.images, arguments.recipes))
    if arguments.minutes is not None:
        desk.run(cases(desk, arguments.minutes, arguments.seeds, pairs, seconds))
        return
    desk.run(cases(desk, SHORT, arguments.seeds, pairs, seconds))
    found = read(desk.results)
    longer = [(images, recipe) for images, recipe in pairs if needs_longer(found, recipe, images)]
    desk.run(cases(desk, LONG, arguments.seeds, longer, seconds))


def main() -> None:
    parser = command(__doc__, "benchmarks.md", minutes=None)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--images", nargs="+", type=int, default=[5000, 20000])
    arguments = parser.parse_args()
    desk = Desk("cifar10", arguments)
    compared = {recipe: (recipe, desk.network) for recipe in RECIPES}
    seconds = paces(arguments.results / f"pace_{desk.device}.json", compared, desk, arguments.pace)
    if not (arguments.table or arguments.pace):
        run_all(desk, arguments, seconds)
    desk.write("cifar10", "cifar10.py", table(desk.results))


if __name__ == "__main__":
    main()
