"""Which images come when: global batch t is a slice of the epoch's permutation, and ranks take sub-slices of it.

The order depends on the seed and the epoch alone, so not on the number of processes, on workers or on where a run was
resumed. Canvases are fetched one step ahead on a thread; views are drawn at the step.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from belvedere.images.canvases import Canvases
from belvedere.schedules import batches
from belvedere.views.draws import permutation

# Indices of the images, and their canvases.
MicroBatch = tuple[np.ndarray, Tensor | list[Tensor]]


@dataclass(frozen=True)
class Feed:
    """The data order of a run.

    Attributes:
        canvases: all images.
        batch: images of one optimiser step, over all processes.
        seed: of the order.
        rank, world: this process and their number.
        accumulate: micro-batches a step.
    """

    canvases: Canvases
    batch: int
    seed: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass."""
        return batches(len(self.canvases), self.batch)

    def indices(self, step: int) -> np.ndarray:
        """(B,) images of the global batch of a step, in order."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = _order(self.seed, epoch, len(self.canvases))
        return order[place * self.batch : (place + 1) * self.batch]

    def micro_batches(self, step: int) -> list[np.ndarray]:
        """This process' share of a step's batch, cut into micro-batches."""
        whole = self.indices(step)
        # Processes meet in every micro-batch, so each has as many as the one with the fewest images can fill.
        parts = min(self.accumulate, len(whole) // self.world)
        return np.array_split(np.array_split(whole, self.world)[self.rank], parts)

    def stream(self, start: int, stop: int) -> Iterator[list[MicroBatch]]:
        """For each step from `start` to before `stop` its micro-batches, read one step ahead."""

        def read(step: int) -> list[MicroBatch]:
            return [(index, self.canvases.batch(index)) for index in self.micro_batches(step)]

        with ThreadPoolExecutor(1, thread_name_prefix="canvases") as pool:
            ahead = pool.submit(read, start)
            for step in range(start, stop):
                ready = ahead.result()
                ahead = pool.submit(read, min(step + 1, stop - 1))
                yield ready


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return permutation(seed, epoch, n)
