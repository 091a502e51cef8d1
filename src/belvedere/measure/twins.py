"""Near-duplicates: images of almost equal features *and* equal perceptual hash (spec evaluation, section 0).

Features alone call two images equal that show the same kind of thing, above all those of a young network; the hash
alone calls two dark images equal. Together they name copies: the same file under two names, saved again, scaled, a
frame of a video beside the next. The hash is the average hash of 8 x 8 cells. Of 2,000 CIFAR-10 images saved again as
JPEG it stays the same for 84 % (quality 95) and 68 % (quality 75), more than the gradient hash (48, 23 %) and the DCT
hash (72, 47 %); a copy that was changed more is missed rather than an image called one that it is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch.nn import functional as F

from belvedere.images.canvases import Canvases

COSINE = 0.98
_SIDE = 8
_CHUNK = 1024

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Twins:
    """Near-duplicates, one for each image that has any.

    Attributes:
        pairs: (P, 2) int64, an image and the one most like it, ascending.
        cosines: (P,) float32 of their features.
    """

    pairs: NDArray[np.int64]
    cosines: NDArray[np.float32]


def perceptual_hashes(canvases: Canvases) -> Hashes:
    """(N,) 64 bits an image: which of 8 x 8 cells are brighter than the image's mean."""
    bits = np.empty((len(canvases), _SIDE * _SIDE), bool)
    for i in range(len(canvases)):
        gray = torch.from_numpy(canvases.pixels(i).copy()).double().mean(2)
        cells = F.adaptive_avg_pool2d(gray[None], _SIDE).flatten()
        # Half a gray level, so that rounding sets no bits in a flat image.
        bits[i] = (cells > cells.mean() + 0.5).numpy()
    hashes: Hashes = np.packbits(bits, axis=1).view(np.uint64)[:, 0]
    return hashes


def twins_within(features: Tensor, hashes: Hashes, threshold: float = COSINE) -> Twins:
    """Each image with the most similar earlier one, where it is a near-duplicate.

    Args:
        features: (N, D), in the order of `hashes`.
        threshold: cosine above which images of equal hash are near-duplicates.
    """
    return _twins(features, hashes, features, hashes, threshold, earlier=True)


def twins_between(
    queries: Tensor, query_hashes: Hashes, gallery: Tensor, gallery_hashes: Hashes, threshold: float = COSINE
) -> Twins:
    """Each query (M, D) with the most similar image of the gallery (G, D), where it is a near-duplicate."""
    return _twins(queries, query_hashes, gallery, gallery_hashes, threshold, earlier=False)


def groups_of(pairs: NDArray[np.int64], images: int) -> list[list[int]]:
    """Near-duplicates joined over common members: ascending lists of two images or more, the lowest image first."""
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(images, images))
    _, group = connected_components(links, directed=False)
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    return sorted(part.tolist() for part in parts if len(part) > 1)


def _twins(
    queries: Tensor, query_hashes: Hashes, gallery: Tensor, gallery_hashes: Hashes, threshold: float, earlier: bool
) -> Twins:
    """Only images of equal hash are compared, so it takes the time of sorting the hashes, not of all pairs."""
    query_rows, gallery_rows = _by_hash(query_hashes), _by_hash(gallery_hashes)
    pairs: list[tuple[int, int]] = []
    cosines: list[float] = []
    for key, rows in query_rows.items():
        others = gallery_rows.get(key, rows[:0])
        if len(others) < 1 + earlier:
            continue
        candidates = F.normalize(gallery[others].float(), dim=1)
        for start in range(0, len(rows), _CHUNK):
            asked = rows[start : start + _CHUNK]
            similarity = F.normalize(queries[asked].float(), dim=1) @ candidates.T
            if earlier:
                similarity[torch.from_numpy(others[None] >= asked[:, None])] = -torch.inf
            values, columns = similarity.max(1)
            for row in (values > threshold).nonzero().flatten().tolist():
                pairs.append((int(asked[row]), int(others[int(columns[row])])))
                cosines.append(float(values[row]))
    order = sorted(range(len(pairs)), key=pairs.__getitem__)
    return Twins(
        np.array([pairs[i] for i in order], np.int64).reshape(-1, 2),
        np.array([cosines[i] for i in order], np.float32),
    )


def _by_hash(hashes: Hashes) -> dict[int, NDArray[np.int64]]:
    """Ascending rows of every hash."""
    order = np.argsort(hashes, kind="stable")
    found, starts = np.unique(hashes[order], return_index=True)
    return dict(zip(found.tolist(), np.split(order, starts)[1:], strict=True))
