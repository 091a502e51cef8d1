"""The image operations of learned and RandAugment policies: batched, per-sample, differentiable in their magnitude.

Spec view_policies 2.4. Every operation maps pixels `[B, C, H, W]` in [0, 1], magnitudes `[B]` in [0, 1] and signs `[B]`
(+1 or -1) to pixels of the same shape in [0, 1]; magnitude 0 is the identity.

Two kinds of derivative are not those of autograd, and on purpose. Posterize and equalize are steps of the pixels; their
derivative by the pixels is taken as 1, which is what they are on the average. Solarize is a step of its magnitude, and
has no derivative by it: the usual 1 has the wrong sign three times out of four (spec 2.3).

Ranges at magnitude 1. `ssl12`, spec 2.4: brightness and contrast factor 1 +- .8, saturation 1 +- 1, sharpness 1 +- .9,
hue a quarter turn, blur sigma 2 px at side 224, rotation 30 degrees. `autoaugment` as timm and the RandAugment paper
have them: shear .3, translation .45 of the side, rotation 30 degrees, factors 1 +- .9. Posterize, which the papers give
in bits, and equalize and autocontrast, which they give no strength, are blends here, so that magnitude 0 is the
identity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil, pi
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.views import reference
from belvedere.views.native import OPERATIONS

Space = Literal["ssl12", "autoaugment"]

POSTERIZE_LEVELS = 4
EQUALIZE_LEVELS = 256
# Of a blur at magnitude 0 and at least at magnitude 1, in pixels: a kernel of one tap in float64, and the weakest blur
# that a pixel grid shows (a fifth of the weight leaves the pixel).
_NO_BLUR, _SOME_BLUR = 0.05, 0.5
# Television's chroma: U = .492 (B - Y), V = .877 (R - Y).
_U, _V = 0.492, 0.877


@dataclass(frozen=True)
class Operation:
    """One operation of a space.

    Attributes:
        apply: (pixels, magnitude, sign) -> pixels.
        signed: whether it goes in two directions; then a sign is drawn, otherwise `apply` ignores it.
        smooth: whether the derivative by the magnitude is that of the real operation (not of thresholds, spec 2.3).
        colour: whether it exists for three channels only.
    """

    name: str
    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    signed: bool = False
    smooth: bool = True
    colour: bool = False

    @property
    def kind(self) -> tuple[int, float]:
        """For `native.render_programs`: the position of its function in `OPERATIONS`, -1 if it has none; its reach."""
        function = self.apply.func if isinstance(self.apply, partial) else self.apply
        name = getattr(function, "__name__", "")
        if name not in OPERATIONS or globals()[name] is not function:
            return -1, 0.0
        return OPERATIONS.index(name), float(next(iter(getattr(self.apply, "keywords", {}).values()), 0.0))


def space(name: Space, channels: int) -> tuple[Operation, ...]:
    """The operations of a search space, in a fixed order; those of colour are left out unless `channels` is 3."""
    operations = _ssl12() if name == "ssl12" else _autoaugment()
    return tuple(operation for operation in operations if channels == 3 or not operation.colour)


def _ssl12() -> tuple[Operation, ...]:
    return (
        Operation("brightness", partial(brightness, reach=0.8), signed=True),
        Operation("contrast", partial(contrast, reach=0.8), signed=True),
        Operation("saturation", partial(saturation, reach=1.0), signed=True, colour=True),
        Operation("hue", partial(hue, turns=0.25), signed=True, colour=True),
        Operation("grayscale", grayscale, colour=True),
        Operation("blur", partial(blur, sigma=2.0)),
        Operation("solarize", solarize, smooth=False),
        Operation("sharpness", partial(sharpness, reach=0.9), signed=True),
        Operation("autocontrast", autocontrast),
        Operation("equalize", equalize),
        Operation("posterize", posterize),
        Operation("rotate", partial(rotate, degrees=30.0), signed=True),
    )


def _autoaugment() -> tuple[Operation, ...]:
    return (
        Operation("identity", identity),
        Operation("shear_x", partial(shear_x, reach=0.3), signed=True),
        Operation("shear_y", partial(shear_y, reach=0.3), signed=True),
        Operation("translate_x", partial(translate_x, reach=0.45), signed=True),
        Operation("translate_y", partial(translate_y, reach=0.45), signed=True),
        Operation("rotate", partial(rotate, degrees=30.0), signed=True),
        Operation("brightness", partial(brightness, reach=0.9), signed=True),
        Operation("contrast", partial(contrast, reach=0.9), signed=True),
        Operation("saturation", partial(saturation, reach=0.9), signed=True, colour=True),
        Operation("sharpness", partial(sharpness, reach=0.9), signed=True),
        Operation("posterize", posterize),
        Operation("solarize", solarize, smooth=False),
        Operation("autocontrast", autocontrast),
        Operation("equalize", equalize),
    )


def _each(parameter: Tensor, x: Tensor) -> Tensor:
    """One number an image, `[B]`, against pixels."""
    return parameter.to(x.dtype)[:, None, None, None]


def identity(x: Tensor, m: Tensor, sign: Tensor) -> Tensor:
    """Nothing: RandAugment's own chance to leave a view alone."""
    return x


