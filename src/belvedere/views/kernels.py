"""The renderer for CUDA: four Triton kernels a group of views, equal to `reference.py` (specs/view_engine.md 3.4).

1. `_resize`: crop, resize and flip. A tile of a view is `rows @ window @ columns^T`, two small matrix products over the
   piece of the source that it sees, with weights that are computed where they are needed.
2. `_contrast_means`: the mean gray that contrast needs, of each view's pixels as they are before it.
3. `_colour`: jitter and grayscale; solarize and normalise too, where no blur comes between.
4. `_blur`: the same two products as a resize, with a Gaussian's weights; then solarize and normalise.

Between the kernels pixels are levels less 128: in float32 for float32 views, else in float16, where that centre keeps
the rounding small. Nothing is read back, and what is launched depends on shapes alone.

Triton comes with torch where torch has CUDA; this module is imported only where it is used. With `TRITON_INTERPRET=1`
in the environment before that the kernels run on the CPU, slowly, which is how they are tested.
"""

# mypy: disable-error-code="untyped-decorator, no-untyped-def, no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from belvedere.views.native import COLUMNS, packed
from belvedere.views.params import ViewParams, send
from belvedere.views.reference import LUMA, ORDERS
from belvedere.views.slots import Size

# A tile of a view, pixels of the source that one product takes, pixels of one step of colour.
TILE, WINDOW, BLOCK = 32, 16, 1024

# The packed record: `native.packed`, then the four operations of the jitter in their order, -1 for none.
WIDTH = tl.constexpr(1 + len(COLUMNS) + 4)
_AT = {name: 1 + column for column, name in enumerate(COLUMNS)}
BICUBIC, TOP, LEFT, HEIGHT = (tl.constexpr(at) for at in (0, _AT["top"], _AT["left"], _AT["h"]))
ACROSS, FLIP, GRAY, ORDER = (tl.constexpr(_AT[name]) for name in ("w", "flip", "gray", "order"))
BRIGHTNESS, CONTRAST = (tl.constexpr(_AT[name]) for name in ("brightness", "contrast"))
SATURATION, HUE = (tl.constexpr(_AT[name]) for name in ("saturation", "hue"))
SIGMA, SOLARIZE = (tl.constexpr(_AT[name]) for name in ("sigma", "solarize"))
PLACES = tl.constexpr(1 + len(COLUMNS))

RED, GREEN, BLUE = (tl.constexpr(weight) for weight in LUMA)
CENTRE = tl.constexpr(128.0)


def available(device: torch.device) -> bool:
    """Whether the kernels can run where the images are; interpreted, if triton was so when it was imported."""
    return device.type == "cuda" or not isinstance(tl.cdiv, triton.JITFunction)


