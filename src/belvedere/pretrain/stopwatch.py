"""Seconds that parts of a step take, also on a device that works asynchronously."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from types import TracebackType

import torch


class Stopwatch:
    """`with watch: ...` measures one part; `read` gives the seconds of all parts since the last reading.

    On CUDA the parts are timed on the device itself, so nothing waits for it before `read`.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._began = 0.0
        self._events: list[tuple[torch.Event, torch.Event]] = []

    def __enter__(self) -> None:
        if self._cuda:
            self._events.append((torch.Event("cuda", enable_timing=True), torch.Event("cuda", enable_timing=True)))
            self._events[-1][0].record()
        self._began = time.perf_counter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._seconds += time.perf_counter() - self._began
        if self._cuda:
            self._events[-1][1].record()

    def read(self) -> float:
        """Seconds since the last reading; waits until the device has done the last part."""
        seconds, self._seconds = self._seconds, 0.0
        events, self._events = self._events, []
        if events:
            events[-1][1].synchronize()
            seconds = sum(start.elapsed_time(end) for start, end in events) / 1000
        return seconds


class Laps:
    """Stopwatches by name: `with laps("views"): ...`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._watches: dict[str, Stopwatch] = {}

    def __call__(self, name: str) -> AbstractContextManager[None]:
        """The stopwatch of that name."""
        return self._watches.setdefault(name, Stopwatch(self._device))

    def read(self) -> dict[str, float]:
        """Seconds by name since the last reading."""
        return {name: watch.read() for name, watch in self._watches.items()}
