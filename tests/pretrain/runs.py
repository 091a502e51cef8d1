"""Whole runs through the command line on an ordinary folder of real images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from PIL import Image

from tiny import MACHINE, NETWORK, Command, read_metrics, tiles

IMAGES, BATCH = 40, 8
SETTINGS: dict[str, Any] = {
    **NETWORK,
    **MACHINE,
    "views.locals": 2,
    "views.local_size": 16,
    "objective.bottleneck": 16,
    "train.batch": BATCH,
    # Every 60 ms: a kill finds the newest checkpoint a few steps behind the log.
    "train.checkpoint_minutes": 0.001,
    "monitor.log_every": 3,
    "images.workers": 1,
}


def write_photos(folder: Path, count: int = IMAGES) -> Path:
    """Tiles of photographs as PNG files."""
    folder.mkdir(parents=True)
    for number, tile in enumerate(tiles(count)):
        Image.fromarray(tile).save(folder / f"{number:03}.png")
    return folder


def words(**settings: Any) -> list[str]:
    """`key=value` arguments of a tiny run; dots in keys are written as __."""
    given = SETTINGS | {key.replace("__", "."): value for key, value in settings.items()}
    return [f"{key}={value}" for key, value in given.items()]


def pretrain(photos: Path, out: Path, *more: str, **settings: Any) -> Command:
    """Start `belvedere pretrain`."""
    arguments = ["pretrain", str(photos), "--recipe", "dino", "--out", str(out), *more, *words(**settings)]
    return Command(arguments, out.with_name(f"{out.name}.txt"), photos.with_name("cache"))


def resume(photos: Path, out: Path, *more: str) -> Command:
    """Start `belvedere pretrain --resume`; the run's own configuration holds all settings."""
    arguments = ["pretrain", str(photos), "--out", str(out), "--resume", *more]
    return Command(arguments, out.with_name(f"{out.name}-resumed.txt"), photos.with_name("cache"))


def assert_one_line(output: str) -> str:
    """The one line that a refused user is told."""
    lines = [line for line in output.splitlines() if line.startswith("belvedere: ")]
    assert len(lines) == 1, output
    assert output.strip().splitlines()[-1] == lines[0], output
    assert "Traceback" not in output
    return lines[0]


def wait_until_training(command: Command, run: Path, lines: int, checkpoint: bool = True) -> None:
    """Wait for that many lines of the log, and for the first checkpoint where one is due."""
    log = run / "metrics.jsonl"
    while not (log.exists() and len(log.read_text().splitlines()) >= lines):
        assert command.process.is_alive(), command.output
        time.sleep(0.002)
    while checkpoint and not (run / "checkpoint.pt").exists():
        assert command.process.is_alive(), command.output
        time.sleep(0.002)


def without_times(run: Path) -> list[dict[str, Any]]:
    """The log of a run without what clocks say."""
    clocks = ("seconds", "waited", "view_cost", "elapsed")
    return [{key: value for key, value in entry.items() if key not in clocks} for entry in read_metrics(run)]
