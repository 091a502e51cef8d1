"""What is known of an image before its pixels are: its header, and a rectangle of it that is read when asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from PIL import Image

Opened = Image.Image | NDArray[Any]
"""Pixels before scaling: a Pillow image, or an array [H,W] or [H,W,C]."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the head of a file tells: `size` is the upright (h, w) in px, `deep` means more than 8 bits."""

    format: str
    mode: str
    channels: int
    size: tuple[int, int]
    deep: bool

    @property
    def short_side(self) -> int:
        """The smaller of height and width, px."""
        return min(self.size)


@dataclass(frozen=True, slots=True)
class Part:
    """A rectangle of an image, upright; `header` is its own, and `load` reads its pixels."""

    header: Header
    load: Callable[[], Opened]
