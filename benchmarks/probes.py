"""Short probes on CIFAR-10 for choosing settings: k-NN of a held-out part of the training images, never the test set.

    python benchmarks/probes.py --recipe simsiam --set train.lr=0.0012 --seeds 0 1
    python benchmarks/probes.py --recipe ibot --seeds 0 1 2    # as derived, to compare with

300 steps of 128 images with the network of `benchmarks/cifar10.py`, on the training images in ../shared/data less
2,000: the last 200 of every class. These 2,000 are classified by their neighbours among the rest, k chosen within the
rest, so that a setting can be chosen by the number without a look at the test images. Over so few steps differences
under a point say nothing with one seed. Adds a row a seed to benchmarks/results/probes.json; a row that is there is not
measured again: take it out to have it anew.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from belvedere import config
from belvedere.pretrain.compose import device_of
from cifar_runs import NETWORKS, ROOT, measure, subset, unpack_once

ARCHIVE = "cifar10_train20k.tar.gz"


def split(images: Path, held: int) -> tuple[Path, Path]:
    """Folders of a folder's images without the last `held` of them by name, as many of every class, and of those."""
    files = sorted(images.glob("*/*"))
    rest = subset(images, len(files) - held)
    chosen = images.parent / f"{images.name}_last_{held}"
    for file in files:
        if not (rest / file.parent.name / file.name).exists():
            (chosen / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, chosen / file.parent.name / file.name)
    return rest, chosen


def asked(arguments: argparse.Namespace, device: str, seed: int) -> dict[str, Any]:
    """What tells one probe from another: the fields that a row begins with."""
    return {
        "recipe": arguments.recipe,
        "set": arguments.set,
        "seed": seed,
        "steps": arguments.steps,
        "batch": arguments.batch,
        "images": arguments.images,
        "held": arguments.held,
        "device": device,
    }


def probe(row: dict[str, Any], images: Path, work: Path, floors: tuple[str, ...]) -> dict[str, Any]:
    """One run, and what its row says: k-NN in percent of it and of the floors, its looks, the machine."""
    rest, held = split(images, row["held"])
    run = work / "probes-runs" / "-".join([row["recipe"], *row["set"], f"seed{row['seed']}"]).replace("/", "_")
    shutil.rmtree(run, ignore_errors=True)
    budget = {"train.batch": row["batch"], "train.steps": row["steps"], "train.seed": row["seed"]}
    network = NETWORKS.get(row["device"], NETWORKS["cpu"])
    settings = {**network, **budget, **config.parse_overrides(row["set"])}
    found = measure(row["recipe"], rest, held, run, settings, row["device"], floors, protocols=("knn",))
    looks = [[look["step"], look["knn"], look["health"]] for look in found["curve"]]
    knn = {name: numbers["top1"] for name, numbers in found["test"]["knn"]["metrics"].items()}
    return {**row, "knn": knn, "looks": looks, "lr": found["settings"]["train.lr"], "machine": found["machine"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings other than the derived")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=20_000, help="training images, the held-out ones among them")
    parser.add_argument("--held", type=int, default=2_000)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--archives", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "probes.json")
    arguments = parser.parse_args()
    unpack_once(arguments.archives / ARCHIVE, arguments.work)
    images = subset(arguments.work / "cifar10" / "train", arguments.images)
    device = device_of(arguments.device)
    for seed in arguments.seeds:
        rows = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
        wanted = asked(arguments, device, seed)
        if not any({key: row[key] for key in wanted} == wanted for row in rows):
            # Pixels are the same for all probes on the same images.
            known = any((row["images"], row["held"]) == (arguments.images, arguments.held) for row in rows)
            floors = ("untrained",) if known else ("untrained", "pixels")
            rows.append(probe(wanted, images, arguments.work, floors))
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")
            print(f"seed {seed}: {rows[-1]['knn']['run']['value']:.1f} %; written: {arguments.out}", flush=True)


if __name__ == "__main__":
    main()