# --- geometry ---------------------------------------------------------------------------------------------------------


def shear_x(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Slide the rows along the width by `reach * m` pixels a row, about the centre."""
    _, down = _offsets(x)
    return _displace(x, m, _slope(x, m, sign, reach) * down, torch.zeros_like(down))


def shear_y(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Slide the columns along the height by `reach * m` pixels a column, about the centre."""
    across, _ = _offsets(x)
    return _displace(x, m, torch.zeros_like(across), _slope(x, m, sign, reach) * across)


def translate_x(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Move along the width by the share `reach * m` of it."""
    by = x.shape[3] * _slope(x, m, sign, reach)
    return _displace(x, m, by, torch.zeros_like(by))


def translate_y(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Move along the height by the share `reach * m` of it."""
    by = x.shape[2] * _slope(x, m, sign, reach)
    return _displace(x, m, torch.zeros_like(by), by)


def rotate(x: Tensor, m: Tensor, sign: Tensor, *, degrees: float) -> Tensor:
    """Turn about the centre by `degrees * m`."""
    across, down = _offsets(x)
    angle = _slope(x, m, sign, degrees * pi / 180)
    less, sine = torch.cos(angle) - 1, torch.sin(angle)
    return _displace(x, m, less * across - sine * down, sine * across + less * down)


def _slope(x: Tensor, m: Tensor, sign: Tensor, reach: float) -> Tensor:
    return reach * (sign * m).to(x.dtype)[:, None, None]


def _offsets(x: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the columns `[1, 1, W]` and rows `[1, H, 1]` in pixels from the centre."""
    height, width = x.shape[2:]
    across = torch.arange(width, dtype=x.dtype, device=x.device) - (width - 1) / 2
    down = torch.arange(height, dtype=x.dtype, device=x.device) - (height - 1) / 2
    return across[None, None, :], down[None, :, None]


def _displace(x: Tensor, m: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Each pixel read (dx, dy) pixels away (broadcast to `[B, H, W]`), bilinear; what lies outside is mirrored.

    Mirrored and not black: black wedges would tell a network how far two views were turned.
    """
    count, _, height, width = x.shape
    across, down = _offsets(x)
    place = ((across + dx) * (2 / width), (down + dy) * (2 / height))
    grid = torch.stack([axis.expand(count, height, width) for axis in place], -1)
    moved = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    # The grid's numbers lie in [-1, 1], too coarse to hit the pixel centres of a large image to the last bit.
    return torch.where(_each(m, x) == 0, x, moved)


# --- colour -----------------------------------------------------------------------------------------------------------


def brightness(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Multiply by 1 +- `reach * m`."""
    return reference.brightness(x, 1 + reach * sign * m)


def contrast(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Scale the distance to the image's mean luma by 1 +- `reach * m`."""
    return reference.contrast(x, 1 + reach * sign * m)


def saturation(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Scale the distance to the pixel's luma by 1 +- `reach * m`."""
    return reference.saturation(x, 1 + reach * sign * m)


def hue(x: Tensor, m: Tensor, sign: Tensor, *, turns: float) -> Tensor:
    """Rotate the chroma (U, V) of each pixel by `turns * m` of a full turn, luma kept: linear, with no HSV sextants."""
    red_weight, green_weight, blue_weight = reference.LUMA
    angle = 2 * pi * turns * _each(sign * m, x)
    less, sine = torch.cos(angle) - 1, torch.sin(angle)
    luma = reference.luma(x)
    u, v = _U * (x[:, 2:] - luma), _V * (x[:, :1] - luma)
    # Changes, not new values: nothing is lost to rounding where the angle is 0.
    blue = (less * u - sine * v) / _U
    red = (sine * u + less * v) / _V
    green = -(red_weight * red + blue_weight * blue) / green_weight
    return (x + torch.cat([red, green, blue], 1)).clamp(0, 1)


def grayscale(x: Tensor, m: Tensor, sign: Tensor) -> Tensor:
    """Blend with the pixel's luma."""
    return _blend(x, reference.luma(x), m)


def autocontrast(x: Tensor, m: Tensor, sign: Tensor) -> Tensor:
    """Blend with each channel stretched to [0, 1]; channels that span less than one level of 255 stay."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    flat = high - low < 1 / 255
    stretched = (x - low) / torch.where(flat, 1.0, high - low)
    return _blend(x, torch.where(flat, x, stretched), m)


def equalize(x: Tensor, m: Tensor, sign: Tensor) -> Tensor:
    """Blend with each channel's ranks: the share of pixels below one's level, of all but the highest level's."""
    level = (x.detach() * (EQUALIZE_LEVELS - 1)).round().long().flatten(2)
    rows = torch.arange(level.shape[0] * level.shape[1], device=x.device).view(*level.shape[:2], 1)
    counts = torch.bincount((level + EQUALIZE_LEVELS * rows).flatten(), minlength=EQUALIZE_LEVELS * rows.numel())
    histogram = counts.view(*level.shape[:2], EQUALIZE_LEVELS)
    below = histogram.cumsum(-1) - histogram
    highest = below.gather(2, level.amax(2, keepdim=True))
    rank = (below.gather(2, level) / highest.clamp(min=1)).to(x.dtype).reshape(x.shape)
    # One level only: there is nothing to rank.
    return _step_blend(x, torch.where((highest == 0)[..., None], x, rank), m)


def posterize(x: Tensor, m: Tensor, sign: Tensor) -> Tensor:
    """Blend with the channel's value on four levels from 0 to 1."""
    steps = (x * POSTERIZE_LEVELS).floor().clamp(max=POSTERIZE_LEVELS - 1)
    return _step_blend(x, steps / (POSTERIZE_LEVELS - 1), m)


def solarize(x: Tensor, m: Tensor, sign: Tensor) -> Tensor:
    """Invert the pixels at or above 1.02 - 1.02 m; no gradient reaches m."""
    return reference.solarize(x, 1.02 - 1.02 * m.detach())


def _blend(x: Tensor, changed: Tensor, m: Tensor) -> Tensor:
    return (x + _each(m, x) * (changed - x)).clamp(0, 1)


def _step_blend(x: Tensor, changed: Tensor, m: Tensor) -> Tensor:
    """A blend with a step function of the pixels, whose derivative is taken as 1."""
    return (x + _each(m, x) * (changed - x).detach()).clamp(0, 1)


# --- detail -----------------------------------------------------------------------------------------------------------


def sharpness(x: Tensor, m: Tensor, sign: Tensor, *, reach: float) -> Tensor:
    """Scale the distance to the 3 x 3 smoothed image (weights 1, in the middle 5, of 13) by 1 +- `reach * m`."""
    mean = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    smooth = (9 * mean + 4 * x) / 13
    return (x + reach * _each(sign * m, x) * (x - smooth)).clamp(0, 1)


def blur(x: Tensor, m: Tensor, sign: Tensor, *, sigma: float) -> Tensor:
    """Gaussian blur of up to `sigma` pixels at a side of 224, in proportion at others (half a pixel at the least).

    One odd support holds three of the largest sigma, or what mirroring at the border allows. A sigma under a quarter
    of a pixel changes next to nothing, and has next to no derivative.
    """
    count, channels, height, width = x.shape
    largest = max(_SOME_BLUR, sigma * min(height, width) / 224)
    radius = min(ceil(3 * largest), min(height, width) - 1)
    sigmas = _NO_BLUR + largest * m.to(x.dtype)
    half = reference.blur_weights(sigmas, torch.full_like(sigmas, radius), radius)
    kernel = torch.cat([half.flip(1), half[:, 1:]], 1).repeat_interleave(channels, 0)[:, None]
    planes = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * radius, -1)
    down = F.conv2d(planes, kernel[..., None], groups=count * channels)
    both = F.conv2d(down, kernel[:, :, None], groups=count * channels)
    return both.reshape(x.shape).clamp(0, 1)
