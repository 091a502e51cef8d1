"""200,000 images embedded by two processes that are killed once and started again: is it right, what does it cost?

    python benchmarks/embedding.py                   # some minutes on 2 cores
    python benchmarks/embedding.py --images 2000 --part-images 200 --steps 4

The images are the 30,000 of CIFAR-10 in ../shared/data and shifted copies of them, PNG files in class folders. A ViT
(width 192, depth 4, patch 8) that was trained for some steps embeds them: `belvedere embed --devices 2`, SIGKILL to all
its processes at a moment drawn with the seed, the same command again. Right is that every image has one row, that a
sample has the vectors of an undisturbed `embed` in one process, and that a part which one process makes again is the
same file bit by bit. Where the time goes is measured on that part; what ten and a thousand times as many images cost
follows from the numbers an image. Writes benchmarks/results/embedding.json and the table of docs/embedding.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pyarrow import dataset, parquet

import belvedere
from belvedere import embedding
from belvedere.images.source import find_images
from cifar_runs import NETWORKS, ROOT, finish, machine, unpack, write_between

SHIFT = 4
SAMPLE = 2000
FACTORS = (1, 10, 1000)
# Of the machine's, for the lists of both processes.
MOST_MEMORY = 0.8
PHASES = {"decoded": "decoding", "encode": "embedding", "write_atomically": "writing"}


# --- images -----------------------------------------------------------------------------------------------------------


def write_images(train: Path, test: Path, folder: Path, count: int) -> dict[str, Any]:
    """`count` PNG files in class folders, once; first the pictures themselves, then shifted copies in a fixed order."""
    files = sorted([*train.rglob("*.png"), *test.rglob("*.png")])
    shifts = [(y, x) for y in range(-SHIFT, SHIFT + 1) for x in range(-SHIFT, SHIFT + 1)]
    shifts.sort(key=lambda shift: (abs(shift[0]) + abs(shift[1]), shift))
    done = folder / f".{count}"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        for number in range(count):
            copy, original = divmod(number, len(files))
            picture = np.asarray(Image.open(files[original]))
            path = folder / files[original].parent.name / f"{original:05}_{copy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(shifted(picture, *shifts[copy])).save(path, compress_level=1)
        done.touch()
    return {
        "images": count,
        "distinct": min(count, len(files)),
        "copies": f"the other {max(0, count - len(files))} are these shifted by up to {SHIFT} px, borders mirrored",
        "format": "PNG of 32 px, RGB",
        "bytes_an_image": mean_bytes(list(folder.rglob("*.png"))),
    }


def shifted(picture: np.ndarray[Any, Any], y: int, x: int) -> np.ndarray[Any, Any]:
    """The picture [h,w,C] moved by (y, x) pixels, |y| and |x| up to SHIFT; its mirror image fills the border."""
    h, w, _ = picture.shape
    wide = np.pad(picture, ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="reflect")
    return wide[SHIFT - y : SHIFT - y + h, SHIFT - x : SHIFT - x + w]


def mean_bytes(files: list[Path]) -> float:
    """Of at most 1,000 of them, evenly spaced."""
    return float(np.mean([file.stat().st_size for file in files[:: max(1, len(files) // 1000)]]))


# --- the job ----------------------------------------------------------------------------------------------------------


class Job:
    """`belvedere embed` in two processes; `peaks` are the most bytes that each held, in the order of their numbers."""

    def __init__(self, run: Path, images: Path, out: Path, part_images: int) -> None:
        self.out = f"{out}/"
        self.peaks = dict[str, int]()
        self.began = time.monotonic()
        words = ["embed", str(run), str(images), "--out", self.out, "--part-images", str(part_images)]
        self._said = out.with_suffix(".txt").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "belvedere", *words, "--device", "cpu", "--devices", "2"],
            stdout=self._said,
            stderr=self._said,
        )

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def watch(self, until: Callable[[], bool], every: float = 0.01) -> bool:
        """Wait until something holds, and say whether it did before the job ended by itself."""
        looked = 0.0
        while self._process.poll() is None:
            if until():
                return True
            if time.monotonic() - looked > 0.5:
                self._look()
                looked = time.monotonic()
            time.sleep(every)
        return False

    def _look(self) -> None:
        for number in ("0", "1"):
            for process in processes_of(self.out, f"RANK={number}"):
                self.peaks[number] = max(self.peaks.get(number, 0), most_bytes(process))

    def kill(self) -> None:
        """SIGKILL for the launcher and both processes."""
        for process in processes_of(self.out):
            os.kill(process, signal.SIGKILL)
        self._process.wait()

    def wait(self) -> None:
        """Until it ends.

        Raises:
            SystemExit: when it failed.
        """
        self.watch(lambda: False, every=0.1)
        if self._process.returncode:
            self._said.seek(0)
            raise SystemExit(f"exit code {self._process.returncode}\n{self._said.read()}")


def processes_of(word: str, variable: str = "") -> list[int]:
    """Processes with a word on their command line and a variable in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words, variables = ((folder / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
        except OSError:  # no process, or it has ended
            continue
        if os.fsencode(word) in words and (not variable or variable.encode() in variables):
            found.append(int(folder.name))
    return found


def most_bytes(process: int) -> int:
    """The most resident bytes that a process had so far; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def kill_and_go_on(run: Path, images: Path, out: Path, part_images: int, parts: int, seed: int) -> dict[str, Any]:
    """Start the job, kill it when a drawn number of parts is there and a drawn share of another, and do it again."""
    draw = random.Random(seed)
    after, share = draw.randint(3, parts // 2), draw.random()
    job, first = Job(run, images, out, part_images), list[float]()

    def many() -> bool:
        there = len(list(out.glob("part-*")))
        first.extend([job.seconds] * (there > 0 and not first))
        return there >= after

    alive = job.watch(many)
    # Two are worked on at a time.
    moment = job.seconds + share * 2 * (job.seconds - first[0]) / (after - 1)
    alive = alive and job.watch(lambda: job.seconds >= moment)
    job.kill()
    there = sizes_of(out)
    killed = {"seconds": job.seconds, "before_its_end": alive, "parts_there": len(there)}
    again = Job(run, images, out, part_images)
    again.wait()
    nothing_left = Job(run, images, out, part_images)
    nothing_left.wait()
    left = sum(size for name, size in sizes_of(out).items() if name not in there)
    return {
        "parts": parts,
        "killed": killed,
        "again_seconds": again.seconds,
        "nothing_left_seconds": nothing_left.seconds,
        "images_a_second": left / (again.seconds - nothing_left.seconds),
        "peak_bytes": [again.peaks[number] for number in sorted(again.peaks)],
    }


def sizes_of(out: Path) -> dict[str, int]:
    """Images of every part that is there, by its name."""
    return {path.name: parquet.read_metadata(path).num_rows for path in sorted(out.glob("part-*"))}


# --- is it right ------------------------------------------------------------------------------------------------------


def check(run: Path, images: Path, out: Path, seed: int) -> dict[str, Any]:
    """Rows against the images that there are, and a sample against `embed` in this one process."""
    table = dataset.dataset(out).to_table()
    paths, names = table["path"].to_pylist(), find_images(images).names
    chosen = sorted(random.Random(seed).sample(names, min(SAMPLE, len(names))))
    listed = images / "sample.txt"
    listed.write_text("\n".join(chosen) + "\n")
    alone = belvedere.embed(run, listed, device="cpu")
    listed.unlink()
    row = {path: i for i, path in enumerate(paths)}
    together = np.stack(table["features"].take([row[name] for name in chosen]).to_numpy())
    return {
        "missing": len(set(names) - set(paths)),
        "twice": len(paths) - len(set(paths)),
        "in_order": paths == names,
        "sample": len(chosen),
        "largest_difference": float(np.abs(alone - together).max()),
        "spread_of_values": float(together.std()),
        "bytes_an_image": sum(path.stat().st_size for path in out.glob("part-*")) / len(paths),
    }


# --- where the time goes ----------------------------------------------------------------------------------------------


@contextmanager
def timed(seconds: dict[str, float]) -> Iterator[None]:
    """Add up what the main thread spends in each phase of a part; decoding runs ahead of it on other threads."""
    whole = {name: getattr(embedding, name) for name in PHASES}

    def clocked(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return whole[name](*args, **kwargs)
            finally:
                seconds[PHASES[name]] += time.perf_counter() - began

        return call

    def decoded(*args: Any, **kwargs: Any) -> Iterator[Any]:
        items = whole["decoded"](*args, **kwargs)
        while True:
            began = time.perf_counter()
            item = next(items, None)
            seconds["decoding"] += time.perf_counter() - began
            if item is None:
                return
            yield item

    for name in PHASES:
        setattr(embedding, name, decoded if name == "decoded" else clocked(name))
    try:
        yield
    finally:
        for name, function in whole.items():
            setattr(embedding, name, function)


def phases(run: Path, images: Path, out: Path, part_images: int, seed: int) -> dict[str, Any]:
    """One part made again by this process alone, and what it spent an image; of the index, over all images."""
    torch.set_num_threads(1)
    with multiprocessing.get_context("spawn").Pool(1) as fresh:
        index = fresh.apply(index_of, (images,))
    name, count = random.Random(seed).choice([(n, size) for n, size in sizes_of(out).items() if size == part_images])
    before = (out / name).read_bytes()
    (out / name).unlink()
    seconds = dict.fromkeys(PHASES.values(), 0.0)
    with timed(seconds):
        embedding.embed_parts(run, images, out, part_images=part_images, device="cpu")
    return {
        "part": name,
        "equal_bytes": (out / name).read_bytes() == before,
        "seconds_an_image": {"index": index["seconds"]} | {phase: n / count for phase, n in seconds.items()},
        "index_bytes_an_image": index["bytes"],
    }


def index_of(images: Path) -> dict[str, float]:
    """Seconds and bytes of memory that listing and fingerprinting take an image, in a process that did nothing else."""
    held, began = resident(), time.perf_counter()
    source = find_images(images)
    source.digest()
    return {"seconds": (time.perf_counter() - began) / len(source), "bytes": (resident() - held) / len(source)}


def resident() -> int:
    """Bytes that this process has in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def costs(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What so many times as many images cost on this machine, all of it in proportion to their number but the start."""
    count, one = found["data"]["images"], found["phases"]
    index = one["seconds_an_image"]["index"]
    start = max(0.0, found["job"]["nothing_left_seconds"] - index * count)
    memory = MOST_MEMORY * found["memory_bytes"]
    rows = []
    for factor in FACTORS:
        images = factor * count
        working = images / found["job"]["images_a_second"]
        names = 2 * images * one["index_bytes_an_image"]
        rows.append(
            {
                "images": images,
                "hours": (start + index * images + working) / 3600,
                "hours_of_index": index * images / 3600,
                "parquet_bytes": images * found["right"]["bytes_an_image"],
                "cache_bytes": 0,
                "image_bytes": images * found["data"]["bytes_an_image"],
                "index_bytes_of_both_processes": names,
                "fits_in_memory": names < memory,
                "bottleneck": "memory for the names" if names >= memory else _longest(one["seconds_an_image"]),
            }
        )
    return rows


def _longest(seconds: dict[str, float]) -> str:
    name = max(seconds, key=lambda phase: seconds[phase])
    return f"{name}, {100 * seconds[name] / sum(seconds.values()):.0f} % of a process' time"


def table(found: dict[str, Any]) -> str:
    """Markdown for docs/embedding.md."""
    one, job, killed = found["phases"], found["job"], found["job"]["killed"]
    spent = ", ".join(f"{name} {1e6 * n:.0f}" for name, n in one["seconds_an_image"].items())
    fit = MOST_MEMORY * found["memory_bytes"] / (2 * one["index_bytes_an_image"])
    lines = [
        f"{found['data']['images']:,} PNG files of 32 px, a ViT of width 192, depth 4 and patch 8, 2 processes on "
        f"{found['machine']['cores']} CPU cores that others used too (load average {found['load_average'][1]:.1f}). "
        f"Killed after {killed['seconds']:.0f} s with {killed['parts_there']} of {job['parts']} parts there, and "
        f"finished by the same command in {job['again_seconds']:.0f} s: no image missing, none twice.",
        "",
        f"- {job['images_a_second']:,.0f} images a second, and at most {max(job['peak_bytes']) / 1e9:.2f} GB a process",
        f"- microseconds an image in one process alone: {spent}",
        f"- bytes an image: {found['data']['bytes_an_image']:.0f} as PNG, {found['right']['bytes_an_image']:.0f} in "
        "Parquet, none in the cache",
        f"- {one['index_bytes_an_image']:.0f} bytes of memory in each process for an image's name; on this machine of "
        f"{found['memory_bytes'] / 1e9:.0f} GB that fits up to {fit / 1e6:.0f} million images",
        "",
        "Computed from these numbers:",
        "",
        "| images | hours | Parquet | the images themselves | names, in both processes | what limits |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["costs"]:
        sizes = [
            f"{row[key] / 1e9:.3g} GB" for key in ("parquet_bytes", "image_bytes", "index_bytes_of_both_processes")
        ]
        lines.append(f"| {row['images']:,} | {row['hours']:.3g} | {' | '.join(sizes)} | {row['bottleneck']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--part-images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=30, help="of the network's training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--archives", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "benchmarks")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "embedding.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "embedding.md")
    given = parser.parse_args()
    about, place = machine(), given.work / "embedding"
    os.environ["BELVEDERE_CACHE"] = str(place / "cache")
    train, test = unpack(given.archives, given.work)
    images, run, out = place / "images", place / "run", place / "vectors"
    data = write_images(train, test, images, given.images)
    settings = {**NETWORKS["cpu"], "train.batch": 128, "train.steps": given.steps, "views.size": 32}
    finish("simclr", train, run, settings, "cpu")
    shutil.rmtree(out, ignore_errors=True)
    parts = len(embedding.part_rows(given.images, given.part_images))
    found: dict[str, Any] = {
        "machine": about,
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "seed": given.seed,
        "network": settings,
        "data": data,
        "part_images": given.part_images,
        "job": kill_and_go_on(run, images, out, given.part_images, parts, given.seed),
        "right": check(run, images, out, given.seed),
        "phases": phases(run, images, out, given.part_images, given.seed),
        "load_average": os.getloadavg(),
    }
    found["costs"] = costs(found)
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    print(f"written: {given.out}")
    write_between(given.page, "embedding", "embedding.py", table(found))


if __name__ == "__main__":
    main()
