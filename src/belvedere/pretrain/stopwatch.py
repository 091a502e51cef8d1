"""Seconds that parts of a step take, also on a device that works asynchronously."""

from __future__ import annotations

import time
from types import TracebackType

import torch


class Stopwatch:
    """`with watch: ...` adds to `watch.seconds`; when it is not `running` it costs nothing and adds nothing.

    On CUDA a running watch waits for the device before and after, so only a few steps should run one.
    """

    def __init__(self, device: torch.device, running: bool) -> None:
        self.running = running
        self.seconds = 0.0
        self._device = device
        self._began = 0.0

    def __enter__(self) -> None:
        if self.running:
            self._began = self._now()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.running:
            self.seconds += self._now() - self._began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
