"""How long a whole training step takes, against loops as others write them: ratios, in turns in one process.

    python benchmarks/steps.py                  # on a CUDA device where there is one
    python benchmarks/steps.py --device cpu     # about 15 minutes of one core
    python benchmarks/steps.py --tiny           # tries what CUDA does on a CPU, two images at a time
    python benchmarks/steps.py --settings "bf16 for all"     # this one anew; the file keeps the others
    python benchmarks/steps.py --table          # only write docs/speed.md anew

SimCLR, batches of 256, AdamW, a projector of the same widths. A step is all that a batch takes: views of decoded
images, forward, loss, backward, update. In three settings: the same arithmetic (float32) for all; each as it comes
(ours bf16 where the device has it, on a CPU with plain attention, theirs float32); and bf16 for all (theirs by
autocast, which their users can switch on).

On a CPU: CIFAR-10's images, a ViT of width 192, depth 4, patch 8. One thread and the processor's time of the process,
so that loader workers, which do the same work beside, change no ratio.

On CUDA: photographs of Imagenette enlarged to 256 px, views of 224 px, ViT-S/16, the clock around a run of steps after
the device is done. The peers have a loader worker a core, 16 at most, and pinned memory; workers live only in their
turn, and the batches that they had ready before are not timed.

Ours is there once more with `train.compile=true`: on CUDA in bf16 for all, on a CPU in float32.

Peers:

- lightly: its transform, projection head and loss, in the loop of its SimCLR tutorial;
- torchvision: a loop in the style of solo-learn, its transforms on Pillow images, one forward a view, and a linear
  classifier beside on features that are cut off.

lightly is installed into runs/benchmarks/peers, as `benchmarks/speed.py` does; on CUDA, where it cannot be, its column
stays empty. Writes benchmarks/results/steps.json (steps_cuda.json) and the table of docs/speed.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision import transforms

from belvedere.errors import UserError
from belvedere.pretrain.allocator import freed_memory_kept
from belvedere.pretrain.compose import device_of
from cifar_runs import NETWORKS, machine, places, subset, trainer_of, unpack, unpack_once, write_between
from speed import install_peers, photographs

HIDDEN, TEMPERATURE = 1024, 0.2
# Our precision, and whether theirs is bf16.
SETTINGS = {"float32 for all": ("float32", False), "each as it comes": ("auto", False), "bf16 for all": ("bf16", True)}
# What the page calls them where the file's name says too little.
ROWS = {"float32 for all": "float32, each its own head"}
# Of CIFAR-10, and for photographs too: no time depends on them.
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
OURS, COMPILED = "belvedere", "belvedere, compiled"
PEERS = ("lightly", "torchvision")
# A function that does one step.
Stepper = Callable[[], object]


@dataclass(frozen=True)
class Setup:
    """What is compared on a kind of device.

    Attributes:
        name: of the results' file and of the marks on the page.
        side: of the views in pixels; `canvas` that of the images.
        network: our settings, from which the peers' network is built too.
        images: how many there are to draw from.
        workers: loader workers of a peer.
        warm, timed: steps of a turn before the clock runs, and while it does.
        skipped, rounds: turns of each that nobody counts, and that count.
    """

    name: str
    device: str
    side: int
    canvas: int
    network: dict[str, Any]
    images: int
    batch: int = 256
    workers: int = 0
    warm: int = 1
    timed: int = 1
    skipped: int = 1
    rounds: int = 9

    @property
    def blur(self) -> float:
        """Probability of blur, as our recipe derives it: none on small images."""
        return 0.5 if self.side > 32 else 0.0


CPU = Setup("steps", "cpu", 32, 32, {**NETWORKS["cpu"], "backbone.heads": 3}, images=5000)
SMALL = {"backbone.name": "vit_small", "backbone.patch": 16, "backbone.width": 384, "backbone.heads": 6}
CORES = min(16, os.cpu_count() or 1)
# Each worker has two batches ready, so that many steps go by before the workers' own speed is seen.
CUDA = Setup(
    *("steps_cuda", "cuda", 224, 256, {**SMALL, "backbone.depth": 12}),
    images=2560,
    workers=CORES,
    warm=2 * CORES,
    timed=2 * CORES,
    skipped=0,  # the first steps of a turn warm up enough
    rounds=3,
)
TINY = replace(
    CUDA,
    name="steps_tiny",
    device="cpu",
    network={**SMALL, "backbone.width": 96, "backbone.depth": 1},
    images=60,
    batch=2,
    workers=1,
    warm=0,
    timed=1,
    rounds=1,
)


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(train: Path, precision: str, setup: Setup = CPU, compiled: bool = False) -> Stepper:
    """A run's own trainer and feed."""
    settings = {
        **setup.network,
        "train.batch": setup.batch,
        "train.precision": precision,
        "train.compile": compiled,
        "views.size": setup.side,
        "backbone.freeze_patch": False,
        "objective.hidden": HIDDEN,
        "objective.temperature": TEMPERATURE,
    }
    trainer, feed = trainer_of("simclr", train, settings, setup.device, setup.canvas)
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


