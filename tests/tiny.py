"""Tiny runs on real photographs, for tests of training: seconds, not minutes."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import socket
import struct
import sys
import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
from numpy.typing import NDArray
from packaging.version import Version

from belvedere import config as configuration
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.compose import facts_of, make_feed, make_trainer, settle
from belvedere.pretrain.engine import make_fabric
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.trainer import StepReport, Trainer
from belvedere.views import native

# A transformer of two blocks on a grid of 4 x 4.
NETWORK = {
    "backbone.name": "vit_tiny",
    "backbone.patch": 8,
    "backbone.width": 32,
    "backbone.depth": 2,
    "backbone.heads": 2,
    "views.size": 32,
}
# A Swin of four stages in place of it, its last map 2 x 2.
SWIN = {
    "backbone__name": "swin_tiny",
    "backbone__patch": 2,
    "backbone__width": 16,
    "backbone__depth": 7,
    "backbone__heads": None,
}
# SimSiam's and the jigsaw's heads in proportion to it: as wide as the papers' they take most of a test's time.
NARROW = {"objective__hidden": 64, "objective__out": 32, "objective__bottleneck": 16}
NARROW_JIGSAW = {"task__jigsaw__hidden": 64}
MACHINE = {"train.precision": "float32", "train.threads": 1}
# Recipes of objectives that have none of their own name; `none` is nothing without its task.
RECIPES = {"none": "relvit", "contrastive_metric": "irt"}


@lru_cache(maxsize=1)
def _photographs() -> list[NDArray[np.uint8]]:
    from skimage import data

    return [data.astronaut(), data.coffee(), data.cat(), data.rocket()]


def tiles(count: int, size: tuple[int, int] = (40, 40), channels: int = 3) -> NDArray[np.uint8]:
    """Tiles [N,h,w,C] of photographs; channels beyond three are those of the same place in the next photograph."""
    h, w = size
    found = []
    for number in range(count):
        places = _photographs()[number % 4], _photographs()[(number + 1) % 4]
        y, x = 20 * (number // 4 // 8) % 240, 40 * (number // 4 % 8) % 300
        found.append(
            np.concatenate([photograph[y : y + h, x : x + w] for photograph in places], axis=2)[..., :channels]
        )
    return np.stack(found)


@lru_cache(maxsize=16)
def tiny_canvases(count: int = 24, size: tuple[int, int] = (40, 40), channels: int = 3) -> Canvases:
    """The tiles as canvases; their classes are the photographs, and every seventh has no label."""
    labels = [-1 if number % 7 == 6 else number % 4 for number in range(count)]
    canvases = open_canvases(find_images(tiles(count, size, channels)), min(size), progress=False)
    return replace(canvases, labels=np.array(labels), classes=["astronaut", "coffee", "cat", "rocket"])


def tiny_config(objective: str, canvases: Canvases, **settings: Any) -> configuration.Config:
    """The settled configuration of the objective's own recipe, at toy size; dots in keys are written as __."""
    recipe = RECIPES.get(objective, objective if objective in configuration.recipe_names() else "dino")
    given = {**NETWORK, **MACHINE, "objective.name": objective, "train.batch": 8}
    if "train__steps" not in settings:
        given["train.epochs"] = 4
    if configuration.load_recipe(recipe).get("paper.locals"):
        given |= {"views.locals": 2, "views.local_size": 16}
    given |= {key.replace("__", "."): value for key, value in settings.items()}
    return settle(configuration.resolve(recipe, given), facts_of(canvases, "cpu"))[0].config


def tiny_trainer(objective: str, canvases: Canvases | None = None, **settings: Any) -> tuple[Trainer, Feed]:
    """A trainer at step 0 and its feed."""
    canvases = canvases or tiny_canvases()
    config = tiny_config(objective, canvases, **settings)
    fabric = make_fabric("cpu", str(config.train.precision))
    return make_trainer(config, canvases, fabric), make_feed(config, canvases, fabric)


def train(trainer: Trainer, feed: Feed, start: int, stop: int) -> list[StepReport]:
    """Do the steps from `start` to before `stop`."""
    return [
        trainer.step(step, micro_batches)
        for step, micro_batches in zip(range(start, stop), feed.stream(start, stop), strict=True)
    ]


def npy_of(shape: tuple[int, ...]) -> bytes:
    """A NumPy file whose header claims a shape, with a few bytes behind it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\1" * 100


def png_of(width: int, height: int) -> bytes:
    """A PNG file whose header claims a size, with the pixels of a few lines."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 4096)) + chunk(b"IEND", b"")
    )


# --- processes --------------------------------------------------------------------------------------------------------

# Processes fork from one that has torch imported, which saves seconds each.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["belvedere.api", "belvedere.cli", "belvedere.report.page", "tiny"])


def timm_before(version: str) -> bool:
    """Whether the installed timm is older."""
    return Version(timm.__version__) < Version(version)


def free_port() -> int:
    """A TCP port nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def give_renderer(cache: Path) -> None:
    """Lay the compiled renderer of these tests into another cache: compiling it takes as long as a small run."""
    known = native.library()
    path = None if known is None else Path(known._name)
    if path is not None and path.exists() and not cache.is_symlink() and not (cache / path.name).exists():
        cache.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, cache)


class Command:
    """`belvedere ARGUMENTS` in a process of its own."""

    def __init__(self, arguments: list[str], output: Path, cache: Path, place: Path | None = None) -> None:
        """Start it, in the folder `place` if one is given."""
        self._output = output
        give_renderer(cache)
        self.process = FORKS.Process(target=run_command, args=(arguments, str(output), str(cache), place))
        self.process.start()

    def wait(self, seconds: float = 120) -> int:
        """The exit code; -9 after a kill."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"still running after {seconds} s; it said: {self.output}")
        return self.process.exitcode

    @property
    def output(self) -> str:
        """Standard output and error so far."""
        return self._output.read_text() if self._output.exists() else ""


def run_command(arguments: list[str], output: str, cache: str, place: Path | None = None) -> None:
    """Be `belvedere ARGUMENTS` in this process, with a cache of its own."""
    if place is not None:
        os.chdir(place)
    file = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ["BELVEDERE_CACHE"] = cache
    sys.argv = ["belvedere", *arguments]
    from belvedere import cli

    cli.main()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The log of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step in the log, in its order."""
    return [(entry["step"], entry["loss"]) for entry in read_metrics(run) if "loss" in entry]
