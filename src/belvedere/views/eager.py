"""The faster renderer in plain torch, CPU or CUDA: equal to `reference.py`, several times quicker (specs/view_engine.md
3.4).

What makes it quick: views that share an order of colour operations are processed together, in place, in chunks that
stay in cache; only the views an operation concerns are touched; small images are resized by batched matrix products,
large ones by torch's native uint8 kernel on channels-last storage. Pixels are float32 levels 0..255 until they are
normalised.

No gradients. Host decisions are taken from the record on the CPU, so CUDA is never waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.views.params import ViewParams, send
from belvedere.views.reference import LUMA, ORDERS, blur_radius, blur_weights, resize_matrix

# Dense products cost source x view pixels, the native kernel a fixed ~25 us a view: measured even near these sides.
DENSE_VIEW, DENSE_SOURCE = 48, 64
# Pixels of one chunk: with its scratch planes it stays in a core's cache. A GPU wants large launches instead.
CHUNK_CPU, CHUNK_CUDA = 1 << 16, 1 << 24

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


# --- geometry ---------------------------------------------------------------------------------------------------------


def geometry(images: Tensor | Sequence[Tensor], params: ViewParams, slot: int, out: Tensor) -> None:
    """Crop, resize and flip one slot into `out [N, C, h, w]`, in levels 0..255.

    `images` are uint8 canvases `[N, H, W, C]`, or a list of `[h, w, C]`. Which way a view takes depends on its own
    source and size, never on the batch around it.
    """
    largest = max(params.size[slot])
    if out.is_cuda or params.top.is_floating_point():
        dense = torch.ones_like(params.src_h, dtype=torch.bool)
    else:
        dense = (torch.maximum(params.src_h, params.src_w) <= DENSE_SOURCE) & (largest <= DENSE_VIEW)
    # A chunk's weights and half-resized images stay in cache as well.
    side = int(torch.maximum(params.src_h, params.src_w).max())
    chunk = max(1, (CHUNK_CUDA if out.is_cuda else CHUNK_CPU) // (largest * side))
    for some in torch.split(dense.nonzero()[:, 0], chunk):
        if len(some):
            _dense(_stack(images, some, params), params, slot, some, out)
    _resized(images, params, slot, (~dense).nonzero()[:, 0].tolist(), out)


def _stack(images: Tensor | Sequence[Tensor], which: Tensor, params: ViewParams) -> Tensor:
    """The chosen canvases as one tensor, padded to the largest; boxes never reach the padding."""
    if isinstance(images, Tensor):
        height, width = int(params.src_h[which].max()), int(params.src_w[which].max())
        return images.index_select(0, send(which, images.device))[:, :height, :width]
    chosen_images = [images[i] for i in which.tolist()]
    height, width = (max(image.shape[axis] for image in chosen_images) for axis in (0, 1))
    padded = torch.zeros(len(which), height, width, chosen_images[0].shape[2], dtype=torch.uint8)
    for canvas, image in zip(padded, chosen_images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    return padded


def _dense(canvases: Tensor, params: ViewParams, slot: int, which: Tensor, out: Tensor) -> None:
    """Two batched matrix products a view, `rows @ image @ columns^T`."""
    size, kind = params.size[slot], params.interpolation[slot]
    count, height, width, channels = canvases.shape
    # Weights of one row sum to 1 only within rounding (10 bits with TF32): centred pixels keep that error small.
    centre = 128.0 if canvases.is_cuda else 0.0
    box = torch.stack([params.top[slot], params.h[slot], params.left[slot], params.w[slot], params.flip[slot]])
    box = box[:, which].to(torch.float32)
    top, h, left, w, flip = send(box, canvases.device)
    planar = canvases.permute(0, 3, 1, 2).contiguous().to(torch.float32).sub_(centre)
    across = resize_matrix(left, w, size[1], width, kind, flip.bool())
    wide = torch.bmm(planar.view(count, channels * height, width), across.mT).view(count, channels, height, size[1])
    down = resize_matrix(top, h, size[0], height, kind)
    view = torch.matmul(down[:, None], wide).add_(centre).clamp_(0, 255)
    out.index_copy_(0, send(which, out.device), view)


def _resized(
    images: Tensor | Sequence[Tensor], params: ViewParams, slot: int, which: Sequence[int], out: Tensor
) -> None:
    """torch's antialiased uint8 resize, one view at a time: rounds to whole levels, 5x faster than in float32."""
    size, kind = params.size[slot], params.interpolation[slot]
    boxes = torch.stack([params.top[slot], params.left[slot], params.h[slot], params.w[slot], params.flip[slot]], 1)
    for i, (top, left, h, w, flip) in zip(which, boxes[which].tolist(), strict=True):
        crop = images[i][top : top + h, left : left + w].permute(2, 0, 1)[None]
        view = F.interpolate(crop, size=size, mode=kind, antialias=True)[0]
        out[i].copy_(view.flip(-1) if flip else view)


# --- colour -----------------------------------------------------------------------------------------------------------