class Peer:
    """Another's loop: what it does with two views and labels, which its loader makes."""

    def __init__(self, loader: DataLoader[Any], learn: Callable[[Tensor, Tensor, Tensor], object], setup: Setup):
        self.loader, self.learn, self.setup = loader, learn, setup
        self.batches: Iterator[Any] | None = None

    def __call__(self) -> object:
        """One step."""
        if self.batches is None:
            self.batches = iter(self.loader)
        views, labels = next(self.batches)
        return self.learn(*(part.to(self.setup.device, non_blocking=True) for part in (*views, labels)))

    def rest(self) -> None:
        """End the loader's workers, so that they take nothing from whoever is next; the next step starts others."""
        self.batches = None


def loader_of(pixels: np.ndarray[Any, Any], transform: Callable[[Image.Image], Any], setup: Setup) -> DataLoader[Any]:
    """A loader as users write it, without end: no turn meets the end of an epoch, where workers start anew."""
    pictures = Pictures(pixels, transform)
    return DataLoader(
        pictures,
        setup.batch,
        sampler=RandomSampler(pictures, replacement=True, num_samples=2**40),
        num_workers=setup.workers,
        pin_memory=setup.device == "cuda",
        # Workers that are forked share the images.
        multiprocessing_context="fork" if setup.workers else None,
    )


def vit(setup: Setup) -> nn.Module:
    """The same transformer, as timm makes it."""
    names = {"patch": "patch_size", "width": "embed_dim", "depth": "depth", "heads": "num_heads"}
    shape = {theirs: setup.network[f"backbone.{own}"] for own, theirs in names.items()}
    return timm.models.VisionTransformer(img_size=setup.side, num_classes=0, **shape)


def _arithmetic(setup: Setup, bf16: bool) -> torch.autocast:
    return torch.autocast(setup.device, torch.bfloat16, enabled=bf16)


