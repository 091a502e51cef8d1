"""The reference renderer: plain torch, functional, differentiable. It defines what every faster backend must equal.

specs/view_engine.md section 3. A view is crop, flip, colour jitter, grayscale, blur, solarize, in this order. The
operations are public, take pixels `[N, C, h, w]` in [0, 1] with one parameter an image `[N]`, and agree with
`torchvision.transforms.v2` on float images.
"""

from __future__ import annotations

from itertools import permutations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.views.params import ViewParams
from belvedere.views.slots import Interpolation, Size

# Weights of R, G, B in luma (ITU-R BT.601), as torchvision rounds them.
LUMA = (0.2989, 0.587, 0.114)
# Row k is the k-th order of (brightness 0, contrast 1, saturation 2, hue 3), lexicographic.
ORDERS = tuple(permutations(range(4)))
# Keeps hue defined for gray pixels, where it does not matter; far below one level of any chroma.
_TINY = 4e-9


# --- geometry ---------------------------------------------------------------------------------------------------------


def _kernel(t: Tensor, interpolation: Interpolation) -> Tensor:
    """The interpolation kernel at distance |t| in (widened) source pixels; bicubic with a = -1/2."""
    if interpolation == "bilinear":
        return (1 - t.abs()).clamp(min=0)
    near, far = t.abs().clamp(max=1), t.abs().clamp(1, 2)
    return ((1.5 * near - 2.5) * near) * near + 1 + ((-0.5 * far + 2.5) * far - 4) * far + 2


def resize_matrix(
    lo: Tensor, length: Tensor, out: int, source: int, interpolation: Interpolation, flip: Tensor | None = None
) -> Tensor:
    """Matrices `[..., out, source]` that crop `[lo, lo + length)` and resize it to `out` pixels, antialiased.

    `lo`, `length` (at least one pixel) and `flip` share one shape. Rows sum to 1; taps outside the box are masked,
    because torchvision crops before it resizes. Computed in `lo`'s floating dtype (float32 for integer boxes);
    gradients flow to `lo` and `length` with the mask held constant.
    """
    if not lo.is_floating_point():
        lo, length = lo.to(torch.float32), length.to(torch.float32)
    lo, length = lo[..., None, None], length[..., None, None]
    step = length / out
    row = torch.arange(out, device=lo.device, dtype=lo.dtype)
    if flip is not None:
        row = torch.where(flip[..., None], out - 1 - row, row)
    centre = lo + (row[..., None] + 0.5) * step - 0.5
    pixel = torch.arange(source, device=lo.device, dtype=lo.dtype)
    weights = _kernel((pixel - centre) / step.clamp(min=1), interpolation)
    with torch.no_grad():
        # A learned box has fractional ends: every pixel whose centre lies in it, half a pixel of slack, takes part.
        inside = (pixel > lo - 0.5) & (pixel < lo + length - 0.5)
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True)


def crop_resize(
    images: Tensor,
    top: Tensor,
    left: Tensor,
    h: Tensor,
    w: Tensor,
    size: Size,
    interpolation: Interpolation = "bicubic",
    flip: Tensor | None = None,
) -> Tensor:
    """Crop a box of each image, resize it with antialiasing to `size` (h, w), mirror it where `flip`.

    Args:
        images: `[N, C, H, W]` in [0, 1]; boxes (pixels, `[N]`) lie inside.

    Returns:
        `[N, C, *size]` in [0, 1] (bicubic overshoot is cut).
    """
    rows = resize_matrix(top, h, size[0], images.shape[2], interpolation).to(images.dtype)
    columns = resize_matrix(left, w, size[1], images.shape[3], interpolation, flip).to(images.dtype)
    return (rows[:, None] @ images @ columns[:, None].mT).clamp(0, 1)


# --- colour -----------------------------------------------------------------------------------------------------------