def colour(pixels: Tensor, params: ViewParams, slots: Sequence[int]) -> None:
    """Jitter, grayscale, blur and solarize all views of some slots in place.

    `pixels [len(slots) * N, C, h, w]` in levels, slot after slot; `params` on the CPU.
    """
    record = {name: getattr(params, name)[list(slots)].flatten() for name in _USED}
    packed = send(torch.stack([record[name].to(torch.float32) for name in _FACTORS]), pixels.device)
    factors = dict(zip(_FACTORS, packed[..., None, None, None], strict=True))

    for rank, order in enumerate(ORDERS):
        jittered = record["jitter"] & (record["order"] == rank)
        for x, at in _chunks(pixels, jittered):
            _jitter(x, order, {name: factor.index_select(0, at) for name, factor in factors.items()})
    if pixels.shape[1] == 3:
        for x, _ in _chunks(pixels, record["gray"]):
            x.copy_(_luma(x).expand_as(x))
    radius = blur_radius(record["sigma"], (pixels.shape[2], pixels.shape[3]))
    for r in range(1, int(radius.max()) + 1):
        for x, at in _chunks(pixels, (record["sigma"] > 0) & (radius == r)):
            _blur(x, factors["sigma"].index_select(0, at).flatten(), r)
    for x, at in _chunks(pixels, record["solarize"] <= 1):
        _solarize(x, factors["solarize"].index_select(0, at))


_FACTORS = ("brightness", "contrast", "saturation", "hue", "sigma", "solarize")
_USED = ("jitter", "order", "gray", *_FACTORS)


def _chunks(pixels: Tensor, concerned: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Copies of the views where `concerned [M]` and their positions, a cache-sized chunk at a time.

    What the caller changes in a chunk is put back into `pixels`.
    """
    budget = CHUNK_CUDA if pixels.is_cuda else CHUNK_CPU
    for positions in torch.split(concerned.nonzero()[:, 0], max(1, budget // pixels[0].numel())):
        if len(positions):
            at = send(positions, pixels.device)
            chunk = pixels.index_select(0, at)
            yield chunk, at
            pixels.index_copy_(0, at, chunk)


def _jitter(x: Tensor, order: Sequence[int], factors: dict[str, Tensor]) -> None:
    for operation in order:
        if operation == BRIGHTNESS:
            x.mul_(factors["brightness"]).clamp_(max=255)
        elif operation == CONTRAST:
            means = x.mean((2, 3), keepdim=True)
            mean = _luma(means) if x.shape[1] == 3 else means.mean(1, keepdim=True)
            x.mul_(factors["contrast"]).add_((1 - factors["contrast"]) * mean).clamp_(0, 255)
        elif x.shape[1] == 3 and operation == SATURATION:
            gray = _luma(x).mul_(1 - factors["saturation"])
            x.mul_(factors["saturation"]).add_(gray).clamp_(0, 255)
        elif x.shape[1] == 3 and operation == HUE:
            _hue(x, factors["hue"])


def _luma(x: Tensor) -> Tensor:
    """Gray value `[m, 1, h, w]` of three channels, a new tensor."""
    red, green, blue = x.chunk(3, dim=1)
    gray = red * LUMA[0]
    return gray.add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def _hue(x: Tensor, turns: Tensor) -> None:
    """The reference's hue rotation on single planes, reusing them as they become free."""
    red, green, blue = x.chunk(3, dim=1)
    value = torch.maximum(red, green)
    low = torch.minimum(red, green)
    torch.maximum(value, blue, out=value)
    torch.minimum(low, blue, out=low)
    sextant = (value + green).add_(blue).sub_(red).sub_(low, alpha=2)
    chroma = torch.sub(value, low, out=low)
    sextant.copysign_(green - blue).div_(chroma + 1e-6).add_(6 * turns)
    sextant.sub_(torch.div(sextant, 6).round_(), alpha=6)
    for plane, offset in ((red, 0.0), (green, -2.0), (blue, 2.0)):
        share = torch.add(sextant, offset, out=plane).abs_().sub_(3).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, share, chroma, value=-1, out=plane)


# --- blur, solarize, normalise ----------------------------------------------------------------------------------------


def _blur(x: Tensor, sigma: Tensor, radius: int) -> None:
    """Symmetric shift-and-add along each axis with a reflected border; all views of the chunk share the radius."""
    weights = blur_weights(sigma, torch.full_like(sigma, radius), radius)[:, :, None, None, None]
    for axis in (2, 3):
        pad = (0, 0, radius, radius) if axis == 2 else (radius, radius, 0, 0)
        padded = F.pad(x, pad, mode="reflect")
        extent = x.shape[axis]
        x.mul_(weights[:, 0])
        for k in range(1, radius + 1):
            both = padded.narrow(axis, radius - k, extent) + padded.narrow(axis, radius + k, extent)
            x.add_(both.mul_(weights[:, k]))


def _solarize(x: Tensor, threshold: Tensor) -> None:
    # Arithmetic in place of torch.where, which is scalar code on the CPU; the slack is the reference's.
    inverted = (x >= 255 * threshold - 5e-4).to(x.dtype)
    x.add_(torch.addcmul(inverted * 255, inverted, x, value=-2))


def normalise(pixels: Tensor, mean: Tensor, std: Tensor) -> None:
    """Levels 0..255 to normalised values in place; `mean` and `std` `[C]` are for pixels in [0, 1]."""
    pixels.mul_((1 / (255 * std)).view(1, -1, 1, 1)).sub_((mean / std).view(1, -1, 1, 1))
