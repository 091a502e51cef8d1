"""When an image is too small, or a tile too empty, to be used, and when too few images are left."""

from __future__ import annotations

from collections import Counter

import numpy as np

from belvedere.errors import UserError
from belvedere.images.cutting import Cutting
from belvedere.images.decode import Pixels
from belvedere.images.files import LINKED
from belvedere.images.items import Skipped, Source

MIN_SIDE = 8
"""Images, and canvases, with a side below this many pixels are set aside."""


EMPTY, LITTLE_INK = "empty tile: one colour all over", "too little ink"
"""Why a tile is set aside that shows nothing. Nothing is broken then, so it counts for no refusal."""
_NOT_BROKEN = (EMPTY, LITTLE_INK, LINKED)
FLAT = 1.0
"""Standard deviation, of 255 levels, below which a channel is one value. Measured on tiles of 64 and 128 px: 0.0 to 0.3
in the black corners of a JPEG (skimage's `retina`), from 2.0 on in real, dim surfaces (`moon`)."""


def set_aside(
    original: tuple[int, int], canvas: Pixels, side: int, min_side: int, cutting: Cutting, is_part: bool
) -> str | None:
    """Why a decoded image is too small to be used, or a tile empty, or None if it is neither.

    Args:
        is_part: whether it was cut out of a larger one, or made of another.
    """
    if cutting.tile and is_part and (canvas.std(axis=(0, 1), dtype=np.float32) < FLAT).all():
        return EMPTY
    if canvas.mean() < 255 * cutting.min_ink:  # scaling keeps the mean of ink that is 255
        return LITTLE_INK
    if min(original) < min_side:
        return f"smaller than {min_side} px"
    if min(canvas.shape[:2]) < min_side:
        return f"smaller than {min_side} px when scaled to {2 * side} px on its long side"
    return None


def refuse_mostly_broken(source: Source, skipped: list[Skipped], fewest: int = 2) -> None:
    """Stop when more than half of the images are unusable, or fewer than `fewest` are left.

    Raises:
        UserError: with the counts and the three most frequent reasons.
    """
    broken = [item for item in skipped if item.reason not in _NOT_BROKEN]
    no_image, skipped = len(skipped) - len(broken), broken
    total = len(source) + len(source.skipped) - no_image
    usable = total - len(skipped)
    reasons = Counter(item.reason for item in skipped).most_common(3)
    told = "; ".join(
        f"{count} x {text}, as {next(item.name for item in skipped if item.reason == text)}" for text, count in reasons
    )
    if 2 * len(skipped) > total:
        raise UserError(f"{source.described}: {len(skipped)} of {total} images cannot be used: {told}")
    if usable < fewest:
        raise UserError(f"{source.described}: only {usable} usable image; at least {fewest} are needed")
