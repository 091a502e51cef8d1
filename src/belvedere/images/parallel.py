"""A loop over many images on all cores, in order, with a progress bar.

Threads as a rule: Pillow releases the GIL while it decodes and scales, and threads need no pickling and no start-up.
Measured on 2 cores: 640x480 JPEGs 390 a second (200 on one thread; 350 with two spawned processes), 12-megapixel ones
132 (68; 79). Very small files are Python's work from end to end, which threads only hinder each other in, so that many
of them go to processes (`helper`). Files a second in benchmarks/results/feeding.json, 2 cores: 4,000 JPEGs of 40x40 on
one thread 1,347, on two 1,003; 12,000 of them on one 1,472, in two processes 2,719; 12,000 of 160x160 660 and 1,095.
"""

from __future__ import annotations

import os
import queue
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import Progress

from belvedere.errors import UserError, printable
from belvedere.images.files import Files
from belvedere.images.helper import Helper
from belvedere.images.items import Items, Source

Result = TypeVar("Result")
Some = TypeVar("Some")
Work = Callable[[Items, int, str, int], Result]
"""What is done with image i of some items, given its name and its place in the source; can be sent to processes."""
BLOCK = 16
"""Images a task: a task of its own for each would cost more than decoding a small one."""
MANY, SMALL, SENT = 10_000, 16 * 1024, 256
"""Processes take over from so many files of at most so many bytes (their median), so many a task."""


def count_workers(workers: int | None) -> int:
    """Number of threads or processes: as asked, or one a core."""
    return workers or os.cpu_count() or 1


def ordered_map(
    work: Callable[[int], Result], count: int, workers: int | None, title: str, progress: bool, block: int = BLOCK
) -> Iterator[Result]:
    """Yield work(0), ..., work(count - 1) in order, computed ahead by a few tasks of `block` on `workers` threads."""

    def run(part: range) -> list[Result]:
        return [work(i) for i in part]

    parts = (range(start, min(start + block, count)) for start in range(0, count, block))
    return _shown(_ahead(run, parts, count_workers(workers)), count, title, progress)


def map_images(
    work: Work[Result], source: Source, rows: Sequence[int], workers: int | None, title: str, progress: bool
) -> Iterator[Result]:
    """Yield what `work` makes of the images `rows`, in order: on threads, or many small files on processes."""
    count = count_workers(workers)
    if count == 1 or not are_many_small(source, rows):
        return ordered_map(partial(_of_source, work, source, rows), len(rows), workers, title, progress)
    helpers = queue.SimpleQueue[Helper]()

    def ask(part: Sequence[int]) -> list[Result]:
        helper = helpers.get()
        try:
            return list(helper.ask(_all_of, work, *_sent(source, part)))
        except EOFError as error:
            first, last = (printable(source.names[part[k]]) for k in (0, -1))
            raise UserError(
                f"{source.described}: the process that decoded {first} to {last} died; free some memory, or decode "
                "with images.workers=1"
            ) from error
        finally:
            helpers.put(helper)

    def found() -> Iterator[list[Result]]:
        with ExitStack() as stack:
            for _ in range(count):
                helper = Helper()
                stack.callback(helper.close)
                helpers.put(helper)
            parts = [rows[start : start + SENT] for start in range(0, len(rows), SENT)]
            yield from _ahead(ask, parts, count)

    return _shown(found(), len(rows), title, progress)


def are_many_small(source: Source, rows: Sequence[int]) -> bool:
    """Whether so many images, in files of so few bytes, are asked for that processes pay."""
    if not isinstance(source.items, Files) or len(rows) < MANY:
        return False
    sizes = [_bytes_of(source.items.read(rows[k])) for k in np.linspace(0, len(rows) - 1, 100).astype(int).tolist()]
    return float(np.median(sizes)) <= SMALL


def _bytes_of(path: os.PathLike[str]) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # gone, which reading it will say
        return 0


def _of_source(work: Work[Result], source: Source, rows: Sequence[int], position: int) -> Result:
    row = rows[position]
    return work(source.items, row, source.names[row], row)


def _sent(source: Source, rows: Sequence[int]) -> tuple[Items, list[str], list[int]]:
    """Some of the files, with their names and places: all that a process needs of a source."""
    files = source.items
    assert isinstance(files, Files)
    names = [files.names[row] for row in rows]
    return replace(files, names=names), [source.names[row] for row in rows], list(rows)


def _all_of(work: Work[Result], items: Items, names: list[str], rows: list[int]) -> list[Result]:
    return [work(items, i, name, row) for i, (name, row) in enumerate(zip(names, rows, strict=True))]


def _ahead(run: Callable[[Some], list[Result]], parts: Iterable[Some], threads: int) -> Iterator[list[Result]]:
    """run(part) of each part in order, computed ahead by a few."""
    waiting: deque[Future[list[Result]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for part in parts:
            waiting.append(pool.submit(run, part))
            # The bound keeps decoded images from piling up when the reader is slower.
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _shown(parts: Iterator[list[Result]], count: int, title: str, progress: bool) -> Iterator[Result]:
    """The items of all parts, with a bar on a terminal that says how many of `count` there were."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not (progress and console.is_terminal)) as bar:
        shown = bar.add_task(title, total=count)
        for part in parts:
            yield from part
            bar.advance(shown, len(part))
