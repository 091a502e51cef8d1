"""Every objective on CIFAR-10 after the same wall-clock: k-NN and logistic probe beside raw pixels and no training.

    python benchmarks/cifar10.py --pace                        # seconds a step of every recipe, on a quiet machine
    python benchmarks/cifar10.py                               # five objectives x 5,000 and 20,000 images x 3 seeds
    python benchmarks/cifar10.py --recipes dino --minutes 20   # one that needs longer
    python benchmarks/cifar10.py --table                       # only write docs/benchmarks.md anew

Trains on images in ../shared/data without labels, with what each recipe derives from the number of images and the
budget. The wall-clock becomes a number of steps by the pace that was measured once, all recipes in turn, so that a run
is the same whatever else the machine does meanwhile. Choices (k, the probe's C) are made on a part of train; the 10,000 test images are read once, at the end of a
run. Killed, it goes on where it was when the same command is given again; a finished run is not done twice. Writes one
JSON a run to benchmarks/results/cifar10 and the table of docs/benchmarks.md. On a CUDA device the network is a ViT-S
with patch 4, and the JSON lies in benchmarks/results/cifar10_cuda.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch

import belvedere
from belvedere import config
from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.compose import device_of, facts_of, make_fabric, make_feed, make_trainer, settle

ROOT = Path(__file__).parents[1]
RECIPES = ("simclr", "simsiam", "mocov3", "dino", "ibot")
NETWORKS = {
    "cpu": {"backbone.name": "vit_tiny", "backbone.patch": 8, "backbone.width": 192, "backbone.depth": 4},
    "cuda": {"backbone.name": "vit_small", "backbone.patch": 4},
}


def unpack(archives: Path, folder: Path) -> tuple[Path, Path]:
    """Unpack the training and test images, once; returns their folders."""
    for name in ("cifar10_train20k.tar.gz", "cifar10_test10k.tar.gz"):
        done = folder / f"{name}.unpacked"
        if not done.exists():
            with tarfile.open(archives / name) as archive:
                archive.extractall(folder, filter="data")
            done.touch()
    return folder / "cifar10" / "train", folder / "cifar10" / "test"


def subset(train: Path, images: int) -> Path:
    """A folder with the first files by name of every class, `images` in all."""
    classes = sorted(folder for folder in train.iterdir() if folder.is_dir())
    files = {folder.name: sorted(folder.iterdir()) for folder in classes}
    if images >= sum(map(len, files.values())):
        return train
    chosen = train.parent / f"train_{images}"
    for name, found in files.items():
        (chosen / name).mkdir(parents=True, exist_ok=True)
        for file in found[: images // len(files)]:
            shutil.copyfile(file, chosen / name / file.name)
    return chosen


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "commit": commit,
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu.partition(": ")[2] or platform.processor(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in ("belvedere", "torch", "timm", "numpy", "lightning-fabric")},
    }


def curve(run: Path) -> list[dict[str, Any]]:
    """Online k-NN and health of every look: step, seconds since the start, values."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {"step": line["step"], "elapsed": line["elapsed"], "health": line["health"], **line["look"]}
        for line in lines
        if "look" in line
    ]


def pace(recipes: Sequence[str], train: Path, network: dict[str, Any], device: str, rounds: int = 20) -> dict[str, Any]:
    """Seconds a step of every recipe: the shortest of many, measured in turn, since noise only ever adds."""
    found, trainers = dict[str, float](), {}
    canvases = open_canvases(find_images(train), 32, progress=False)
    for recipe in recipes:
        resolved = config.resolve(recipe, {**network, "train.steps": 1000})
        settled = settle(resolved, facts_of(canvases, device))[0].config
        fabric = make_fabric(device, str(settled.train.precision))
        feed = make_feed(settled, canvases, fabric)
        trainers[recipe] = make_trainer(settled, canvases, fabric), feed.stream(0, 1000)
    for step in range(rounds + 3):
        for recipe, (trainer, stream) in trainers.items():
            micro_batches = next(stream)
            began = time.perf_counter()
            trainer.step(step, micro_batches)
            if step >= 3:  # the first ones warm up
                found[recipe] = min(found.get(recipe, math.inf), time.perf_counter() - began)
    return {"seconds_a_step": found, "threads": torch.get_num_threads(), "rounds": rounds, "machine": machine()}


