"""Time to accuracy: every objective for 200 epochs of Imagenette with a ViT-S/16, on one accelerator.

    python benchmarks/imagenette.py                                   # five objectives, one seed, on a CUDA device
    python benchmarks/imagenette.py --recipes dino                    # one of them
    python benchmarks/imagenette.py --device cpu --tiny --epochs 2    # the same, tried on a CPU

Trains on the 6,500 images of 128 px in ../shared/data (a part of Imagenette at a lower resolution: numbers do not
compare with published ones) at 112 px with what each recipe derives, and evaluates on its 2,500 validation images by
k-NN and a linear probe, whose choices are made on a part of train. Killed, it goes on where it was when the same
command is given again; a finished run is not done twice. Writes one JSON a run to benchmarks/results/imagenette and the
table of docs/benchmarks.md; on another device than CUDA the JSON lies in imagenette_DEVICE and the table is printed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import belvedere
from belvedere.pretrain.compose import device_of
from cifar10 import RECIPES
from cifar_runs import Desk, curve, finish, machine, places, spread, unpack_once, write_between

# As many heads for all: MoCo v3's own ViT-S has 12.
NETWORK = {"backbone.name": "vit_small", "backbone.patch": 16, "backbone.heads": 6, "views.size": 112}
TINY = {"backbone.name": "vit_tiny", "backbone.patch": 16, "backbone.depth": 2, "views.size": 64}
PROTOCOLS = ("knn", "linear")
# All of the training images there are, and their short side.
IMAGES, SIDE = 6500, 128


def beside(desk: Desk, arguments: argparse.Namespace) -> Desk:
    """Another benchmark's desk with Imagenette on it, unpacked once."""
    unpack_once(arguments.archives / "imagenette128.tar", arguments.work)
    folder = arguments.work / "imagenette128"
    return desk.beside(folder / "train", folder / "val", SIDE, NETWORK)


def one_run(recipe: str, images: Path, run: Path, settings: dict[str, Any], device: str) -> dict[str, Any]:
    """Train, or go on, and evaluate."""
    about = machine()
    finish(recipe, images / "train", run, settings, device)
    looks = curve(run)
    results = belvedere.evaluate(run, images / "train", test=images / "val", protocols=PROTOCOLS, device=device)
    return {
        "recipe": recipe,
        "machine": about,
        "settings": settings,
        "minutes": looks[-1]["elapsed"] / 60,
        "test": {result.protocol: result.to_json() for result in results},
        "curve": looks,
    }


def table(results: Path) -> str:
    """Markdown: a row an objective."""
    rows = ["| objective | epochs | seeds | minutes | k-NN, % | linear, % |", "|---|---|---|---|---|---|"]
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    for recipe in RECIPES:
        runs = [one for one in found if one["recipe"] == recipe]
        if runs:
            epochs = "/".join(sorted({f"{one['settings']['train.epochs']:g}" for one in runs}))
            minutes = max(one["minutes"] for one in runs)
            cells = [
                recipe,
                epochs,
                str(len(runs)),
                f"{minutes:.1f}",
                *(spread(runs, name, "run") for name in PROTOCOLS),
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = places(__doc__, "benchmarks.md")
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES))
    parser.add_argument("--epochs", type=float, default=200)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tiny", action="store_true", help="a network of two blocks, for trying the script")
    arguments = parser.parse_args()
    device = device_of(arguments.device)
    name = "imagenette" if device == "cuda" else f"imagenette_{device}"
    results = arguments.results / name
    if not arguments.table:
        results.mkdir(parents=True, exist_ok=True)
        unpack_once(arguments.archives / "imagenette128.tar", arguments.work)
        for seed in arguments.seeds:
            for recipe in arguments.recipes:
                path = results / f"{recipe}_seed{seed}.json"
                if not path.exists():
                    network = TINY if arguments.tiny else NETWORK
                    settings = {**network, "train.epochs": arguments.epochs, "train.seed": seed}
                    run = arguments.work / f"{name}-runs" / path.stem
                    found = one_run(recipe, arguments.work / "imagenette128", run, settings, device)
                    path.write_text(json.dumps(found, indent=1) + "\n")
                    print(f"written: {path}", flush=True)
    if device == "cuda":
        write_between(arguments.page, name, "imagenette.py", table(results))
    else:
        print(table(results))


if __name__ == "__main__":
    main()
