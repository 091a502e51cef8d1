"""What more images cost: does an image cost the same among 500,000 as among 5,000, and does memory stay small?

    python benchmarks/growth.py                 # 5,000, 50,000 and 500,000 images; a million listed; ~20 core-minutes
    python benchmarks/growth.py --most 50000    # in small

JPEG files of 40 px (parts of scikit-image's photographs, a thousand a folder), made in --work and deleted afterwards.
Each measurement is a process of its own: seconds, the processor's seconds, and how much its own memory grew at most
(without pages of mapped files). Listing is `find_images`, the cache `open_canvases`, the second start both again from
the cache; reading is 500 random batches of 256 from it. Files just written are in the system's cache, as they are on a
second start. Last, k-NN of 1,000 queries in a gallery of as many vectors as ImageNet has images. Writes
benchmarks/results/growth.json and the table of docs/speed.md.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images
from belvedere.measure.knn import top_neighbours
from cifar_runs import machine, places, write_between

SIDE, FOLDER, DIFFERENT = 40, 1000, 2000
GALLERY, WIDTH, QUERIES = 1_281_167, 384, 1000
BATCHES, BATCH = 500, 256


# --- images -----------------------------------------------------------------------------------------------------------


def tree(place: Path, images: int, size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """A folder of that many JPEG files of (width, height), `FOLDER` in each of its folders, some of them equal."""
    from skimage import data

    pictures = [
        Image.fromarray(picture) for picture in (data.astronaut(), data.coffee(), data.chelsea(), data.rocket())
    ]
    rng, files = np.random.default_rng(0), []
    for i in range(min(DIFFERENT, images)):
        picture = pictures[i % len(pictures)]
        left, top = (int(rng.integers(0, whole - side + 1)) for whole, side in zip(picture.size, size, strict=True))
        file = io.BytesIO()
        picture.crop((left, top, left + size[0], top + size[1])).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    for i in range(images):
        folder = place / f"{i // FOLDER:05}"
        if i % FOLDER == 0:
            folder.mkdir(parents=True)
        (folder / f"{i:07}.jpg").write_bytes(files[i % len(files)])
    return place


def linked(place: Path, given: Path, images: int) -> Path:
    """A folder of that many names, hard links to the files of another; for listing, which opens none."""
    files = sorted(given.rglob("*.jpg"))
    for i in range(images):
        folder = place / f"{i // FOLDER:05}"
        if i % FOLDER == 0:
            folder.mkdir(parents=True)
        os.link(files[i % len(files)], folder / f"{i:07}.jpg")
    return place


# --- what is measured, each in a process of its own -------------------------------------------------------------------


def listing(folder: Path) -> None:
    """List a folder."""
    find_images(folder, labels="none")


def start(folder: Path) -> None:
    """List a folder and open its canvases, which decodes them in this process unless that was done."""
    open_canvases(find_images(folder, labels="none"), 32, workers=1, progress=False)


def reading(folder: Path) -> Callable[[], None]:
    """Read random batches; opening is not counted."""
    canvases = open_canvases(find_images(folder, labels="none"), 32, progress=False)
    rng = np.random.default_rng(0)

    def read() -> None:
        for _ in range(BATCHES):
            canvases.batch(rng.integers(0, len(canvases), BATCH))

    return read


def neighbours(folder: Path) -> Callable[[], None]:
    """Look for queries in a large gallery, which is not counted."""
    draw = torch.Generator().manual_seed(0)
    gallery, queries = (torch.randn(rows, WIDTH, generator=draw) for rows in (GALLERY, QUERIES))

    def search() -> None:
        top_neighbours(gallery, queries, 20)

    return search


WORK: dict[str, Callable[[Path], Callable[[], None] | None]] = {
    "listing": listing,
    "start": start,
    "reading": reading,
    "neighbours": neighbours,
}
PREPARED = ("reading", "neighbours")


def own_memory() -> float:
    """MiB of this process that no file backs, now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """The highest memory of this process' own while something runs, looked at 50 times a second."""

    def __init__(self) -> None:
        self.before = self.highest = own_memory()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self.highest = max(self.highest, own_memory())

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.highest = max(self.highest, own_memory())


def be_measured(what: str, folder: Path) -> dict[str, float]:
    """Do one thing in this process and say what it took."""
    work: Any = WORK[what](folder) if what in PREPARED else lambda: WORK[what](folder)
    began, used = time.perf_counter(), time.process_time()
    with Peak() as peak:
        work()
    seconds, processor = time.perf_counter() - began, time.process_time() - used
    return {"seconds": seconds, "processor": processor, "memory_mb": peak.highest - peak.before}


def measured(what: str, folder: Path, cache: Path) -> dict[str, float]:
    """`be_measured` in a process of its own."""
    command = [sys.executable, __file__, "--be", what, "--folder", str(folder)]
    environment = {**os.environ, "BELVEDERE_CACHE": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {key: round(value, 3) for key, value in found.items()}


# --- all of it --------------------------------------------------------------------------------------------------------


def grow(place: Path, images: int) -> dict[str, Any]:
    """All that is measured of one number of images."""
    folder, cache = tree(place / str(images), images), place / "cache"
    found = {
        "listing": measured("listing", folder, cache),
        "first_start": measured("start", folder, cache),
        "second_start": measured("start", folder, cache),
        "reading": measured("reading", folder, cache),
    }
    shutil.rmtree(cache)
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: microseconds of the processor an image, seconds of the second start by the clock, and memory."""
    rows = [
        "| images | listing | decoding, once | reading | second start | memory: listing, decoding |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for images, one in found["growth"].items():
        count = int(images)
        each = [f"{1e6 * one[what]['processor'] / count:.0f} µs" for what in ("listing", "first_start")]
        read = f"{1e6 * one['reading']['processor'] / (BATCHES * BATCH):.0f} µs"
        memory = ", ".join(f"{one[what]['memory_mb']:.0f} MiB" for what in ("listing", "first_start"))
        rows.append(
            f"| {count:,} | {each[0]} | {each[1]} | {read} | {one['second_start']['seconds']:.1f} s | {memory} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = places(__doc__, "speed.md")
    parser.add_argument("--most", type=int, default=500_000)
    parser.add_argument("--be", choices=sorted(WORK), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be:
        print(json.dumps(be_measured(arguments.be, arguments.folder)))
        return
    path, place = arguments.results / "growth.json", arguments.work / "growth"
    if not arguments.table:
        shutil.rmtree(place, ignore_errors=True)
        about = {"machine": machine(), "load": os.getloadavg()}
        sizes = [count for count in (5_000, 50_000, 500_000) if count <= arguments.most]
        growth = {str(count): grow(place, count) for count in sizes}
        million = linked(place / "million", place / str(sizes[-1]), 2 * sizes[-1])
        found = {
            **about,
            "growth": growth,
            "listed": {"images": 2 * sizes[-1], **measured("listing", million, place / "cache")},
            "neighbours": {"gallery": GALLERY, "queries": QUERIES, **measured("neighbours", place, place / "cache")},
        }
        path.write_text(json.dumps(found, indent=1) + "\n")
        shutil.rmtree(place)
        print(f"written: {path}", flush=True)
    write_between(arguments.page, "growth", "growth.py", table(json.loads(path.read_text())))


if __name__ == "__main__":
    main()