def steps_in(minutes: float, seconds_a_step: float) -> int:
    """Steps that fit into a budget; 8 % of it go to looks, checkpoints and the report."""
    return round(0.92 * 60 * minutes / seconds_a_step)


def measure(
    recipe: str, train: Path, test: Path, run: Path, settings: dict[str, Any], device: str, floors: Sequence[str]
) -> dict[str, Any]:
    """One run and its evaluation on the test images."""
    about = machine()
    belvedere.pretrain(train, recipe, out=run, resume=run.exists(), settings=settings, device=device)
    results = belvedere.evaluate(run, train, test=test, protocols=("knn", "logistic"), device=device, floors=floors)
    return {
        "recipe": recipe,
        "machine": about,
        "test": {result.protocol: result.to_json() for result in results},
        "curve": curve(run),
        "settings": config.flatten(config.from_yaml(run / "config.yaml").config),
    }


def passed(found: dict[str, Any], floor: str) -> float | None:
    """Minutes of training after which the online k-NN was above a floor for good; None when it was not at the end."""
    looks = [look for look in found["curve"] if "knn" in look]
    level = looks[0][f"knn_{floor}"]
    since = None
    for look in looks:
        if look["knn"] <= level or look["step"] == 0:
            since = None
        elif since is None:
            since = look["elapsed"] / 60
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
        cells = [_spread(runs, protocol, "run") for protocol in ("knn", "logistic")]
        when = [_when(runs, floor) for floor in ("untrained", "pixels")]
        cells = [RECIPES[place], f"{images:,}", f"{minutes:g}", str(len(runs)), *cells, f"{steps:.0f}", *when]
        rows.append(f"| {' | '.join(cells)} |")
    for images in sorted({one["images"] for one in found}):
        same = [one for one in found if one["images"] == images]
        for floor in ("pixels", "untrained"):
            known = [one for one in same if floor in one["test"]["knn"]["metrics"]]
            if known:
                cells = [_spread(known, protocol, floor) for protocol in ("knn", "logistic")]
                name = {"pixels": "raw pixels", "untrained": "untrained network"}[floor]
                rows.append(f"| {name} | {images:,} | | {len(known)} | {' | '.join(cells)} | | | |")
    return "\n".join(rows)


def _spread(runs: list[dict[str, Any]], protocol: str, encoder: str) -> str:
    """Mean over runs, the lowest and highest of them, and for a single one its bootstrap interval."""
    numbers = [one["test"][protocol]["metrics"][encoder]["top1"] for one in runs]
    values = [number["value"] for number in numbers]
    if len(set(values)) == 1:
        return f"{values[0]:.1f} [{numbers[0]['low']:.1f}, {numbers[0]['high']:.1f}]"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def _when(runs: list[dict[str, Any]], floor: str) -> str:
    minutes = [passed(one, floor) for one in runs]
    known = [m for m in minutes if m is not None]
    if len(known) < len(minutes):
        return "**never**" if not known else f"in {len(known)} of {len(minutes)} runs"
    return f"{statistics.mean(known):.1f} min"


def write_page(results: Path, page: Path) -> None:
    """Put the table between its marks on the page."""
    begin, end = f"<!-- {results.name}, written by benchmarks/cifar10.py -->", f"<!-- end of {results.name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n{table(results)}\n{end}{after}", encoding="utf-8")
    print(f"written: {page}")


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
        known.write_text(json.dumps(pace(RECIPES, train, network, device), indent=1) + "\n")
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
    write_page(results, arguments.page)


if __name__ == "__main__":
    main()
