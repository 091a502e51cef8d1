"""What the benchmarks on CIFAR-10 share: images, pace, one run with its evaluation, tables on a page of docs/."""

from __future__ import annotations

import argparse
import copy
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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

# As belvedere does, which comes after torch here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

import belvedere
from belvedere import config
from belvedere.evaluate.classifier import classify
from belvedere.evaluate.intervals import resample
from belvedere.evaluate.protocols.finetune import Logits
from belvedere.evaluate.scores import TOP, classification
from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.allocator import freed_memory_kept
from belvedere.pretrain.compose import device_of, facts_of, make_encoder, make_feed, make_trainer, settle
from belvedere.pretrain.engine import make_fabric
from belvedere.pretrain.feed import Feed, MicroBatch
from belvedere.pretrain.folder import RunFolder
from belvedere.pretrain.restore import restore
from belvedere.pretrain.trainer import Trainer
from belvedere.report.record import since_start

ROOT = Path(__file__).parents[1]
NETWORKS = {
    "cpu": {"backbone.name": "vit_tiny", "backbone.patch": 8, "backbone.width": 192, "backbone.depth": 4},
    # As many heads for all: MoCo v3's own ViT-S has 12.
    "cuda": {"backbone.name": "vit_small", "backbone.patch": 4, "backbone.heads": 6},
}

# Of a processor: what decides about the speed of float32 and bf16, and no name tells.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Case:
    """One run: the recipe on so many training images with settings of its own; `about` goes into its JSON.

    `floors` are measured beside it; `start` is a run that it takes its first weights from; `head` says that it learns
    classes, whose test accuracy is wanted too.
    """

    name: str
    recipe: str
    images: int
    settings: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)
    floors: tuple[str, ...] = ()
    start: Case | None = None
    head: bool = False


class Desk:
    """Where a benchmark's images, runs, results and page are.

    Attributes:
        train, test: folders of images; `side` of their short sides in pixels.
        device: "cpu", "cuda" or "mps"; `ending` tells its files from those of the CPU.
        results: folder with one JSON a run.
        work: folder with the runs themselves.
        network: settings of the network.
    """

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.device = device_of(arguments.device)
        self.ending = "" if self.device == "cpu" else f"_{self.device}"
        self.results = arguments.results / f"{name}{self.ending}"
        self.results.mkdir(parents=True, exist_ok=True)
        self.work = arguments.work / f"{name}-runs{self.ending}"
        self.page = arguments.page
        self.train, self.test = unpack(arguments.archives, arguments.work)
        self.side = 32
        self.network: Mapping[str, Any] = NETWORKS.get(self.device, NETWORKS["cpu"])

    def beside(self, train: Path, test: Path, side: int, network: Mapping[str, Any]) -> Desk:
        """The same desk with other images, and the network for them."""
        other = copy.copy(self)
        other.train, other.test, other.side, other.network = train, test, side, network
        return other

    def settings(self, **more: Any) -> dict[str, Any]:
        """Of the network, and more; a setting of None takes the network's own away."""
        found = {**self.network, **{key.replace("__", "."): value for key, value in more.items()}}
        return {key: value for key, value in found.items() if value is not None}

    def run(self, cases: Iterable[Case]) -> None:
        """Do the cases that have no result yet."""
        for case in cases:
            path = self.results / f"{case.name}.json"
            if not path.exists():
                images, settings = subset(self.train, case.images), case.settings
                if case.start is not None:
                    first = self.work / case.start.name
                    finish(
                        case.start.recipe,
                        subset(self.train, case.start.images),
                        first,
                        case.start.settings,
                        self.device,
                    )
                    settings = {**settings, "backbone.weights": str(first)}
                run = self.work / case.name
                found = measure(case.recipe, images, self.test, run, settings, self.device, case.floors)
                if case.head:
                    found["test"]["head"] = class_head(run, self.test, self.side, self.device)
                path.write_text(json.dumps(found | {"images": case.images} | case.about, indent=1) + "\n")
                print(f"written: {path}", flush=True)

    def write(self, name: str, script: str, text: str) -> None:
        """Put a text between its marks on the page."""
        write_between(self.page, f"{name}{self.ending}", script, text)


