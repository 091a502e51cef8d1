"""Pages of writing as ink and nothing else, white on black, as writer retrieval prepares them.

Sauvola's threshold ("Adaptive document image binarization", Pattern Recognition 2000): a pixel is ink where it is not
above m (1 + k (s / R - 1)), with mean m and standard deviation s of the square around it, k = 0.2, and R half of the
gray levels. Stains and shadows go, because they are wider than the square; faint strokes stay. A square of 25 px is one
of the two of Raven, Matei and Fink (ICDAR 2024; spec patch_and_pretext 8), the other has 51.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from belvedere.images.decode import Pixels, Scale, decode, raw_values, read_header
from belvedere.images.items import Data, Items
from belvedere.images.part import Header, Part

WINDOW, K, R = 25, 0.2, 127.5
"""Side of the square, px; weight of the spread; the largest spread of gray levels."""


@dataclass(frozen=True)
class Binarized:
    """The images of `whole`, each a gray one of 0 and 255 that is made when its pixels are wanted."""

    whole: Items

    def read(self, i: int) -> Data:
        """Image i as a `Part` of its own size."""
        data = self.whole.read(i)
        header = read_header(data)
        ink = Header(header.format, "L", 1, header.size, deep=False)
        return Part(ink, partial(_ink_of, data, header.deep))

    def digest(self) -> str:
        """Hash of the images and of what is done to them."""
        asked = f"sauvola {WINDOW} {K} {self.whole.digest()}"
        return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def sauvola(gray: Pixels, window: int = WINDOW, k: float = K) -> Pixels:
    """(H, W) ink 255, all else 0, of dark writing in gray levels (H, W).

    Args:
        window: odd side of the square, px.
    """
    levels = gray.astype(np.float32)
    mean: NDArray[np.float32] = uniform_filter(levels, window, mode="mirror")
    square: NDArray[np.float32] = uniform_filter(levels**2, window, mode="mirror")
    spread = np.sqrt(np.maximum(square - mean**2, 0))
    ink: NDArray[np.bool_] = levels <= mean * (1 + k * (spread / R - 1))
    return ink.astype(np.uint8) * np.uint8(255)


def _ink_of(data: Data, deep: bool) -> Pixels:
    """Of one image, upright; the depth of one above 8 bits is its own, as a threshold looks at one page."""
    return sauvola(decode(data, 1, _own_scale(data) if deep else None)[..., 0])


def _own_scale(data: Data) -> Scale:
    values = raw_values(data)
    bounds = float(np.nanmin(values)), float(np.nanmax(values))
    return Scale(bounds, bounds)
