"""Drawing parameters: torchvision's law exactly, for all slots and images of a batch in one vectorised call.

specs/view_engine.md section 2. The boxes follow `RandomResizedCrop.get_params`, the colours `ColorJitter` inside
`RandomApply`, the rest the independent coin flips of the papers (specs/objectives.md 1.6).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from belvedere.views.draws import streams, unit, words
from belvedere.views.params import ViewParams
from belvedere.views.slots import SOLARIZE_THRESHOLD, Slot

PROPOSALS = 10
SOLARIZE_OFF = 2.0

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


def sample_views(slots: Sequence[Slot], index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
    """Draw the parameters of every view of a batch.

    Args:
        slots: V laws; a draw depends on the slot's name, so renaming a slot redraws it and reordering does not.
        index: `[N]` identities of the images in the data set.
        sizes: `[N, 2]` valid canvas sizes (h, w) in pixels; boxes never leave them.

    Returns:
        The record of V x N views, on the CPU.

    Raises:
        ValueError: no slot, a `sizes` that is not `[N, 2]`, or a canvas without pixels.
    """
    images = np.asarray(index, dtype=np.int64)
    canvas = np.asarray(sizes, dtype=np.int64)
    if not slots or canvas.shape != (len(images), 2) or (canvas < 1).any():
        raise ValueError("sample_views needs at least one slot and sizes [N, 2] of one pixel or more")
    keys = streams(seed, epoch, images, [f"view/{slot.name}" for slot in slots])
    top, left, h, w = draw_boxes(slots, keys, canvas)
    draws = np.moveaxis(unit(words(keys, 11, start=2 * PROPOSALS + 2)), -1, 0)
    flip, jitter, order, *factors, gray, blur, sigma, solarize = draws

    strength = _column(slots, "jitter")
    jittered = jitter < _column(slots, "jitter_p")
    brightness, contrast, saturation = (
        np.where(jittered, _between(u, np.maximum(0, 1 - x), 1 + x), 1.0)
        for u, x in zip(factors[:3], strength[:3], strict=True)
    )
    hue = np.where(jittered, _between(factors[3], -strength[3], strength[3]), 0.0)
    blurred = np.where(blur < _column(slots, "blur_p"), _between(sigma, *_column(slots, "sigma")), 0.0)
    threshold = np.where(solarize < _column(slots, "solarize_p"), SOLARIZE_THRESHOLD, SOLARIZE_OFF)

    return ViewParams(
        slots=tuple(slot.name for slot in slots),
        size=tuple(slot.size for slot in slots),
        interpolation=tuple(slot.interpolation for slot in slots),
        seed=seed,
        epoch=epoch,
        index=torch.from_numpy(images.copy()),
        src_h=_tensor(canvas[:, 0], torch.int32),
        src_w=_tensor(canvas[:, 1], torch.int32),
        top=_tensor(top, torch.int32),
        left=_tensor(left, torch.int32),
        h=_tensor(h, torch.int32),
        w=_tensor(w, torch.int32),
        flip=torch.from_numpy(flip < _column(slots, "flip")),
        jitter=torch.from_numpy(jittered),
        order=_tensor(np.floor(order * 24), torch.uint8),
        brightness=_tensor(brightness, torch.float32),
        contrast=_tensor(contrast, torch.float32),
        saturation=_tensor(saturation, torch.float32),
        hue=_tensor(hue, torch.float32),
        gray=torch.from_numpy(gray < _column(slots, "gray_p")),
        sigma=_tensor(blurred, torch.float32),
        solarize=_tensor(threshold, torch.float32),
        key=torch.from_numpy(keys.view(np.int64)),
    )


def whole_views(slot: Slot, index: ArrayLike, sizes: ArrayLike) -> ViewParams:
    """Whole images at a slot's size, neither flipped nor recoloured: one view an image, under the slot's name.

    Arguments and errors are those of `sample_views`.
    """
    still = replace(slot, flip=0.0, jitter_p=0.0, gray_p=0.0, blur_p=0.0, solarize_p=0.0)
    params = sample_views([still], index, sizes, epoch=0, seed=0)
    corner = torch.zeros_like(params.top)
    return replace(
        params, top=corner, left=corner, h=params.src_h.expand_as(params.h), w=params.src_w.expand_as(params.w)
    )


def draw_boxes(
    slots: Sequence[Slot], keys: NDArray[np.uint64], canvas: Integers
) -> tuple[Integers, Integers, Integers, Integers]:
    """Crop boxes top, left, h, w, `[V, N]`: the first draws of the streams `keys [V, N]`.

    `canvas` holds the images' sizes `[N, 2]` (h, w).
    """
    draws = unit(words(keys, 2 * PROPOSALS + 2))
    areas, ratios = draws[..., :PROPOSALS], draws[..., PROPOSALS : 2 * PROPOSALS]
    h, w, fits = _boxes(areas, ratios, canvas, _column(slots, "scale"), _column(slots, "ratio"))
    spare_y, spare_x = canvas[:, 0] - h, canvas[:, 1] - w
    top = np.where(fits, np.floor(draws[..., -2] * (spare_y + 1)), spare_y // 2)
    left = np.where(fits, np.floor(draws[..., -1] * (spare_x + 1)), spare_x // 2)
    return top.astype(np.int64), left.astype(np.int64), h, w


def _boxes(
    area: Floats, log_ratio: Floats, canvas: Integers, scale: Floats, ratio: Floats
) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Heights, widths and whether a proposal fitted, `[V, N]`: the first of ten that fits, else the widest legal ratio.

    `area` and `log_ratio` are uniform draws `[V, N, 10]`; `scale` and `ratio` are (low, high) columns `[2, V, 1]`.
    """
    height, width = canvas[:, 0], canvas[:, 1]
    pixels = _between(area, scale[0][..., None], scale[1][..., None]) * (height * width)[:, None]
    shape = np.exp(_between(log_ratio, np.log(ratio[0])[..., None], np.log(ratio[1])[..., None]))
    w = np.rint(np.sqrt(pixels * shape)).astype(np.int64)
    h = np.rint(np.sqrt(pixels / shape)).astype(np.int64)
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.argmax(-1)[..., None]
    chosen_h, chosen_w = (np.take_along_axis(side, first, -1)[..., 0] for side in (h, w))

    found = fits.any(-1)
    whole_ratio = width / height
    narrow, wide = whole_ratio < ratio[0], whole_ratio > ratio[1]
    fallback_h = np.where(narrow, np.maximum(1, np.rint(width / ratio[0])), height)
    fallback_w = np.where(wide, np.maximum(1, np.rint(height * ratio[1])), width)
    return (
        np.where(found, chosen_h, fallback_h).astype(np.int64),
        np.where(found, chosen_w, fallback_w).astype(np.int64),
        found,
    )


def _column(slots: Sequence[Slot], name: str) -> Floats:
    """A setting of every slot, `[V, 1]`, or `[K, V, 1]` when it has K parts."""
    return np.array([getattr(slot, name) for slot in slots], dtype=np.float64).T[..., None]


def _between(u: Floats, low: Floats, high: Floats) -> Floats:
    return low + u * (high - low)


def _tensor(values: NDArray[np.generic], dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)