def render(
    images: Tensor,
    params: ViewParams,
    slots: Sequence[int],
    scale: Tensor,
    shift: Tensor,
    *,
    coloured: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Views `[len(slots) * N, C, h, w]` of some slots of one size: levels 0..255 times `scale` less `shift`.

    Args:
        images: uint8 canvases `[N, H, W, C]`, of which `params.src_h, src_w` is the valid part.
        params: the record, on the CPU.
        scale, shift: `[C]` float32, on the CPU.
        coloured: whether colour operations follow the crop.
        dtype: of the views; float32 ones are computed in float32 throughout.
    """
    record = sent(params, slots, scale, shift, images.device, coloured=coloured)
    return launch(images, record, params.size[slots[0]], dtype)


# The record, the sizes of the images, and scale and shift, where the kernels run.
Sent = tuple[Tensor, Tensor, Tensor]


def sent(
    params: ViewParams, slots: Sequence[int], scale: Tensor, shift: Tensor, device: torch.device, *, coloured: bool
) -> Sent:
    """What `launch` reads of a record, on its way to the device; arguments are those of `render`."""
    record = _with_places(packed(params, list(slots), coloured), len(scale))
    sizes = torch.stack([params.src_h, params.src_w], 1).to(torch.int32)
    return send(record, device), send(sizes, device), send(torch.stack([scale, shift]), device)


def launch(images: Tensor, record: Sent, size: Size, dtype: torch.dtype) -> Tensor:
    """The views of `render`, all on the device: a CUDA graph can hold it, and be replayed with other records."""
    drawn, sizes, normal = record
    channels, (height, width) = normal.shape[1], size
    views, work = len(drawn), torch.float32 if dtype == torch.float32 else torch.float16
    levels = torch.empty(views, channels, height, width, device=images.device, dtype=work)
    means = torch.empty(views, device=images.device, dtype=torch.float32)
    out = torch.empty_like(levels, dtype=dtype)
    tiles = (views, triton.cdiv(height, TILE) * triton.cdiv(width, TILE), channels)
    # Products of float32 are as exact as torch's own would be: a setting of its user's.
    exact = work == torch.float32 and torch.get_float32_matmul_precision() == "highest"
    tiled = {"PRECISION": "ieee" if exact else "tf32", "TILE": TILE, "WINDOW": WINDOW}
    blocks = (views, triton.cdiv(height * width, BLOCK))
    colour = {"RGB": channels == 3, "BLOCK": BLOCK}

    with torch.cuda.device_of(images):
        _resize[tiles](images, *images.stride(), drawn, sizes, len(images), levels, height, width, **tiled)
        _contrast_means[(views,)](levels, drawn, means, channels, height * width, **colour)
        _colour[blocks](levels, drawn, means, normal, out, channels, height * width, **colour)
        _blur[tiles](levels, drawn, normal, out, channels, height, width, **tiled)
    return out


def _with_places(record: Tensor, channels: int) -> Tensor:
    """The packed record with the jitter's operations in their order: brightness 0, contrast 1, saturation 2, hue 3.

    The last two are of three channels only.
    """
    order = record[:, _AT["order"]].long()
    places = torch.tensor(ORDERS, device="cpu", dtype=torch.float32)[order.clamp(min=0)]
    none = (order[:, None] < 0) | ((places > 1) & (channels != 3))
    return torch.cat([record, places.masked_fill(none, -1)], 1)


# --- weighted sums along both axes ------------------------------------------------------------------------------------


@triton.jit
def _interpolation(t, bicubic):
    """The kernel at distance t, bicubic with a = -1/2."""
    near, far = tl.minimum(t, 1.0), tl.minimum(tl.maximum(t, 1.0), 2.0)
    cubic = ((1.5 * near - 2.5) * near) * near + 1 + ((-0.5 * far + 2.5) * far - 4) * far + 2
    return tl.where(bicubic != 0, cubic, tl.maximum(1 - t, 0.0))


@triton.jit
def _bell(distance, sigma, radius):
    inside = tl.abs(distance) <= radius
    return tl.where(inside, tl.exp(-distance * distance / (2 * sigma * sigma)), 0.0)


@triton.jit
def _weights(pixel, at, first, last, spread, kind, extent, RESIZE: tl.constexpr):
    """What a source pixel weighs at a place: of a resize `spread` and `kind`, or of a Gaussian sigma and radius.

    A Gaussian's pixel counts again for each of its reflections at the two borders.
    """
    if RESIZE:
        weight = _interpolation(tl.abs(pixel - at) / spread, kind)
    else:
        weight = _bell(pixel - at, spread, kind)
        weight += tl.where(pixel > 0, _bell(-pixel - at, spread, kind), 0.0)
        weight += tl.where(pixel < extent - 1, _bell(2 * (extent - 1) - pixel - at, spread, kind), 0.0)
    return tl.where((pixel >= first) & (pixel < last), weight, 0.0)


@triton.jit
def _sums(
    source, stride_y, stride_x, y, x, first_y, last_y, first_x, last_x, spread_y, spread_x, kind,
    height, width, work: tl.constexpr,
    RESIZE: tl.constexpr, PRECISION: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """A tile `[TILE, TILE]` of centred levels: at places y, x the weighted mean over `[first, last)` of the source.

    Weights are rounded before they are added up, so they sum to 1 whatever the precision of the products.
    """
    steps = tl.arange(0, WINDOW)
    tile = tl.zeros([TILE, TILE], tl.float32)
    total_x = tl.zeros([TILE], tl.float32)
    for from_x in range(first_x, last_x, WINDOW):
        column = from_x + steps
        half = tl.zeros([TILE, WINDOW], tl.float32)
        total_y = tl.zeros([TILE], tl.float32)
        for from_y in range(first_y, last_y, WINDOW):
            row = from_y + steps
            there = (row < last_y)[:, None] & (column < last_x)[None, :]
            pixels = tl.load(source + row[:, None] * stride_y + column[None, :] * stride_x, mask=there, other=0)
            if RESIZE:
                pixels = pixels.to(tl.float32) - CENTRE
            down = _weights(
                row[None, :].to(tl.float32), y[:, None], first_y, last_y, spread_y, kind, height, RESIZE
            ).to(work)
            half += tl.dot(down, pixels.to(work), input_precision=PRECISION)
            total_y += tl.sum(down.to(tl.float32), 1)
        across = _weights(
            column[:, None].to(tl.float32), x[None, :], first_x, last_x, spread_x, kind, width, RESIZE
        ).to(work)
        tile += tl.dot((half / total_y[:, None]).to(work), across, input_precision=PRECISION)
        total_x += tl.sum(across.to(tl.float32), 0)
    return tl.minimum(tl.maximum(tile / total_x[None, :], -CENTRE), 255 - CENTRE)


# --- geometry ---------------------------------------------------------------------------------------------------------


@triton.jit
def _axis(lo, length, out, source, place, flip, bicubic):
    """Where some places of a view lie in its source, how wide their taps are, and the pixels that take part.

    A learned box has fractional ends: every pixel of the source whose centre lies in it takes part.
    """
    step = length / out
    place = tl.minimum(place, out - 1)
    place = tl.where(flip != 0, out - 1 - place, place).to(tl.float32)
    at = lo + (place + 0.5) * step - 0.5
    wide = tl.maximum(step, 1.0)
    reach = tl.where(bicubic != 0, 2.0, 1.0) * wide
    begin = tl.maximum(tl.floor(lo - 0.5).to(tl.int32) + 1, 0)
    end = tl.minimum(tl.ceil(lo + length - 0.5).to(tl.int32), source)
    first = tl.maximum(begin, tl.ceil(tl.min(at, 0) - reach).to(tl.int32))
    last = tl.minimum(end, tl.floor(tl.max(at, 0) + reach).to(tl.int32) + 1)
    return at, wide, first, last


# Batches differ in their canvases' widths: no variant for each that 16 divides.
@triton.jit(do_not_specialize=["stride_n", "stride_y", "count"])
def _resize(
    images, stride_n, stride_y, stride_x, stride_c, record, sizes, count, levels, height, width,
    PRECISION: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    view, channel = tl.program_id(0), tl.program_id(2)
    across = tl.cdiv(width, TILE)
    row = tl.program_id(1) // across * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) % across * TILE + tl.arange(0, TILE)
    image, about = view % count, record + view * WIDTH
    bicubic = tl.load(about + BICUBIC)
    y, wide_y, first_y, last_y = _axis(
        tl.load(about + TOP), tl.load(about + HEIGHT), height, tl.load(sizes + 2 * image), row, 0, bicubic
    )
    x, wide_x, first_x, last_x = _axis(
        tl.load(about + LEFT), tl.load(about + ACROSS), width, tl.load(sizes + 2 * image + 1), column,
        tl.load(about + FLIP), bicubic,
    )  # fmt: skip
    tile = _sums(
        images + image.to(tl.int64) * stride_n + channel * stride_c, stride_y, stride_x,
        y, x, first_y, last_y, first_x, last_x, wide_y, wide_x, bicubic, 0, 0,
        levels.dtype.element_ty, True, PRECISION, TILE, WINDOW,
    )  # fmt: skip
    plane = levels + (view.to(tl.int64) * tl.num_programs(2) + channel) * height * width
    there = (row < height)[:, None] & (column < width)[None, :]
    tl.store(plane + row[:, None] * width + column[None, :], tile.to(levels.dtype.element_ty), mask=there)


# --- colour -----------------------------------------------------------------------------------------------------------


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def _luma(r, g, b):
    return RED * r + GREEN * g + BLUE * b


@triton.jit
def _wheel(sextant, offset):
    return tl.minimum(tl.maximum(2 - tl.abs(tl.abs(sextant + offset) - 3), 0.0), 1.0)


@triton.jit
def _hue(r, g, b, turns):
    value, low = tl.maximum(tl.maximum(r, g), b), tl.minimum(tl.minimum(r, g), b)
    chroma = value - low
    # Green equals blue in every clipped pixel: such a one has a side as well.
    side = tl.where(g >= b, 1.0, -1.0)
    sextant = side * (value + g + b - r - 2 * low) / (chroma + 1e-6) + 6 * turns
    sextant -= tl.where(sextant > 3, 6.0, 0.0)
    sextant += tl.where(sextant < -3, 6.0, 0.0)
    r = value - chroma * _wheel(sextant, 0.0)
    g = value - chroma * _wheel(sextant, -2.0)
    b = value - chroma * _wheel(sextant, 2.0)
    return r, g, b


@triton.jit
def _jitter(r, g, b, about, mean, BEFORE_CONTRAST: tl.constexpr):
    """The jitter's operations in the view's order; of any other number of channels than three, each comes as r."""
    running = 1
    for place in tl.static_range(4):
        operation = tl.load(about + PLACES + place)
        if BEFORE_CONTRAST:
            running = tl.where(operation == 1, 0, running)
        if running != 0:
            if operation == 0:
                factor = tl.load(about + BRIGHTNESS)
                r, g, b = _clamp(r * factor), _clamp(g * factor), _clamp(b * factor)
            elif operation == 1:
                factor = tl.load(about + CONTRAST)
                add = (1 - factor) * mean
                r, g, b = _clamp(r * factor + add), _clamp(g * factor + add), _clamp(b * factor + add)
            elif operation == 2:
                factor = tl.load(about + SATURATION)
                add = (1 - factor) * _luma(r, g, b)
                r, g, b = _clamp(r * factor + add), _clamp(g * factor + add), _clamp(b * factor + add)
            elif operation == 3:
                r, g, b = _hue(r, g, b, tl.load(about + HUE))
    return r, g, b


@triton.jit
def _contrast_means(levels, record, means, channels, pixels, RGB: tl.constexpr, BLOCK: tl.constexpr):
    view = tl.program_id(0)
    about = record + view * WIDTH
    if tl.load(about + ORDER) >= 0:
        start = levels + view.to(tl.int64) * channels * pixels
        total = tl.zeros([BLOCK], tl.float32)
        # Planes of other numbers of channels are one long plane: neither brightness nor the mean tells them apart.
        length = pixels if RGB else channels * pixels
        for begin in range(0, length, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            r = tl.load(start + at, mask=at < length, other=0).to(tl.float32) + CENTRE
            if RGB:
                g = tl.load(start + pixels + at, mask=at < length, other=0).to(tl.float32) + CENTRE
                b = tl.load(start + 2 * pixels + at, mask=at < length, other=0).to(tl.float32) + CENTRE
                r, g, b = _jitter(r, g, b, about, 0.0, True)
                r = _luma(r, g, b)
            else:
                r, g, b = _jitter(r, r, r, about, 0.0, True)
            total += tl.where(at < length, r, 0.0)
        tl.store(means + view, tl.sum(total, 0) / length)


@triton.jit
def _finished(x, solarize, scale, shift):
    # Half a thousandth of a level of slack, as the reference.
    return tl.where(x >= 255 * solarize - 5e-4, 255 - x, x) * scale - shift


@triton.jit
def _colour(levels, record, means, normal, out, channels, pixels, RGB: tl.constexpr, BLOCK: tl.constexpr):
    view = tl.program_id(0)
    about = record + view * WIDTH
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = at < pixels
    mean, solarize = tl.load(means + view), tl.load(about + SOLARIZE)
    blurred = tl.load(about + SIGMA) > 0
    start = view.to(tl.int64) * channels * pixels
    for channel in range(0, channels, 3 if RGB else 1):
        one = start + channel * pixels + at
        two, three = one + pixels, one + 2 * pixels
        r = tl.load(levels + one, mask=there, other=0).to(tl.float32) + CENTRE
        if RGB:
            g = tl.load(levels + two, mask=there, other=0).to(tl.float32) + CENTRE
            b = tl.load(levels + three, mask=there, other=0).to(tl.float32) + CENTRE
            r, g, b = _jitter(r, g, b, about, mean, False)
            if tl.load(about + GRAY) != 0:
                r = _luma(r, g, b)
                g, b = r, r
        else:
            r, g, b = _jitter(r, r, r, about, mean, False)
        if blurred:
            tl.store(levels + one, (r - CENTRE).to(levels.dtype.element_ty), mask=there)
            if RGB:
                tl.store(levels + two, (g - CENTRE).to(levels.dtype.element_ty), mask=there)
                tl.store(levels + three, (b - CENTRE).to(levels.dtype.element_ty), mask=there)
        else:
            scale, shift = normal + channel, normal + channels + channel
            r = _finished(r, solarize, tl.load(scale), tl.load(shift))
            tl.store(out + one, r.to(out.dtype.element_ty), mask=there)
            if RGB:
                g = _finished(g, solarize, tl.load(scale + 1), tl.load(shift + 1))
                b = _finished(b, solarize, tl.load(scale + 2), tl.load(shift + 2))
                tl.store(out + two, g.to(out.dtype.element_ty), mask=there)
                tl.store(out + three, b.to(out.dtype.element_ty), mask=there)


# --- blur -------------------------------------------------------------------------------------------------------------


@triton.jit
def _blur(
    levels, record, normal, out, channels, height, width,
    PRECISION: tl.constexpr, TILE: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    view, channel = tl.program_id(0), tl.program_id(2)
    about = record + view * WIDTH
    sigma = tl.load(about + SIGMA)
    if sigma > 0:
        across = tl.cdiv(width, TILE)
        row = tl.program_id(1) // across * TILE + tl.arange(0, TILE)
        column = tl.program_id(1) % across * TILE + tl.arange(0, TILE)
        radius = tl.minimum(tl.ceil(3 * sigma).to(tl.int32), tl.minimum(height, width) - 1)
        first_y, first_x = tl.maximum(tl.min(row, 0) - radius, 0), tl.maximum(tl.min(column, 0) - radius, 0)
        last_y = tl.minimum(tl.max(row, 0) + radius + 1, height)
        last_x = tl.minimum(tl.max(column, 0) + radius + 1, width)
        start = (view.to(tl.int64) * channels + channel) * height * width
        spread = tl.maximum(sigma, 1e-3)
        # Places beyond the view repeat its last one: theirs are not stored, but must have weights.
        y, x = tl.minimum(row, height - 1).to(tl.float32), tl.minimum(column, width - 1).to(tl.float32)
        tile = _sums(
            levels + start, width, 1, y, x, first_y, last_y, first_x, last_x, spread, spread, radius, height, width,
            levels.dtype.element_ty, False, PRECISION, TILE, WINDOW,
        )  # fmt: skip
        scale, shift = tl.load(normal + channel), tl.load(normal + channels + channel)
        done = _finished(tile + CENTRE, tl.load(about + SOLARIZE), scale, shift)
        there = (row < height)[:, None] & (column < width)[None, :]
        tl.store(out + start + row[:, None] * width + column[None, :], done.to(out.dtype.element_ty), mask=there)