def command(about: str | None, page: str, minutes: float | None) -> argparse.ArgumentParser:
    """The options that all benchmarks of a budget in minutes have; `minutes` is what is taken where none are given."""
    parser = places(about, page)
    parser.add_argument("--minutes", type=float, default=minutes)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--pace", action="store_true", help="only measure seconds a step of everything that is compared"
    )
    return parser


def places(about: str | None, page: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have: where it runs, reads and writes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--archives", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / page)
    parser.add_argument("--table", action="store_true", help=f"only write docs/{page} from the results there are")
    return parser


def paces(path: Path, cases: Mapping[str, tuple[str, Mapping[str, Any]]], desk: Desk, again: bool) -> dict[str, float]:
    """Seconds a step of (recipe, settings) of every case, from a file, or measured into it once (or `again`).

    All are measured again where the file lacks one, since only what was timed in turn can be compared.
    """
    known = json.loads(path.read_text())["seconds_a_step"] if path.exists() else {}
    if again or cases.keys() - known.keys():
        trainers = {
            name: trainer_of(recipe, desk.train, settings, desk.device, desk.side)
            for name, (recipe, settings) in cases.items()
        }
        path.write_text(json.dumps(pace(trainers), indent=1) + "\n")
        print(f"written: {path}", flush=True)
    return dict(json.loads(path.read_text())["seconds_a_step"])


def unpack(archives: Path, folder: Path) -> tuple[Path, Path]:
    """Unpack CIFAR-10's training and test images, once; returns their folders."""
    for name in ("cifar10_train20k.tar.gz", "cifar10_test10k.tar.gz"):
        unpack_once(archives / name, folder)
    return folder / "cifar10" / "train", folder / "cifar10" / "test"


def unpack_once(archive: Path, folder: Path) -> None:
    """Unpack an archive into a folder, unless that was done before; a file of arrays is copied there."""
    done = folder / f"{archive.name}.unpacked"
    if archive.suffix == ".npz":
        shutil.copyfile(archive, folder / archive.name)
    elif not done.exists():
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
        done.touch()


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
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu, flags = (next((line for line in lines if line.startswith(name)), "") for name in ("model name", "flags"))
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        # Of the code only: a benchmark writes results and pages itself.
        "dirty": bool(_git("status", "--porcelain", "--", "src", "benchmarks/*.py")),
        "command": " ".join(["python", *sys.argv]),
        "cpu": cpu.partition(": ")[2] or platform.processor(),
        "instructions": [name for name in INSTRUCTIONS if name in flags.split()],
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in ("belvedere", "torch", "timm", "numpy", "lightning-fabric")},
    }


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def curve(run: Path) -> list[dict[str, Any]]:
    """Online k-NN and health of every look: step, seconds since the start (of a resumed run, the first), values."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    looks = [line for line in lines if "look" in line]
    seconds = since_start([line["elapsed"] for line in looks])
    return [
        {"step": line["step"], "elapsed": at, "health": line["health"], **line["look"]}
        for line, at in zip(looks, seconds, strict=True)
    ]


def choosing(run: Path) -> dict[str, float]:
    """How the scores of hard views chose, as means over the log but for its first step, whose network is untrained."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {
        name: [line[f"hard/{name}"] for line in lines if f"hard/{name}" in line and line["step"]]
        for name in ("fidelity", "kept")
    }
    return {name: statistics.mean(values) for name, values in found.items() if values}


class Steps(Protocol):
    """What can be paced: a trainer, or one with another policy."""

    def step(self, step: int, micro_batches: Sequence[MicroBatch]) -> object:
        """Do one optimiser step."""


def trainer_of(
    recipe: str, train: Path, settings: Mapping[str, Any], device: str, side: int = 32
) -> tuple[Trainer, Feed]:
    """A trainer at step 0, and its feed, as a run of 1,000 steps with these settings would have them."""
    canvases = open_canvases(find_images(train), side, progress=False)
    resolved = config.resolve(recipe, {"train.steps": 1000, **settings})
    settled = settle(resolved, facts_of(canvases, device))[0].config
    fabric = make_fabric(device, str(settled.train.precision))
    return make_trainer(settled, canvases, fabric), make_feed(settled, canvases, fabric)