def lightly_loop(pixels: np.ndarray[Any, Any], bf16: bool = False, setup: Setup = CPU) -> Stepper:
    """lightly's SimCLR: its transform, head and loss."""
    transform = importlib.import_module("lightly.transforms").SimCLRTransform(
        input_size=setup.side, gaussian_blur=setup.blur, normalize={"mean": list(MEAN), "std": list(STD)}
    )
    width = setup.network["backbone.width"]
    head = importlib.import_module("lightly.models.modules").SimCLRProjectionHead(width, HIDDEN, 128)
    model = nn.Sequential(vit(setup), head).to(setup.device)
    loss_of = importlib.import_module("lightly.loss").NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)

    def learn(x0: Tensor, x1: Tensor, _: Tensor) -> Tensor:
        with _arithmetic(setup, bf16):
            loss: Tensor = loss_of(model(x0), model(x1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return Peer(loader_of(pixels, transform, setup), learn, setup)


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def torchvision_loop(pixels: np.ndarray[Any, Any], bf16: bool = False, setup: Setup = CPU) -> Stepper:
    """A loop in the style of solo-learn."""
    size, bicubic = setup.side, transforms.InterpolationMode.BICUBIC
    one = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, (0.08, 1.0), interpolation=bicubic),
            transforms.RandomApply([transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)], 0.8),
            transforms.RandomGrayscale(0.2),
            *([transforms.RandomApply([_blurred], setup.blur)] if setup.blur else []),
            transforms.RandomHorizontalFlip(0.5),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    width = setup.network["backbone.width"]
    encoder, online = vit(setup), nn.Linear(width, 10)
    projector = nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 128))
    model = nn.ModuleList([encoder, projector, online]).to(setup.device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)

    def learn(x0: Tensor, x1: Tensor, labels: Tensor) -> Tensor:
        with _arithmetic(setup, bf16):
            features = [encoder(view) for view in (x0, x1)]
            loss = _nt_xent(*(projector(feature) for feature in features))
            loss = loss + sum(F.cross_entropy(online(feature.detach()), labels) for feature in features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Peer(loader_of(pixels, lambda image: (one(image), one(image)), setup), learn, setup)


def _nt_xent(a: Tensor, b: Tensor) -> Tensor:
    z = F.normalize(torch.cat([a, b]), dim=1)
    logits = (z @ z.T / TEMPERATURE).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z), device=z.device).roll(len(a)))


# --- time -------------------------------------------------------------------------------------------------------------


def images_for(setup: Setup, archives: Path, work: Path) -> Path:
    """A folder of the images of a setup, written once."""
    if setup.canvas == 32:
        return subset(unpack(archives, work)[0], setup.images)
    unpack_once(archives / "imagenette128.tar", work)
    folder = work / f"imagenette{setup.canvas}_{setup.images}"
    if not (folder / ".done").exists():
        folder.mkdir(exist_ok=True)
        for i, picture in enumerate(photographs(work / "imagenette128" / "train", setup.images, setup.canvas)):
            Image.fromarray(picture).save(folder / f"{i:05}.jpg", quality=95)
        (folder / ".done").touch()
    return folder


def pixels_of(train: Path) -> np.ndarray[Any, Any]:
    """All images of a folder, decoded."""
    files = sorted(file for file in train.rglob("*") if file.suffix in (".png", ".jpg"))
    return np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])


def steppers_of(
    train: Path, pixels: np.ndarray[Any, Any], setup: Setup, precision: str, bf16: bool
) -> dict[str, Stepper]:
    """Everybody in one setting; lightly where it is installed."""
    found = {OURS: ours(train, precision, setup)}
    if (setup.device == "cuda" and bf16) or (setup is CPU and precision == "float32"):
        found[COMPILED] = ours(train, precision, setup, compiled=True)
    if find_spec("lightly"):
        found["lightly"] = lightly_loop(pixels, bf16, setup)
    return found | {"torchvision": torchvision_loop(pixels, bf16, setup)}


def now(device: str) -> float:
    """Seconds: of the processor for this process, or of the clock once a CUDA device is done with all it was told."""
    if device != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(steppers: dict[str, Stepper], setup: Setup = CPU) -> dict[str, list[float]]:
    """Seconds for a step of each, a round in turns, after those that nobody counts.

    Our runs keep the memory that they free; so does each turn of ours here, and gives it back for the others.
    """
    found: dict[str, list[float]] = {name: [] for name in steppers}
    for turn in range(setup.skipped + setup.rounds):
        for name, step in steppers.items():
            seconds = _turn(step, setup)
            if turn >= setup.skipped:
                found[name].append(seconds)
    return found


def _turn(step: Stepper, setup: Setup) -> float:
    theirs = isinstance(step, Peer)
    with nullcontext() if theirs else freed_memory_kept():
        for _ in range(setup.warm):
            step()
        began = now(setup.device)
        for _ in range(setup.timed):
            step()
        seconds = (now(setup.device) - began) / setup.timed
    if theirs:
        step.rest()
    return seconds


