"""Video object segmentation on DAVIS-2017 by label propagation, as DINO does it (arXiv:2104.14294, section 4.2.2).

Nothing is trained: the first frame's mask is carried on from frame to frame by the similarity of patch features (Jabri
et al., arXiv:2006.14613; spec evaluation 2.11). A target patch takes the labels of the patches most like it in the
first frame and the last few, within a square neighbourhood:

    affinity(source, target) = exp(cosine / T) within the neighbourhood, else 0; all but the k largest of a target are 0
    label(target) = sum over sources of affinity x label(source) / sum over sources of affinity

Soft labels are carried on, not their arg-max. Scores are those of DAVIS (Perazzi et al., CVPR 2016; Pont-Tuset et al.,
arXiv:1704.00675): J is the intersection over union of an object's region, F joins precision and recall of its
boundary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor
from torch.nn import functional as F

Mask = NDArray[np.bool_]
CONTEXT, KEPT, RADIUS, TEMPERATURE = 7, 5, 12, 0.1
# Of the image's diagonal: how far a boundary may be off.
BOUNDARY = 0.008
VOID = 255
"""Object number of pixels that are not scored."""


def propagate(
    features: Iterable[Tensor],
    first: Tensor,
    *,
    context: int = CONTEXT,
    kept: int = KEPT,
    radius: int = RADIUS,
    temperature: float = TEMPERATURE,
) -> Iterator[Tensor]:
    """Carry the labels of the first frame through a video; gives (C, h, w) float32 soft labels of every later frame.

    Args:
        features: (D, h, w) patch features of every frame in order, the first included; read one at a time.
        first: (C, h, w) labels of the first frame's patches, see `patch_labels`.
        context: how many of the last frames are looked at beside the first one.
        kept: sources of a target patch; more where several are equally like it.
        radius: of the neighbourhood, in patches.
        temperature: T.
    """
    frames = iter(features)
    near = _neighbourhood(first.shape[-2], first.shape[-1], radius).to(first.device)
    anchor = _unit(next(frames)), first.float().flatten(1)
    last: deque[tuple[Tensor, Tensor]] = deque(maxlen=context)
    for frame in frames:
        target = _unit(frame)
        seen = [anchor, *last]
        labels = _carry(
            torch.stack([x for x, _ in seen]), torch.cat([y for _, y in seen], 1), target, near, kept, temperature
        )
        last.append((target, labels))
        yield labels.view_as(first)


def _carry(sources: Tensor, labels: Tensor, target: Tensor, near: Tensor, kept: int, temperature: float) -> Tensor:
    """(C, T) labels of the target: of sources (n, D, T) with labels (C, n T), target (D, T), `near` (T, T)."""
    affinity = (torch.einsum("nds,dt->nst", sources, target) / temperature).exp() * near
    affinity = affinity.flatten(0, 1)
    least = affinity.topk(min(kept, len(affinity)), dim=0).values[-1]
    affinity = affinity * (affinity >= least)
    return labels @ (affinity / affinity.sum(0))


def _unit(frame: Tensor) -> Tensor:
    return F.normalize(frame.float().flatten(1), dim=0)


def _neighbourhood(h: int, w: int, radius: int) -> Tensor:
    """(h w, h w): is one patch at most `radius` rows and columns from the other?"""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    y, x = y.flatten(), x.flatten()
    return ((y[:, None] - y).abs() <= radius) & ((x[:, None] - x).abs() <= radius)


def patch_labels(mask: NDArray[np.uint8], grid: tuple[int, int], objects: int) -> Tensor:
    """(objects + 1, h, w) float32 one-hot labels of a mask (H, W) on a grid of patches, the nearest pixel of each.

    Class 0 is the background, objects are numbered from 1; void pixels count as background.
    """
    known = torch.from_numpy(np.where(mask == VOID, 0, mask))
    small = F.interpolate(known[None, None].float(), grid, mode="nearest-exact")[0, 0].long()
    return F.one_hot(small, objects + 1).permute(2, 0, 1).float()


def to_mask(labels: Tensor, patch: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) objects of soft labels (C, h, w): every patch becomes patch x patch pixels, then the nearest of `size`.

    Every label is stretched to [0, 1] first, so that a small object does not lose to the background.
    """
    fine = F.interpolate(labels[None].float(), scale_factor=patch, mode="bilinear", align_corners=False)[0]
    low, high = fine.amin((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
    stretched = torch.where(high > low, (fine - low) / (high - low), fine)
    whole = stretched.argmax(0).float()[None, None]
    return F.interpolate(whole, size, mode="nearest-exact")[0, 0].byte().cpu().numpy()


def region(found: Mask, truth: Mask) -> float:
    """J: intersection over union of two masks (H, W); 1 where both are empty."""
    union = (found | truth).sum()
    return float((found & truth).sum() / union) if union else 1.0


def boundary(found: Mask, truth: Mask) -> float:
    """F: harmonic mean of precision and recall of the boundary of a mask (H, W), off by ceil(0.008 diagonals) at most.

    Two masks without a boundary agree; where only one has one, the score is 0.
    """
    reach = math.ceil(BOUNDARY * math.hypot(*truth.shape))
    mine, its = _edges(found), _edges(truth)
    if not mine.any() or not its.any():
        return float(mine.any() == its.any())
    precision = (mine & binary_dilation(its, _disk(reach))).sum() / mine.sum()
    recall = (its & binary_dilation(mine, _disk(reach))).sum() / its.sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _edges(mask: Mask) -> Mask:
    """Pixels that differ from the one to the right, below, or right below; the border continues the mask."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    edges: Mask = (mask != padded[:-1, 1:]) | (mask != padded[1:, :-1]) | (mask != padded[1:, 1:])
    return edges


def _disk(radius: int) -> Mask:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x**2 + y**2 <= radius**2, bool)


@dataclass(frozen=True)
class Statistics:
    """Of one object's scores over time: their mean, the share above 0.5, and how far the last quarter falls short."""

    mean: float
    recall: float
    decay: float


def statistics(scores: NDArray[np.float64]) -> Statistics:
    """DAVIS' statistics of scores (T,), the first and the last frame of the video left out."""
    # Quarters share the frame at which they meet; the added rounding is the benchmark's.
    ends = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(int) - 1
    decay = scores[ends[0] : ends[1] + 1].mean() - scores[ends[3] : ends[4] + 1].mean()
    return Statistics(float(scores.mean()), float((scores > 0.5).mean()), float(decay))


@dataclass(frozen=True)
class Scores:
    """`region` and `boundary`: (objects, frames) J and F, the first and the last frame left out."""

    region: NDArray[np.float64]
    boundary: NDArray[np.float64]

    @property
    def mean(self) -> float:
        """(J&F)_m: the mean of the two means."""
        return float((self.region.mean() + self.boundary.mean()) / 2)


def score(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> Scores:
    """J and F of every object of a video.

    Args:
        found, truth: (T, H, W) object numbers, 0 the background; objects are those of the first true mask. Pixels
            that are `VOID` in the truth belong to none.

    Raises:
        ValueError: for a video of fewer than three frames, which has nothing to score.
    """
    if len(truth) < 3:
        raise ValueError("a video needs three frames: the first and the last one are not scored")
    found, truth = (np.where(truth == VOID, 0, masks) for masks in (found, truth))
    inner = range(1, len(truth) - 1)
    objects = [number for number in np.unique(truth[0]) if number > 0]
    regions = [[region(found[t] == o, truth[t] == o) for t in inner] for o in objects]
    boundaries = [[boundary(found[t] == o, truth[t] == o) for t in inner] for o in objects]
    return Scores(np.array(regions), np.array(boundaries))
