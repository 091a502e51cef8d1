"""A first pass over a set: its channels, its one depth for all images, and its mean and standard deviation."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from belvedere.errors import UserError
from belvedere.images.decode import Pixels, Scale, raw_values, read_header, reason
from belvedere.images.items import Items, Source
from belvedere.images.parallel import map_images, ordered_map
from belvedere.images.part import Header

BIT_DEPTHS = (8, 10, 12, 14, 16)
COLOUR16 = ("RGB;16", "RGBA;16")
DEPTH_SAMPLE = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Survey:
    """What the headers say: readable images by format and by mode, the channels to use, and the set's depth."""

    formats: Counter[str]
    modes: Counter[str]
    channels: int
    scale: Scale


def survey(
    source: Source, channels: int | str, workers: int | None, progress: bool, limit: int | None = None
) -> Survey:
    """Read every header, and the values of up to 1000 images deeper than 8 bits, evenly spaced over the set.

    Args:
        limit: read at most so many headers, evenly spaced over the set.

    Raises:
        UserError: no header can be read, or the images cannot be given `channels`.
    """
    rows = spread(len(source), limit or len(source)).tolist()
    found = list(map_images(header_of, source, rows, workers, "reading headers", progress))
    headers = [item for item in found if isinstance(item, Header)]
    if not headers:
        raise UserError(f"{source.described}: none of {len(found)} images can be read; {source.names[0]}: {found[0]}")
    told = list(zip(rows, found, strict=True))
    deep = [i for i, item in told if isinstance(item, Header) and item.deep]
    colour16 = [i for i, item in told if isinstance(item, Header) and item.mode in COLOUR16]
    _warn_of_lost_depth(source, colour16, workers, progress)
    return Survey(
        formats=Counter(item.format for item in headers),
        modes=Counter(item.mode for item in headers),
        channels=_channels(channels, {item.channels for item in headers}, source.described),
        scale=_scale(_extremes(source, deep, workers, progress)),
    )


def sample_sides(source: Source, limit: int = 500) -> int:
    """Median short side, in px, of at most `limit` images, evenly spaced over the set; only headers are read.

    Raises:
        UserError: not one of their headers can be read.
    """
    sample = spread(len(source), limit).tolist()
    headers = [header_of(source.items, i) for i in sample]
    sides = [item.short_side for item in headers if isinstance(item, Header)]
    if not sides:
        raise UserError(
            f"{source.described}: none of {len(sample)} sampled images can be read; "
            f"{source.names[sample[0]]}: {headers[0]}"
        )
    return int(np.median(sides))


def spread(count: int, limit: int) -> NDArray[np.int64]:
    """At most `limit` of the numbers 0..count-1, evenly spaced: a sample that no random state decides."""
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))


@dataclass(frozen=True)
class Moments:
    """Pixel count, and sum and sum of squares per channel of values 0..255."""

    count: int
    total: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, canvas: Pixels) -> Moments:
        """Moments of one canvas [h,w,C]."""
        pixels = canvas.reshape(-1, canvas.shape[2]).astype(np.float64)
        return cls(len(pixels), pixels.sum(axis=0), np.square(pixels).sum(axis=0))


