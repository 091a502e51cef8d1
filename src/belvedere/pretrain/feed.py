"""Which images come when: global batch t is a slice of the epoch's permutation, and ranks take sub-slices of it.

The order depends on the seed and the epoch alone, so not on the number of processes, on workers or on where a run was
resumed. Canvases are fetched one step ahead on a thread; views are drawn at the step. A set that fits lies on a CUDA
device whole; of others each batch is one tensor in pinned memory, copied while the device works on the step before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from belvedere.images.canvases import Canvases
from belvedere.schedules import batches
from belvedere.views.draws import permutation
from belvedere.views.params import send
from belvedere.views.render import padded

CPU = torch.device("cpu")
# Canvases that are read together on their way to a device.
READ_AT_ONCE = 4096

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
        device: which images are fetched for.
        room: bytes that the set may take there, to be read once; 0 = it stays where it is.
    """

    canvases: Canvases
    batch: int
    seed: int
    rank: int = 0
    world: int = 1
    accumulate: int = 1
    device: torch.device = CPU
    room: int = 0

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

        resident = on_device(self.canvases, self.device, self.room) if self.room else None
        copies = Copies(self.device) if self.device.type == "cuda" and resident is None else None

        def read(step: int) -> list[MicroBatch]:
            return [(index, self._images(index, resident, copies)) for index in self.micro_batches(step)]

        with ThreadPoolExecutor(1, "canvases", _work_for, (self.device,)) as pool:
            ahead = pool.submit(read, start)
            for step in range(start, stop):
                ready = ahead.result()
                if copies is not None:
                    copies.hand_over([images for _, images in ready])
                ahead = pool.submit(read, min(step + 1, stop - 1))
                yield ready

    def _images(self, index: np.ndarray, resident: Tensor | None, copies: Copies | None) -> Tensor | list[Tensor]:
        if resident is not None:
            return resident.index_select(0, send(torch.as_tensor(index), self.device))
        images = self.canvases.batch(index)
        return images if copies is None else copies.begin(padded(images))


class Copies:
    """Copies to a CUDA device on a stream of their own, beside the device's work."""

    def __init__(self, device: torch.device) -> None:
        """Make the stream."""
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def begin(self, images: Tensor) -> Tensor:
        """The images on the device, once what is handed over has been waited for there."""
        with torch.cuda.stream(self.stream):
            return send(images, self.stream.device)

    def hand_over(self, batch: list[Tensor | list[Tensor]]) -> None:
        """Let the device's main stream wait for the copies begun so far, and keep their memory until it is done."""
        main = torch.cuda.current_stream(self.stream.device)
        main.wait_stream(self.stream)
        for images in batch:
            assert isinstance(images, Tensor)
            images.record_stream(main)


def _work_for(device: torch.device) -> None:
    """Pin memory for this device: a thread does so for the first one unless it is told."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def on_device(canvases: Canvases, device: torch.device, room: int) -> Tensor | None:
    """All canvases `[N, H, W, C]` on a device, or None where they take more than `room` bytes.

    Smaller ones lie in the upper left corner; a view never reaches the rest.
    """
    height, width = canvases.sizes.max(0).tolist()
    if len(canvases) * height * width * canvases.channels > room:
        return None
    whole = torch.zeros(len(canvases), height, width, canvases.channels, dtype=torch.uint8, device=device)
    for start in range(0, len(canvases), READ_AT_ONCE):
        some = padded(canvases.batch(np.arange(start, min(start + READ_AT_ONCE, len(canvases)))))
        whole[start : start + len(some), : some.shape[1], : some.shape[2]] = some
    return whole


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> np.ndarray:
    return permutation(seed, epoch, n)
