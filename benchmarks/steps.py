"""How long a whole training step takes, against loops as others write them: ratios, in turns in one process.

    python benchmarks/steps.py            # about 15 minutes of one core
    python benchmarks/steps.py --table    # only write docs/speed.md anew

SimCLR on CIFAR-10's images, a ViT of width 192, depth 4, patch 8, batches of 256, AdamW, a projector of the same
widths. A step is all that a batch takes: views of decoded images, forward, loss, backward, update. One thread and the
processor's time of the process, so that loader workers, which do the same work beside, change no ratio. In three
settings: the same arithmetic (float32) for all; each as it comes (ours bf16 with plain attention where the processor
has it, theirs float32); and bf16 for all (theirs by autocast, which their users can switch on). Peers:

- lightly: its transform, projection head and loss, in the loop of its SimCLR tutorial;
- torchvision: a loop in the style of solo-learn, its transforms on Pillow images, one forward a view, and a linear
  classifier beside on features that are cut off.

lightly is installed into runs/benchmarks/peers, as `benchmarks/speed.py` does. Writes benchmarks/results/steps.json and
the table of docs/speed.md.
"""

from __future__ import annotations

import importlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from belvedere.pretrain.allocator import freed_memory_kept
from cifar_runs import NETWORKS, machine, places, subset, trainer_of, unpack, write_between
from speed import install_peers

BATCH, IMAGES, HIDDEN, TEMPERATURE = 256, 5000, 1024, 0.2
ROUNDS, WARM = 9, 1
# Our precision, and whether theirs is bf16.
SETTINGS = {"float32 for all": ("float32", False), "each as it comes": ("auto", False), "bf16 for all": ("bf16", True)}
# What the page calls them where the file's name says too little.
ROWS = {"float32 for all": "float32, each its own head"}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
OURS = "belvedere"
# A function that does one step.
Stepper = Callable[[], object]


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(train: Path, precision: str) -> Stepper:
    """A run's own trainer and feed."""
    settings = {
        **NETWORKS["cpu"],
        "train.batch": BATCH,
        "train.precision": precision,
        "backbone.freeze_patch": False,
        "objective.hidden": HIDDEN,
        "objective.temperature": TEMPERATURE,
    }
    trainer, feed = trainer_of("simclr", train, settings, "cpu")
    steps = enumerate(feed.stream(0, 1000))

    def step() -> None:
        number, batches = next(steps)
        trainer.step(number, batches)

    return step


# --- the others -------------------------------------------------------------------------------------------------------


class Pictures(Dataset[tuple[Any, int]]):
    """Decoded images and what is done to them."""

    def __init__(self, pixels: np.ndarray[Any, Any], transform: Callable[[Image.Image], Any]) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.pixels[i])), i % 10


def vit() -> nn.Module:
    """The same transformer, as timm makes it."""
    network = NETWORKS["cpu"]
    shape = {"patch_size": network["backbone.patch"], "embed_dim": network["backbone.width"], "num_heads": 3}
    return timm.models.VisionTransformer(img_size=32, depth=network["backbone.depth"], num_classes=0, **shape)


def _arithmetic(bf16: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16)


def _batches(pixels: np.ndarray[Any, Any], transform: Callable[[Image.Image], Any]) -> Iterator[Any]:
    loader = DataLoader(Pictures(pixels, transform), BATCH, shuffle=True, drop_last=True)
    while True:
        yield from loader


def lightly_loop(pixels: np.ndarray[Any, Any], bf16: bool = False) -> Stepper:
    """lightly's SimCLR: its transform, head and loss."""
    transform = importlib.import_module("lightly.transforms").SimCLRTransform(
        input_size=32, gaussian_blur=0.0, normalize={"mean": list(MEAN), "std": list(STD)}
    )
    head = importlib.import_module("lightly.models.modules").SimCLRProjectionHead(192, HIDDEN, 128)
    model = nn.Sequential(vit(), head)
    loss_of = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    batches = _batches(pixels, transform)

    def step() -> float:
        (x0, x1), _ = next(batches)
        with _arithmetic(bf16):
            loss = loss_of(model(x0), model(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def torchvision_loop(pixels: np.ndarray[Any, Any], bf16: bool = False) -> Stepper:
    """A loop in the style of solo-learn."""
    one = transforms.Compose(
        [
            transforms.RandomResizedCrop(32, (0.08, 1.0), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    encoder, online = vit(), nn.Linear(192, 10)
    projector = nn.Sequential(nn.Linear(192, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 128))
    parameters = [*encoder.parameters(), *projector.parameters(), *online.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.1)
    batches = _batches(pixels, lambda image: (one(image), one(image)))

    def step() -> float:
        views, labels = next(batches)
        with _arithmetic(bf16):
            features = [encoder(view) for view in views]
            loss = _nt_xent(*(projector(feature) for feature in features))
            loss = loss + sum(F.cross_entropy(online(feature.detach()), labels) for feature in features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def _nt_xent(a: Tensor, b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))


# --- time -------------------------------------------------------------------------------------------------------------


def pixels_of(train: Path) -> np.ndarray[Any, Any]:
    """All images of a folder, decoded."""
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in sorted(train.rglob("*.png"))])


def measure(steppers: dict[str, Stepper]) -> dict[str, list[float]]:
    """Seconds of the processor for a step of each, a round in turns, after one that nobody counts.

    Our runs keep the memory that they free; so does each turn of ours here, and gives it back for the others.
    """
    found: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(WARM + ROUNDS):
        for name, step in steppers.items():
            with freed_memory_kept() if name == OURS else nullcontext():
                step()
                began = time.process_time()
                step()
                seconds = time.process_time() - began
            if turn >= WARM:
                found[name].append(seconds)
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: how many times longer each peer's step takes, by setting; median (lowest to highest)."""
    rows = ["| a step of SimCLR | lightly | torchvision, as solo-learn |", "| --- | --- | --- |"]
    for setting, times in found["seconds"].items():
        cells = []
        for peer in ("lightly", "torchvision"):
            ratios = [theirs / own for theirs, own in zip(times[peer], times[OURS], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows.append(f"| {ROWS.get(setting, setting)} | {' | '.join(cells)} |")
    return "\n".join(rows)


def main() -> None:
    arguments = places(__doc__, "speed.md").parse_args()
    path = arguments.results / "steps.json"
    if not arguments.table:
        torch.set_num_threads(1)
        install_peers(arguments.work / "peers")
        train = subset(unpack(arguments.archives, arguments.work)[0], IMAGES)
        pixels = pixels_of(train)
        seconds = {}
        for setting, (precision, bf16) in SETTINGS.items():
            peers = {"lightly": lightly_loop(pixels, bf16), "torchvision": torchvision_loop(pixels, bf16)}
            seconds[setting] = measure({OURS: ours(train, precision), **peers})
        about = {"machine": machine(), "load": os.getloadavg(), "threads": 1, "rounds": ROUNDS, "batch": BATCH}
        path.write_text(json.dumps({**about, "seconds": seconds}, indent=1) + "\n")
        print(f"written: {path}", flush=True)
    write_between(arguments.page, "steps", "steps.py", table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
