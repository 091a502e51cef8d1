"""ViTGAN on CIFAR-10 at 32 px on a CPU: are the losses sane, and do samples come nearer to real images?

    python benchmarks/generate.py              # an encoder, then a generator: a quarter of an hour of one core
    python benchmarks/generate.py --table      # only write docs/generate.md anew

A small generator and discriminator on the first 20,000 training images, for a number of steps that is written here, far
from the published 800,000 steps of 64 images. Distances are measured in the features of an encoder that SimCLR trained
on the same images, 2,000 generated against 2,000 real ones. Killed, it goes on with the same command. Writes a JSON a
seed to benchmarks/results/generate, and the table and the picture of docs/generate.md.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

import belvedere
from belvedere.generate.page import SAMPLES, name_of
from belvedere.generate.settings import flatten, from_yaml
from cifar_runs import ROOT, finish, machine, places, unpack, write_between

ENCODER = {
    "backbone.name": "vit_tiny",
    "backbone.patch": 8,
    "backbone.width": 96,
    "backbone.depth": 3,
    "views.size": 32,
    "train.batch": 128,
    "train.steps": 300,
}
GENERATE: dict[str, Any] = {
    "generator.dim": 64,
    "generator.depth": 2,
    "generator.heads": 4,
    "generator.painter": 32,
    "discriminator.dim": 64,
    "discriminator.depth": 2,
    "discriminator.heads": 4,
    # A quarter of the tokens of the paper's 4 and 2.
    "discriminator.patch": 8,
    "discriminator.overlap": 4,
    "train.batch": 32,
    "train.steps": 1200,
    "train.warmup": 100,
    "train.checkpoint_minutes": 1.0,
    "samples.every": 100,
    "samples.measured": 2000,
}


def looks(run: Path) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """What every look found, with the mean losses of the steps before it; and the distances of real images."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found: list[dict[str, Any]] = []
    since: list[dict[str, Any]] = []
    for entry in log:
        if "look" in entry:
            means = {
                name: sum(one[name] for one in since) / len(since)
                for name in ("loss", "loss_generator", "r1", "consistency", "seconds")
                if since
            }
            found.append({"step": entry["step"], "health": entry["health"], **entry["look"], **means})
            since = []
        else:
            since.append(entry)
    floor = next(entry["floor"] for entry in log if "floor" in entry)
    return found, floor


def undisturbed(run: Path) -> float:
    """Minutes of all steps at the pace of the fastest tenth: noise only ever adds."""
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [entry["seconds"] for entry in log if "seconds" in entry]
    return round(statistics.quantiles(seconds, n=10)[0] * len(seconds) / 60, 1)


def measure(train: Path, work: Path, device: str, seed: int, shorter: dict[str, Any]) -> dict[str, Any]:
    """One run, and its looks."""
    about, encoder, run = machine(), work / "encoder", work / f"cifar10_seed{seed}"
    finish("simclr", train, encoder, ENCODER, device)
    settings = {**GENERATE, "train.seed": seed, "encoder": str(encoder), **shorter}
    belvedere.generate(train, out=run, settings=settings, device=device, resume=True)
    found, floor = looks(run)
    settled = flatten(from_yaml(run / "generator.yaml").settings)
    if found[-1]["step"] < settled["train.steps"]:
        raise SystemExit(f"{run}: was stopped before its end; the same command goes on with it")
    return {
        "machine": about,
        "encoder": ENCODER,
        "settings": settled | {"encoder": "encoder", "data": "cifar10/train"},
        "undisturbed_minutes": undisturbed(run),
        "floor": floor,
        "looks": found,
    }


def draw(run: Path, found: dict[str, Any], train: Path, path: Path) -> None:
    """The same sixteen images of the generator at five steps, and sixteen real ones."""
    shown = found["looks"][::3]
    figure = Figure(figsize=(2.2 * (len(shown) + 1), 2.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(shown) + 1)
    for axes, look in zip(panels, shown, strict=False):
        sheet = np.asarray(Image.open(run / SAMPLES / name_of(look["step"])))
        # Sixty-four of them, in rows of eight.
        tiles = sheet.reshape(8, sheet.shape[0] // 8, 8, sheet.shape[1] // 8, -1).transpose(0, 2, 1, 3, 4)
        _sheet(axes, tiles[:4, :4].reshape(16, *tiles.shape[2:]), f"after {look['step']:,} steps")
    files = sorted(train.rglob("*.png"))[:: len(list(train.rglob("*.png"))) // 16][:16]
    _sheet(panels[-1], np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files]), "real")
    figure.savefig(path, dpi=100)
    # A palette: a third of the file.
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def _sheet(axes: Axes, images: NDArray[np.uint8], title: str) -> None:
    """Sixteen images in a square, a little apart."""
    apart = np.pad(images, ((0, 0), *[(0, max(1, images.shape[1] // 16))] * 2, (0, 0)), constant_values=255)
    side, channels = apart.shape[1], apart.shape[-1]
    axes.imshow(
        apart.reshape(4, 4, side, side, channels).transpose(0, 2, 1, 3, 4).reshape(4 * side, 4 * side, channels)
    )
    axes.set_title(title, fontsize=10)
    axes.axis("off")


def table(results: Path) -> str:
    """Markdown: every third look of the first seed."""
    found = json.loads(min(results.glob("cifar10_seed*.json")).read_text())
    head = ["steps", "FID", "KID", "spread of samples", "loss of D (chance 1.39)", "loss of G", "R1", "health"]
    rows = [head, ["---"] * len(head)]
    for look in found["looks"][::3]:
        numbers = [f"{look['fid']:.1f}", f"{look['kid']:.2f}", f"{look['spread']:.2f}"]
        losses = [f"{look[name]:.3g}" if name in look else "" for name in ("loss", "loss_generator", "r1")]
        rows.append([f"{look['step']:,}", *numbers, *losses, look["health"]])
    # Adding 0 turns -0 into 0.
    floor = [f"{round(found['floor'][name], digits) + 0.0:.{digits}f}" for name, digits in (("fid", 1), ("kid", 2))]
    rows.append(["real images", *floor, "1", "", "", "", ""])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = places(__doc__, "generate.md")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "generate.png")
    parser.add_argument("--steps", type=int, help="fewer steps than are written here, for a trial")
    arguments = parser.parse_args()
    results = arguments.results / "generate"
    results.mkdir(parents=True, exist_ok=True)
    work = arguments.work / "generate-runs"
    shorter = {"train.steps": arguments.steps} if arguments.steps else {}
    for seed in [] if arguments.table else arguments.seeds:
        path = results / f"cifar10_seed{seed}.json"
        if not path.exists():
            train, _ = unpack(arguments.archives, arguments.work)
            found = measure(train, work, arguments.device, seed, shorter)
            path.write_text(json.dumps(found, indent=1) + "\n")
            draw(work / f"cifar10_seed{seed}", found, train, arguments.picture)
            print(f"written: {path}, {arguments.picture}", flush=True)
    write_between(arguments.page, "generate", "generate.py", table(results))


if __name__ == "__main__":
    main()