def pace(
    trainers: Mapping[str, tuple[Steps, Feed]], rounds: int = 20, together: int = 1, first: int = 500
) -> dict[str, Any]:
    """Seconds a step of each: the shortest of many, measured in turn, since noise only ever adds.

    `together` steps count as one measurement where not every step does the same. Clocks stand at step `first` of 1,000:
    in the middle of the run nothing warms up.
    """
    found = dict[str, float]()
    streams = {name: feed.stream(0, 1000) for name, (_, feed) in trainers.items()}
    with freed_memory_kept():
        for turn in range(rounds + 2):
            for name, (trainer, _) in trainers.items():
                batches = [next(streams[name]) for _ in range(together)]
                began = time.perf_counter()
                for k, micro_batches in enumerate(batches):
                    trainer.step(first + turn * together + k, micro_batches)
                if turn >= 2:  # the first ones warm up
                    found[name] = min(found.get(name, math.inf), (time.perf_counter() - began) / together)
    return {"seconds_a_step": found, "threads": torch.get_num_threads(), "rounds": rounds, "machine": machine()}


def steps_in(minutes: float, seconds_a_step: float) -> int:
    """Steps that fit into a budget; 8 % of it go to looks, checkpoints and the report."""
    return round(0.92 * 60 * minutes / seconds_a_step)


def finish(recipe: str, train: Path, run: Path, settings: dict[str, Any], device: str) -> None:
    """A run from where it is to its end.

    Raises:
        SystemExit: when it was stopped before.
    """
    belvedere.pretrain(train, recipe, out=run, resume=run.exists(), settings=settings, device=device)
    if curve(run)[-1]["step"] < config.flatten(config.from_yaml(run / "config.yaml").config)["train.steps"]:
        raise SystemExit(f"{run}: was stopped before its end; the same command goes on with it")


def measure(
    recipe: str,
    train: Path,
    test: Path,
    run: Path,
    settings: dict[str, Any],
    device: str,
    floors: Sequence[str],
    protocols: Sequence[str] = ("knn", "logistic"),
) -> dict[str, Any]:
    """One run and its evaluation on the test images."""
    about = machine()
    finish(recipe, train, run, settings, device)
    results = belvedere.evaluate(run, train, test=test, protocols=protocols, device=device, floors=floors)
    return {
        "recipe": recipe,
        "machine": about,
        "test": {result.protocol: result.to_json() for result in results},
        "curve": curve(run),
        "choosing": choosing(run),
        "settings": config.flatten(config.from_yaml(run / "config.yaml").config),
    }


def class_head(run: Path, test: Path, side: int, device: str) -> dict[str, Any]:
    """What the classifier that a run trained says of the test images, written as a protocol's result."""
    resolved = config.from_yaml(run / "config.yaml")
    canvases = open_canvases(find_images(test), side, progress=False)
    branch = restore(RunFolder(run), resolved, canvases, device).trainer.evaluated
    encoder = make_encoder(resolved.config, branch.backbone)
    probabilities = classify(Logits(branch), encoder.preprocess, canvases, device)
    ranking = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    assert canvases.labels is not None
    counts = resample(len(canvases), seed=0)
    numbers = classification(ranking, canvases.labels, len(canvases.classes), counts)
    return {"protocol": "head", "metrics": {"run": {name: asdict(number) for name, number in numbers.items()}}}


def spread(runs: list[dict[str, Any]], protocol: str, encoder: str) -> str:
    """Mean over runs, lowest to highest; for a single one, or a floor that they share, its bootstrap interval."""
    numbers = [one["test"][protocol]["metrics"][encoder]["top1"] for one in runs]
    values = [number["value"] for number in numbers]
    if len(runs) == 1 or (encoder != "run" and len(set(values)) == 1):
        return f"{values[0]:.1f} [{numbers[0]['low']:.1f}, {numbers[0]['high']:.1f}]"
    return f"{statistics.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def write_between(page: Path, name: str, script: str, text: str) -> None:
    """Put a text between its two marks on a page."""
    begin, end = f"<!-- {name}, written by benchmarks/{script} -->", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page}: holds no lines '{begin}' and '{end}' to write between")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    print(f"written: {page}")