def _per_image(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.to(x.dtype)[:, None, None, None]


def luma(x: Tensor) -> Tensor:
    """Gray value `[N, 1, h, w]`: weighted for three channels, the plain mean of any other number of them."""
    if x.shape[1] != 3:
        return x.mean(1, keepdim=True)
    red, green, blue = x.chunk(3, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor [N]` >= 0 (1 = off)."""
    return (x * _per_image(factor, x)).clamp(0, 1)


def contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from (or to) the image's own mean gray by `factor [N]` >= 0 (1 = off)."""
    c = _per_image(factor, x)
    mean = luma(x).mean((2, 3), keepdim=True)
    return (c * x + (1 - c) * mean).clamp(0, 1)


def saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from (or to) each pixel's gray by `factor [N]` >= 0 (1 = off)."""
    s = _per_image(factor, x)
    return (s * x + (1 - s) * luma(x)).clamp(0, 1)


def hue(x: Tensor, turns: Tensor) -> Tensor:
    """Rotate the HSV hue by `turns [N]` in [-.5, .5] (0 = off): exact, without branches. Three channels only.

    Raises:
        ValueError: not three channels.
    """
    if x.shape[1] != 3:
        raise ValueError(f"hue needs 3 channels, got {x.shape[1]}")
    red, green, blue = x.chunk(3, dim=1)
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = value - low
    # copysign, not sign: green equals blue in every clipped pixel.
    sextant = torch.copysign(value + green + blue - red - 2 * low, green - blue) / (chroma + _TINY)
    sextant = sextant + 6 * _per_image(turns, x)
    sextant = sextant - 6 * torch.round(sextant / 6)
    offset = torch.tensor([0.0, -2.0, 2.0], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)
    return value - chroma * (2 - ((sextant + offset).abs() - 3).abs()).clamp(0, 1)


def grayscale(x: Tensor) -> Tensor:
    """Every channel replaced by the gray value."""
    return luma(x).expand_as(x)


def jitter(x: Tensor, params: ViewParams, slot: int) -> Tensor:
    """Brightness, contrast, saturation and hue in each image's own order, where its jitter fired."""
    orders = torch.tensor(ORDERS, device=x.device)[params.order[slot].long()]
    for place in range(4):
        now = torch.where(params.jitter[slot], orders[:, place], -1)
        changed = [brightness(x, params.brightness[slot]), contrast(x, params.contrast[slot])]
        if x.shape[1] == 3:
            changed += [saturation(x, params.saturation[slot]), hue(x, params.hue[slot])]
        for operation, y in enumerate(changed):
            x = torch.where(_per_image(now == operation, x).bool(), y, x)
    return x


# --- blur and solarize ------------------------------------------------------------------------------------------------


def blur_radius(sigma: Tensor, shape: Size) -> Tensor:
    """Each image's own kernel radius `[N]`: three sigma, at most what reflection at the border allows."""
    return torch.ceil(3 * sigma).long().clamp(max=min(shape) - 1)


def blur_weights(sigma: Tensor, radius: Tensor, widest: int) -> Tensor:
    """Normalised kernel weights `[N, widest + 1]` of the distances 0..widest, 0 beyond each image's radius."""
    k = torch.arange(widest + 1, device=sigma.device)
    weights = torch.exp(-(k**2) / (2 * sigma.clamp(min=1e-3)[:, None] ** 2)) * (k <= radius[:, None])
    return weights / (2 * weights.sum(1, keepdim=True) - weights[:, :1])


def gaussian_blur(
    x: Tensor, sigma: Tensor, radius: int | None = None, border: Literal["reflect", "zeros"] = "reflect"
) -> Tensor:
    """Separable Gaussian blur with `sigma [N]` in pixels (0 = off).

    Args:
        radius: one kernel radius for all images (SimCLR's own blur); each image's three sigma if not given.
        border: reflected pixels, or zeros (SimCLR).

    Raises:
        ValueError: a reflected border wider than the image allows.
    """
    height, width = x.shape[2:]
    if radius is not None and border == "reflect" and radius >= min(height, width):
        raise ValueError(f"blur radius {radius} needs images larger than {height}x{width} for a reflected border")
    radii = blur_radius(sigma, (height, width)) if radius is None else torch.full_like(sigma, radius).long()
    widest = radius if radius is not None else min(int(radii.max()), min(height, width) - 1)
    weights = blur_weights(sigma, radii, widest).to(x.dtype)
    mode = "reflect" if border == "reflect" else "constant"
    for axis, extent in ((2, height), (3, width)):
        pad = (0, 0, widest, widest) if axis == 2 else (widest, widest, 0, 0)
        padded = F.pad(x, pad, mode=mode)
        x = sum(
            (
                _per_image(weights[:, abs(k)], x) * padded.narrow(axis, k + widest, extent)
                for k in range(-widest, widest + 1)
            ),
            torch.zeros_like(x),
        )
    return x


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the pixels at or above `threshold [N]` in [0, 1] (above 1 = off)."""
    # Half a thousandth of a level of slack, so that level 128 is inverted in float32 as it is in uint8.
    return torch.where(x >= _per_image(threshold, x) - 2e-6, 1 - x, x)


# --- the whole view ---------------------------------------------------------------------------------------------------


def geometry(images: Tensor, params: ViewParams, slot: int) -> Tensor:
    """Crop, resize and flip one slot: uint8 canvases `[N, H, W, C]` to `[N, C, h, w]` in [0, 1].

    float32, or float64 when the box is.
    """
    dtype = torch.float64 if params.top.dtype == torch.float64 else torch.float32
    return crop_resize(
        images.movedim(-1, 1).to(dtype) / 255,
        params.top[slot],
        params.left[slot],
        params.h[slot],
        params.w[slot],
        params.size[slot],
        params.interpolation[slot],
        params.flip[slot],
    )


def colour(x: Tensor, params: ViewParams, slot: int) -> Tensor:
    """Jitter, grayscale, blur and solarize one slot, `[N, C, h, w]` in [0, 1] to the same."""
    x = jitter(x, params, slot)
    if x.shape[1] == 3:
        x = torch.where(_per_image(params.gray[slot], x).bool(), grayscale(x), x)
    return solarize(gaussian_blur(x, params.sigma[slot]), params.solarize[slot])
