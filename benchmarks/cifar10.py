"""k-NN on CIFAR-10 after a fixed time of pretraining, beside raw pixels and the untrained network.

    python benchmarks/cifar10.py --minutes 20            # both recipes, one after the other
    python benchmarks/cifar10.py --recipes dino --minutes 5 --seed 1

Trains on the 20,000 training images in ../shared/data without labels, and reads the 10,000 test images once, at the end
of a run (k is chosen on a part of train). A run that is killed continues when the same command is given again. Writes
benchmarks/results/cifar10_<recipe>_<minutes>min_seed<seed>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import belvedere
from belvedere import config

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NETWORK = {"backbone.name": "vit_tiny", "backbone.patch": 8, "backbone.width": 192, "backbone.depth": 4}


def unpack(archives: Path, folder: Path) -> tuple[Path, Path]:
    """Unpack the training and test images, once; returns their folders."""
    for name in ("cifar10_train20k.tar.gz", "cifar10_test10k.tar.gz"):
        done = folder / f"{name}.unpacked"
        if not done.exists():
            with tarfile.open(archives / name) as archive:
                archive.extractall(folder, filter="data")
            done.touch()
    return folder / "cifar10" / "train", folder / "cifar10" / "test"


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


def measure(recipe: str, train: Path, test: Path, minutes: float, seed: int, work: Path) -> dict[str, Any]:
    """One run and its evaluation on the test images."""
    about = machine()
    run = work / f"{recipe}_{minutes:g}min_seed{seed}"
    settings = {**NETWORK, "train.minutes": minutes, "train.seed": seed}
    belvedere.pretrain(train, recipe, out=run, resume=run.exists(), settings=settings)
    result = belvedere.evaluate(run, train, test=test)[0]
    return {
        "recipe": recipe,
        "minutes": minutes,
        "seed": seed,
        "machine": about,
        "knn_test": result.to_json(),
        "curve": curve(run),
        "settings": config.flatten(config.from_yaml(run / "config.yaml").config),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=["simclr", "dino"])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--archives", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks")
    arguments = parser.parse_args()
    train, test = unpack(arguments.archives, arguments.work)
    RESULTS.mkdir(exist_ok=True)
    for recipe in arguments.recipes:
        found = measure(recipe, train, test, arguments.minutes, arguments.seed, arguments.work)
        path = RESULTS / f"cifar10_{recipe}_{arguments.minutes:g}min_seed{arguments.seed}.json"
        path.write_text(json.dumps(found, indent=1) + "\n")
        print(f"written: {path}")


if __name__ == "__main__":
    main()
