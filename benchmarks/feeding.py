"""Where the time of a step goes, waiting for images above all, and how fast files are decoded by one core and by all.

    python benchmarks/feeding.py            # about 6 minutes on 2 cores that have nothing else to do
    python benchmarks/feeding.py --decoding # only the decoding anew; 4 minutes
    python benchmarks/feeding.py --table    # only write docs/speed.md anew

Steps are those of `belvedere.api.profile`: real ones of a recipe as it derives itself, from canvases that lie decoded
on disk, each composition in a process of its own, with the compiled renderer and with plain torch. CIFAR-10 at 32 px
goes with the benchmarks' small network, Imagenette at 96 px with a ViT-Ti of patch 16. Decoding is `open_canvases` of
JPEG files that lie in the system's cache, in turn by one core and by all (with threads, or processes where files are
many and small), the median of several. Writes benchmarks/results/feeding.json and two tables of docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from belvedere import api, config
from belvedere.images.canvases import open_canvases
from belvedere.images.parallel import are_many_small
from belvedere.images.source import find_images
from cifar_runs import NETWORKS, machine, places, unpack, unpack_once, write_between
from growth import tree

SECONDS = 15.0
RECIPES = ("simclr", "dino")
# Settings of each data set's runs.
DATA: dict[str, dict[str, Any]] = {
    "CIFAR-10, 32 px": {**NETWORKS["cpu"], "views.size": 32},
    "Imagenette, 96 px": {"backbone.name": "vit_tiny", "backbone.patch": 16, "views.size": 96},
}
RENDERERS = {"compiled": "1", "plain torch": "0"}  # as BELVEDERE_NATIVE has them
# Width and height of the files, short side of the canvases, and how many.
FILES = (((40, 40), 32, 4000), ((40, 40), 32, 12_000), ((160, 160), 128, 12_000), ((400, 300), 256, 800))
ROUNDS = 5


def images_of(data: str, arguments: argparse.Namespace) -> Path:
    """The training images of a data set, unpacked."""
    if data.startswith("CIFAR"):
        return unpack(arguments.archives, arguments.work)[0]
    unpack_once(arguments.archives / "imagenette128.tar", arguments.work)
    return Path(arguments.work) / "imagenette128" / "train"


def profiled(data: str, recipe: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the parts of a step, in this process."""
    resolved = config.resolve(recipe, DATA[data])
    found = api.profile(images_of(data, arguments), resolved, device="cpu", seconds=arguments.seconds)
    return {"batch": found.batch, "precision": found.precision, "steps": found.steps, "seconds": found.seconds}


def in_a_process(data: str, recipe: str, renderer: str) -> dict[str, Any]:
    """What `profiled` finds in a process of its own with that renderer."""
    words = [sys.executable, *sys.argv, "--one", data, recipe]
    environment = {**os.environ, "BELVEDERE_NATIVE": RENDERERS[renderer]}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    about = {"data": data, "recipe": recipe, "renderer": renderer}
    return about | dict(json.loads(done.stdout.splitlines()[-1]))


def decoded(size: tuple[int, int], side: int, images: int, work: Path) -> dict[str, Any]:
    """Images a second by the clock, by one core and by all: medians of several rounds in turn."""
    shutil.rmtree(work / "decoding", ignore_errors=True)
    source = find_images(tree(work / "decoding" / "files", images, size))
    rates: dict[int, list[float]] = {1: [], os.cpu_count() or 1: []}
    for turn, workers in product(range(ROUNDS + 1), rates):
        cache = work / "decoding" / "cache"
        began = time.perf_counter()
        open_canvases(source, side, cache_dir=cache, workers=workers, progress=False)
        seconds = time.perf_counter() - began
        shutil.rmtree(cache)
        if turn:  # the first ones warm up
            rates[workers].append(images / seconds)
    by = "processes" if are_many_small(source, range(images)) else "threads"
    shutil.rmtree(work / "decoding")
    return {
        "size": size,
        "side": side,
        "images": images,
        "by": by,
        "images_a_second": {str(workers): statistics.median(found) for workers, found in rates.items()},
    }


def steps_table(found: list[dict[str, Any]]) -> str:
    """A row a composition: what share of a step's time is waiting, and what share views."""
    rows = ["| images | recipe, batch | views by | a step | waiting for images | views |", "|---|---|---|---|---|---|"]
    for one in found:
        step = sum(one["seconds"].values())
        waiting, views = (one["seconds"][part] / step for part in ("waiting", "views"))
        cells = [one["data"], f"{one['recipe']}, {one['batch']}", one["renderer"], f"{1000 * step:,.0f} ms"]
        rows.append(f"| {' | '.join([*cells, f'{waiting:.2%}', f'{views:.1%}'])} |")
    return "\n".join(rows)


def decoding_table(found: list[dict[str, Any]]) -> str:
    """A row a size and number of files: images a second by one core and by all."""
    rows = ["| JPEG files | canvases of | one core | all cores | by | ratio |", "|---|---|---|---|---|---|"]
    for one in found:
        (_, alone), (_, all_) = one["images_a_second"].items()
        width, height = one["size"]
        cells = [f"{one['images']:,} of {width} x {height} px", f"{one['side']} px", f"{alone:,.0f} a second"]
        cells += [f"{all_:,.0f}", one["by"], f"{all_ / alone:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    parser = places(__doc__, "speed.md")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of steps that are measured of each")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--decoding", action="store_true", help="measure only how fast files are decoded")
    parser.add_argument("--one", nargs=2, metavar=("DATA", "RECIPE"), help="measure this in this process and print it")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        print(json.dumps(profiled(*arguments.one, arguments)))
        return
    path = arguments.results / "feeding.json"
    if not arguments.table:
        known = json.loads(path.read_text()) if arguments.decoding else {"machine": machine()}
        if not arguments.decoding:
            known["steps"] = [in_a_process(*one) for one in product(arguments.data, RECIPES, RENDERERS)]
        known["decoding"] = [decoded(*one, arguments.work) for one in FILES]
        path.write_text(json.dumps({**known, "machine_decoding": machine()}, indent=1) + "\n")
    found = json.loads(path.read_text())
    write_between(arguments.page, "feeding", "feeding.py", steps_table(found["steps"]))
    write_between(arguments.page, "decoding", "feeding.py", decoding_table(found["decoding"]))


if __name__ == "__main__":
    main()