def mean_and_std(moments: Sequence[Moments]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel over all pixels, as fractions of 255.

    A standard deviation below 1/255 (a constant set) is given as 1/255, so that dividing by it is safe.
    """
    count = sum(item.count for item in moments)
    mean = np.sum([item.total for item in moments], axis=0) / count
    variance = np.sum([item.squares for item in moments], axis=0) / count - mean**2
    std = np.sqrt(np.maximum(variance, 1.0))
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def header_of(items: Items, i: int, name: str = "", row: int = 0) -> Header | str:
    """The header of image i, or why it cannot be read.

    Raises:
        UserError: the place where all images lie is out of reach.
    """
    # Broken files raise whatever their decoder likes; decoding them will name the reason.
    try:
        return read_header(items.read(i))
    except UserError:  # where all images lie is out of reach, which is no fault of this one
        raise
    except Exception as error:
        return reason(error)


def _channels(asked: int | str, found: set[int], described: str) -> int:
    """Resolve "auto": 1 if all images are gray, 3 for gray and colour; other counts must agree in the whole set."""
    if found <= {1, 3}:
        if asked == "auto":
            return max(found)
        if asked in (1, 3):
            return int(asked)
    elif len(found) == 1 and asked in ("auto", *found):
        return next(iter(found))
    counts = " and ".join(str(count) for count in sorted(found))
    raise UserError(f"{described}: channels={asked}, but its images have {counts}; only 1 and 3 can be converted")


def _extremes(
    source: Source, deep: list[int], workers: int | None, progress: bool
) -> dict[str, list[tuple[float, float]]]:
    """(minimum, maximum) of sampled deep images, by kind: "integer" or "floating"."""

    def extreme(i: int) -> tuple[str, tuple[float, float]] | None:
        # An image that breaks here breaks again, and is reported, when it is decoded.
        try:
            values = raw_values(source.read(sample[i]))
        except Exception:
            return None
        values = values[np.isfinite(values)]
        kind = "floating" if values.dtype.kind == "f" else "integer"
        return (kind, (float(values.min()), float(values.max()))) if values.size else None

    sample = [deep[i] for i in spread(len(deep), DEPTH_SAMPLE)]
    found: dict[str, list[tuple[float, float]]] = {"integer": [], "floating": []}
    for item in ordered_map(extreme, len(sample), workers, "measuring depth", progress):
        if item is not None:
            found[item[0]].append(item[1])
    return found


def _scale(extremes: dict[str, list[tuple[float, float]]]) -> Scale:
    """One depth for the data set.

    Whole numbers: 0 to the largest value of the fewest bits (8, 10, 12, 14, 16) that hold the maximum, so a full 16-bit
    set is divided by 257 and a 12-bit camera in a 16-bit file does not come out black. Floats: 0..1 if they lie inside,
    0..255 if they reach at least half of it. Anything else (negative or larger values): its measured range.
    """
    default = Scale()
    return Scale(
        integer=_integer_range(extremes["integer"]) or default.integer,
        floating=_float_range(extremes["floating"]) or default.floating,
    )


def _integer_range(extremes: list[tuple[float, float]]) -> tuple[float, float] | None:
    if not extremes:
        return None
    low, high = min(item[0] for item in extremes), max(item[1] for item in extremes)
    fitting = [2.0**bits - 1 for bits in BIT_DEPTHS if high < 2**bits]
    return (0.0, fitting[0]) if low >= 0 and fitting else (low, high)


def _float_range(extremes: list[tuple[float, float]]) -> tuple[float, float] | None:
    if not extremes:
        return None
    low, high = min(item[0] for item in extremes), max(item[1] for item in extremes)
    if low >= 0 and high <= 1:
        return 0.0, 1.0
    return (0.0, 255.0) if low >= 0 and 128 <= high <= 255 else (low, high)


def _warn_of_lost_depth(source: Source, colour16: list[int], workers: int | None, progress: bool) -> None:
    """Pillow keeps the upper 8 bits of 16-bit colour; of 12-bit values in it, that leaves almost nothing."""
    sample = [colour16[i] for i in spread(len(colour16), 50)]

    def brightest(i: int) -> int:
        # As above; a broken image proves nothing, so it counts as bright.
        try:
            return int(raw_values(source.read(sample[i])).max())
        except Exception:
            return 255

    found = list(ordered_map(brightest, len(sample), workers, "measuring depth", progress))
    if found and max(found) < 16:
        _log.warning(
            "%s: 16-bit colour files such as %s use less than 1/16 of their range and come out nearly black; "
            "save them as 8-bit images, TIFF or .npy",
            source.described,
            source.names[sample[0]],
        )