def table(found: dict[str, Any]) -> str:
    """Markdown: how many times longer each peer's step takes, by setting; median (lowest to highest).

    On CUDA, where seconds are the clock's, also how long ours takes.
    """
    clock = ["ours"] if "device" in found else []
    columns = ["a step of SimCLR", *clock, "lightly", "torchvision, as solo-learn"]
    rows = [columns, ["---"] * len(columns)]
    for setting in [name for name in SETTINGS if name in found["seconds"]]:
        times = found["seconds"][setting]
        for own, what in ((OURS, ""), (COMPILED, ", ours compiled")):
            if own in times:
                cells = [f"{1000 * statistics.median(times[own]):.0f} ms" for _ in clock]
                rows.append([ROWS.get(setting, setting) + what, *cells, *(_ratios(times, peer, own) for peer in PEERS)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _ratios(times: dict[str, list[float]], peer: str, own: str) -> str:
    if peer not in times:
        return ""
    ratios = [theirs / mine for theirs, mine in zip(times[peer], times[own], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def about(setup: Setup) -> dict[str, Any]:
    """What the numbers of a setup were measured on, and how."""
    found = {
        "machine": machine(),
        "load": os.getloadavg(),
        "threads": torch.get_num_threads(),
        "rounds": setup.rounds,
        "batch": setup.batch,
    }
    if setup.name != CPU.name:
        device = torch.cuda.get_device_name() if setup.device == "cuda" else setup.device
        found |= {"device": device, "side": setup.side, "network": setup.network, "workers": setup.workers}
        found |= {"steps": setup.timed, "triton": os.environ.get("BELVEDERE_TRITON") == "1"}
    return found


def compare(setup: Setup, settings: list[str], archives: Path, work: Path, path: Path) -> None:
    """Measure some settings, each written into the file as soon as it is there; the file keeps the others."""
    train = images_for(setup, archives, work)
    pixels = pixels_of(train)
    known = json.loads(path.read_text())["seconds"] if path.exists() else {}
    found, seconds = about(setup), {name: known[name] for name in SETTINGS if name in known and name not in settings}
    for setting in settings:
        precision, bf16 = SETTINGS[setting]
        seconds[setting] = measure(steppers_of(train, pixels, setup, precision, bf16), setup)
        path.write_text(json.dumps({**found, "seconds": seconds}, indent=1) + "\n")
        print(f"written: {path}: {setting}", flush=True)


def prepare(setup: Setup, peers: Path) -> None:
    """Threads, and lightly; a machine with a CUDA device may have no network."""
    if setup is CPU:
        torch.set_num_threads(1)
    try:
        install_peers(peers)
    except subprocess.CalledProcessError:
        if setup is CPU:
            raise
        print("lightly cannot be installed: without its column")


def setup_of(arguments: argparse.Namespace) -> Setup:
    """What the options ask for.

    Raises:
        UserError: when the device asked for is not there.
    """
    if arguments.tiny:
        return TINY
    return CUDA if device_of(arguments.device) == "cuda" else CPU


def main() -> None:
    parser = places(__doc__, "speed.md")
    parser.add_argument("--tiny", action="store_true", help="try what CUDA does on a CPU: two images, one narrow block")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    arguments = parser.parse_args()
    if not arguments.table:
        try:
            setup = setup_of(arguments)
        except UserError as error:
            parser.error(str(error))
        if setup is not TINY:
            prepare(setup, arguments.work / "peers")
        path = arguments.results / f"{setup.name}.json"
        compare(setup, arguments.settings, arguments.archives, arguments.work, path)
        if setup is TINY:
            print(table(json.loads(path.read_text())))
            return
    for setup in (CPU, CUDA):
        path = arguments.results / f"{setup.name}.json"
        if path.exists():
            write_between(arguments.page, setup.name, "steps.py", table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
