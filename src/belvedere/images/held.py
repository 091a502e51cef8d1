"""Values that several threads are about to read again: decoded images, strips of files."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any

LIMIT = (256 + 32 * (os.cpu_count() or 1)) * 2**20
"""Bytes: for each thread the 16 tiles of 512 px that it takes at once, twice, and the image that all are busy with."""
FEWEST = 2
"""Values that stay whatever their size, since at the border of two large images threads need both."""


class Held:
    """The values that were asked for last, up to `limit` bytes; each is made once, however many threads ask for it."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._lock = Lock()
        self._values: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._bytes: dict[Hashable, int] = {}

    def get(self, key: Hashable, make: Callable[[], tuple[Any, int]]) -> Any:
        """The value of `key`; `make` returns it with its size in bytes, and what `make` raises is raised here."""
        with self._lock:
            future = self._values.get(key)
            if future is not None:
                self._values.move_to_end(key)
            else:
                mine = self._values[key] = Future()
        if future is not None:
            return future.result()
        try:
            value, size = make()
        except BaseException as error:
            with self._lock:
                del self._values[key]
            mine.set_exception(error)
            raise
        mine.set_result(value)
        with self._lock:
            self._bytes[key] = size
            self._shrink()
        return value

    def _shrink(self) -> None:
        """Let go of the values that were not asked for longest; those still being made stay."""
        made = [key for key in self._values if key in self._bytes]
        for key in made[:-FEWEST]:
            if sum(self._bytes.values()) <= self.limit:
                break
            del self._values[key], self._bytes[key]
