"""When an image is too small to be used, and when too few images are left."""

from __future__ import annotations

from collections import Counter

from belvedere.errors import UserError
from belvedere.images.decode import Pixels
from belvedere.images.source import Skipped, Source

MIN_SIDE = 8
"""Images, and canvases, with a side below this many pixels are set aside."""


def set_aside(original: tuple[int, int], canvas: Pixels, side: int, min_side: int) -> str | None:
    """Why a decoded image is too small to be used, or None if it is not."""
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
    total = len(source) + len(source.skipped)
    usable = total - len(skipped)
    reasons = Counter(item.reason for item in skipped).most_common(3)
    told = "; ".join(
        f"{count} x {text}, as {next(item.name for item in skipped if item.reason == text)}" for text, count in reasons
    )
    if 2 * len(skipped) > total:
        raise UserError(f"{source.described}: {len(skipped)} of {total} images cannot be used: {told}")
    if usable < fewest:
        raise UserError(f"{source.described}: only {usable} usable image; at least {fewest} are needed")
