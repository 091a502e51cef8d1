"""From an image to its canvas, or the reason why there is none; on a thread or in a process that knows no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from belvedere.errors import UserError
from belvedere.images.cachefile import Canvas
from belvedere.images.cutting import Cutting
from belvedere.images.decode import Scale, decode_canvas, reason
from belvedere.images.items import Data, Items, Skipped
from belvedere.images.limits import set_aside
from belvedere.images.part import Part

Made = TypeVar("Made")


@dataclass(frozen=True)
class Making:
    """How canvases are made, alike for all images of a set; arguments as of `open_canvases`."""

    side: int
    channels: int
    scale: Scale
    min_side: int
    cutting: Cutting

    def __call__(self, items: Items, i: int, name: str, row: int) -> Canvas | Skipped:
        """The canvas of image i, number `row` of all.

        Raises:
            UserError: the place where all images lie is out of reach.
        """
        return or_skipped(name, lambda: self.of(items.read(i), name, row))

    def of(self, data: Data, name: str, row: int) -> Canvas | Skipped:
        """The same of an image that was read.

        Raises:
            Exception: whatever the decoder of a broken file raises.
        """
        pixels, original = decode_canvas(data, self.channels, self.scale, self.side)
        why = set_aside(original, pixels, self.side, self.min_side, self.cutting, is_part=isinstance(data, Part))
        return Skipped(name, why) if why else Canvas(row, pixels, original)


def or_skipped(name: str, make: Callable[[], Made]) -> Made | Skipped:
    """What `make` makes of an image, or why it cannot."""
    # Broken files raise whatever their decoder likes; each is set aside with its reason, and the run goes on.
    try:
        return make()
    except UserError:  # where all images lie is out of reach, which is no fault of this one
        raise
    except Exception as error:
        return Skipped(name, reason(error))
