"""Every objective on CIFAR-10 after the same wall-clock: k-NN and logistic probe beside raw pixels and no training.

    python benchmarks/cifar10.py --pace                        # seconds a step of every recipe, on a quiet machine
    python benchmarks/cifar10.py                               # five objectives x 5,000 and 20,000 images x 3 seeds
    python benchmarks/cifar10.py --recipes dino --minutes 20   # one that needs longer
    python benchmarks/cifar10.py --table                       # only write docs/benchmarks.md anew

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
from pathlib import Path
from typing import Any

from belvedere.pretrain.compose import device_of
from cifar_runs import NETWORKS, ROOT, measure, pace, spread, steps_in, subset, trainer_of, unpack, write_between

RECIPES = ("simclr", "simsiam", "mocov3", "dino", "ibot")


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


def table(results: Path) -> str:
    """Markdown tables of all results of a folder: a row an objective and data size, mean and spread over the seeds."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
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
                rows.append(f"| {name} | {images:,} | | {len(known)} | {' | '.join(cells)} | | | |")
    return "\n".join(rows)


def _when(runs: list[dict[str, Any]], floor: str) -> str:
    minutes = [passed(one, floor) for one in runs]
    known = [m for m in minutes if m is not None]
    if len(known) < len(minutes):
        return "**never**" if not known else f"in {len(known)} of {len(minutes)} runs"
    return f"{statistics.mean(known):.1f} min"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--images", nargs="+", type=int, default=[5000, 20000])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--archives", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--pace", action="store_true", help="only measure seconds a step of every recipe")
    parser.add_argument("--table", action="store_true", help="write docs/benchmarks.md from the results there are")
    arguments = parser.parse_args()
    device = device_of(arguments.device)
    results = arguments.results / ("cifar10" if device == "cpu" else f"cifar10_{device}")
    results.mkdir(parents=True, exist_ok=True)
    known = arguments.results / f"pace_{device}.json"
    train, test = unpack(arguments.archives, arguments.work)
    network = NETWORKS.get(device, NETWORKS["cpu"])
    if arguments.pace or not known.exists():
        trainers = {recipe: trainer_of(recipe, train, network, device) for recipe in RECIPES}
        known.write_text(json.dumps(pace(trainers), indent=1) + "\n")
        print(f"written: {known}", flush=True)
    seconds = json.loads(known.read_text())["seconds_a_step"]
    if not (arguments.table or arguments.pace):
        for seed in arguments.seeds:
            for images in arguments.images:
                for recipe in arguments.recipes:
                    name = f"{recipe}_{images}_{arguments.minutes:g}min_seed{seed}"
                    path = results / f"{name}.json"
                    if path.exists():
                        continue
                    settings = {**network, "train.steps": steps_in(arguments.minutes, seconds[recipe])}
                    settings |= {"train.seed": seed}
                    # Pixels are the same for all runs on the same images, and slow to fit: measured once.
                    floors = ("untrained",) if list(results.glob(f"*_{images}_*.json")) else ("untrained", "pixels")
                    run = arguments.work / device / name
                    found = measure(recipe, subset(train, images), test, run, settings, device, floors)
                    found |= {"images": images, "minutes": arguments.minutes, "seed": seed}
                    path.write_text(json.dumps(found, indent=1) + "\n")
                    print(f"written: {path}", flush=True)
    write_between(arguments.page, results.name, "cifar10.py", table(results))


if __name__ == "__main__":
    main()
