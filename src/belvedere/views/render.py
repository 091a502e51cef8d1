"""Pixels from a record: `render_views` is a pure function of (images, params, scale), whatever the batch.

The operations themselves are in `reference.py` and re-exported here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from belvedere.views import eager, native, reference
from belvedere.views.params import ViewParams
from belvedere.views.program import OperationProgram
from belvedere.views.reference import (
    brightness,
    contrast,
    crop_resize,
    gaussian_blur,
    grayscale,
    hue,
    saturation,
    solarize,
)
from belvedere.views.views import Views, runs

__all__ = [
    "Images",
    "Program",
    "brightness",
    "contrast",
    "crop_resize",
    "gaussian_blur",
    "grayscale",
    "hue",
    "render_views",
    "saturation",
    "solarize",
]

Images = Tensor | Sequence[Tensor]
Backend = Literal["auto", "reference", "eager", "native", "triton"]
# A policy's own colour program in place of jitter, grayscale, blur and solarize: (pixels [N, C, h, w] in [0, 1] after
# the flip, the record where it was drawn (on the CPU, so that sorting by operation waits for no device), the slot's
# position) -> pixels of the same shape. Differentiable if it learns.
Program = Callable[[Tensor, ViewParams, int], Tensor]


def render_views(
    images: Images,
    params: ViewParams,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
    device: torch.device | str | None = None,
    program: Program | None = None,
) -> Views:
    """Render every view of a record.

    Args:
        images: uint8 canvases `[N, H, W, C]`, of which `params.src_h, src_w` is the valid part, or N tensors `[h, w,
        C]`. params: the record, on the CPU (for the reference backend, on any device).
        mean, std: C normalisation constants for pixels in [0, 1].
        scale: renders all views at `size * scale` (hard views are scored smaller); the result's record says so.
        dtype: float32, bfloat16 or float16, of the result.
        backend: "reference" is differentiable in the parameters; "auto" takes it when a box or a factor is being
            learned, otherwise "native" on the CPU where it compiles, and "eager" elsewhere; "triton" is for CUDA, and
            "auto" takes it there with `BELVEDERE_TRITON=1` in the environment. A program on top of any is
            differentiable.
        device: where to render; the images' own device if not given.
        program: see `Program`.

    Returns:
        Normalised views with the record they were rendered from.

    Raises:
        ValueError: images, record and constants do not fit together, or the backend cannot render where they are.
    """
    if isinstance(images, Tensor):
        images = images if device is None else images.to(device, non_blocking=True)
    else:
        images = [image if device is None else image.to(device, non_blocking=True) for image in images]
    channels = _check(images, params, len(mean), len(std))
    params = params.scaled(scale)
    where = images.device if isinstance(images, Tensor) else images[0].device
    constants = torch.tensor([list(mean), list(std)], dtype=torch.float32, device="cpu")
    if backend == "auto":
        backend = _fastest(params, where, program)
    fused = _fused(backend, where)
    scale_by, less = 1 / (255 * constants[1]), constants[0] / constants[1]
    if fused is not None and program is None:
        return Views(params, tuple(fused(images, params, run, scale_by, less, dtype=dtype) for run in runs(params)))
    if backend == "native" and isinstance(program, OperationProgram) and program.compiles(params):
        groups = []
        for run in runs(params):
            programs = program.compiled(params, run)
            group, spreads = native.render_programs(images, params, run, scale_by, less, programs, dtype=dtype)
            program.shown(params, run, spreads)
            groups.append(group)
        return Views(params, tuple(groups))

    constants = constants.pin_memory().to(where, non_blocking=True) if where.type == "cuda" else constants
    unfused = _reference_run if backend == "reference" else _eager_run
    render = unfused if fused is None else partial(_cropped_run, fused)
    pixels = []
    for run in runs(params):
        group = render(images, params, run, channels, where, program)
        if group.requires_grad:
            group = (group / 255 - constants[0].view(1, -1, 1, 1)) / constants[1].view(1, -1, 1, 1)
        else:
            eager.normalise(group, constants[0], constants[1])
        pixels.append(group.to(dtype))
    return Views(params, tuple(pixels))


def _fastest(params: ViewParams, where: torch.device, program: Program | None) -> Backend:
    """The quickest backend that gives the gradients that are asked for."""
    drawn = params if program is None else replace(params, extras={})
    if drawn.requires_grad and torch.is_grad_enabled():
        return "reference"
    if where.type == "cuda" and os.environ.get("BELVEDERE_TRITON") == "1":
        return "triton"
    return "native" if where.type == "cpu" and native.library() is not None else "eager"


def _fused(backend: Backend, where: torch.device) -> Callable[..., Tensor] | None:
    """The renderer that makes a view in one go, None for those that do it operation by operation.

    Raises:
        ValueError: it cannot render there.
    """
    if backend == "native":
        if where.type != "cpu":
            raise ValueError(f'backend "native" renders on the CPU, the images are on {where}')
        return native.render
    if backend == "triton":
        try:
            from belvedere.views import kernels
        except ImportError as missing:
            raise ValueError('backend "triton" needs triton, which comes with torch for CUDA') from missing
        if not kernels.available(where):
            raise ValueError(f'backend "triton" renders on CUDA, the images are on {where}')
        return partial(_on_canvases, kernels.render)
    return None


def _on_canvases(render: Callable[..., Tensor], images: Images, *arguments: Any, **options: Any) -> Tensor:
    return render(padded(images), *arguments, **options)


def _check(images: Images, params: ViewParams, means: int, stds: int) -> int:
    """The number of channels of a well-formed batch."""
    first = images[0] if len(images) else None
    if first is None or len(images) != len(params.index):
        raise ValueError(f"{len(images)} images for a record of {len(params.index)}")
    each = [first] if isinstance(images, Tensor) else images
    if any(image.dtype != torch.uint8 or image.ndim != 3 or image.shape[2] != first.shape[2] for image in each):
        raise ValueError("images must be uint8 [N, H, W, C] or a list of uint8 [h, w, C], of the same channels")
    channels = first.shape[2]
    heights, widths = ([image.shape[axis] for image in each] for axis in (0, 1))
    for sizes, told in ((heights, params.src_h), (widths, params.src_w)):
        if (told.cpu() > torch.tensor(sizes, device="cpu")).any():
            raise ValueError("the record tells larger images than there are")
    if not channels == means == stds:
        raise ValueError(f"images have {channels} channels, mean and std {means} and {stds}")
    return channels


def _eager_run(
    images: Images,
    params: ViewParams,
    run: tuple[int, ...],
    channels: int,
    where: torch.device,
    program: Program | None,
) -> Tensor:
    """Levels `[k * N, C, h, w]` of one run of slots."""
    count = len(params.index)
    if not isinstance(images, Tensor) and where.type == "cuda":
        images = padded(images)
    out = torch.empty(len(run) * count, channels, *params.size[run[0]], device=where)
    with torch.no_grad():
        for position, slot in enumerate(run):
            eager.geometry(images, params, slot, out[position * count :][:count])
        if program is None:
            eager.colour(out, params, run)
            return out
    return _programmed(out, params, run, program)


def _cropped_run(
    fused: Callable[..., Tensor],
    images: Images,
    params: ViewParams,
    run: tuple[int, ...],
    channels: int,
    where: torch.device,
    program: Program | None,
) -> Tensor:
    """Levels of one run of slots whose crops one renderer makes and whose colours a program."""
    assert program is not None, "without one, colours are made in the same pass"
    one = torch.ones(channels, dtype=torch.float32, device="cpu")
    cropped = fused(images, params, run, one, torch.zeros_like(one), coloured=False)
    return _programmed(cropped, params, run, program)


def _programmed(cropped: Tensor, params: ViewParams, run: tuple[int, ...], program: Program) -> Tensor:
    """Levels after a policy's own operations, slot by slot."""
    parts = torch.split(cropped, len(params.index))
    return torch.cat([program(part / 255, params, slot) for part, slot in zip(parts, run, strict=True)]) * 255


def _reference_run(
    images: Images,
    params: ViewParams,
    run: tuple[int, ...],
    channels: int,
    where: torch.device,
    program: Program | None,
) -> Tensor:
    canvases, moved = padded(images), params.to(where)
    shapes = (reference.geometry(canvases, moved, slot) for slot in run)
    if program is None:
        return torch.cat([reference.colour(x, moved, slot) for x, slot in zip(shapes, run, strict=True)]) * 255
    return torch.cat([program(x, params, slot) for x, slot in zip(shapes, run, strict=True)]) * 255


def padded(images: Images) -> Tensor:
    """One canvas tensor `[N, H, W, C]`, images in the upper left corner; a record never reaches the rest."""
    if isinstance(images, Tensor):
        return images
    height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
    return torch.stack(
        [F.pad(image, (0, 0, 0, width - image.shape[1], 0, height - image.shape[0])) for image in images]
    )
