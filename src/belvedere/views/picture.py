"""One picture of what a model sees: sources with their crop boxes, and every view with its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps, patheffects
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from belvedere.views.operations import Operation
from belvedere.views.params import ViewParams
from belvedere.views.program import MAGNITUDE, NOTHING, OP, SIGN
from belvedere.views.views import Views

MAX_IMAGES = 8
VIEWS_A_LINE = 6
# Inches: side of a view, room for its caption, gap between cells, room for its title, side of the source beside one
# line.
SIDE, CAPTION, GAP, HEAD, SOURCE, NAME = 1.3, 0.42, 0.12, 0.22, 1.75, 0.2
LONGEST = 26
"""Letters of a name that have room beside the image's size."""
# A caption has room for three lines; each further operation needs so many inches.
LINE = 0.105


def draw_views(
    images: Sequence[Tensor],
    views: Views,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    operations: Sequence[Operation] = (),
    names: Sequence[str] = (),
    path: str | Path | None = None,
) -> Figure:
    """Draw up to eight images, each with its crop boxes (local ones dashed) and its views with their parameters.

    Captions: crop as a share of the image, then what fired: brightness, contrast, saturation factors `b c s`, hue `h`
    in turns, flip, gray, blur (sigma in pixels), solarize; or the operations of its program with their magnitudes.
    More than eight images: the first eight are drawn.

    Args:
        images: uint8 `[h, w, C]` canvases, in the record's order; only their valid part `src_h, src_w` is shown.
        views: rendered with `mean` and `std`, which are undone here.
        operations: that the record's programs choose from, where it has programs.
        names: of the images; without them they have their numbers.
        path: where to save it (format by suffix), if anywhere.

    Returns:
        A figure of its own, unknown to pyplot.

    Raises:
        ValueError: the record has programs and `operations` is not given.
    """
    params = views.params
    if OP in params.extras and not operations:
        raise ValueError("the record has programs: say which operations they choose from")
    count, slots = min(len(images), MAX_IMAGES), len(params.slots)
    columns = min(slots, VIEWS_A_LINE)
    lines = ceil(slots / columns)
    stages = params.extras[OP].shape[2] if OP in params.extras else 0
    caption = CAPTION + LINE * max(0, stages - 2)
    line_height = HEAD + SIDE + caption
    source_side = SOURCE if lines == 1 else 1.4 * SOURCE
    block = max(lines * line_height, HEAD + source_side + (CAPTION if slots > 1 else NAME))
    width = GAP + source_side + GAP + columns * (SIDE + GAP)
    height = count * (block + GAP) + GAP
    figure = Figure(figsize=(width, height), dpi=130)
    FigureCanvasAgg(figure)

    def place(left: float, top: float, side: float) -> Axes:
        """Axes of a square cell, in inches from the upper left corner."""
        axes = figure.add_axes((left / width, 1 - (top + side) / height, side / width, side / height))
        axes.set_axis_off()
        axes.set_anchor("N")
        return axes

    colours = _colours(slots)
    for n in range(count):
        above = GAP + n * (block + GAP) + HEAD
        name = names[n] if names else f"image {int(params.index[n])}"
        _draw_source(place(GAP, above, source_side), images[n], params, n, colours, name)
        for v, name in enumerate(params.slots):
            line, column = divmod(v, columns)
            axes = place(GAP + source_side + GAP + column * (SIDE + GAP), above + line * line_height, SIDE)
            pixels = _denormalise(views[name][n], mean, std)
            _draw_view(axes, pixels, params, v, n, colours[v])
            _caption(axes, describe(params, v, n, operations))
    if path is not None:
        figure.savefig(path)
    return figure


def _draw_source(axes: Axes, image: Tensor, params: ViewParams, n: int, colours: Sequence[str], name: str) -> None:
    height, width = int(params.src_h[n]), int(params.src_w[n])
    _show(axes, _printable(image[:height, :width].cpu().numpy() / 255))
    halo = [patheffects.withStroke(linewidth=3.2, foreground="white", alpha=0.85)]
    for v in reversed(range(len(params.slots))):
        box = Rectangle(
            (float(params.left[v, n]) - 0.5, float(params.top[v, n]) - 0.5),
            float(params.w[v, n]),
            float(params.h[v, n]),
            fill=False,
            edgecolor=colours[v],
            linewidth=1.7,
            linestyle="-" if _is_global(params, v) else (0, (3, 1.5)),
            path_effects=halo,
            clip_on=False,
        )
        axes.add_patch(box)
    size = f"{height} x {width}"
    # The end of a name tells more than its folders.
    notes = [name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}", size]
    if len(params.slots) > 1:
        a, b = params.slots[:2]
        notes.append(f"IoU {a}, {b} {float(params.iou(a, b)[n]):.2f}")
    _caption(axes, notes[0] + ", " + notes[1] + "".join(f"\n{note}" for note in notes[2:]))


def _draw_view(axes: Axes, pixels: NDArray[np.float64], params: ViewParams, v: int, n: int, colour: str) -> None:
    _show(axes, pixels)
    height, width = pixels.shape[:2]
    frame = Rectangle(
        (-0.5, -0.5),
        width,
        height,
        fill=False,
        edgecolor=colour,
        linewidth=2,
        linestyle="-" if _is_global(params, v) else (0, (3, 1.5)),
        clip_on=False,
    )
    axes.add_patch(frame)
    axes.set_title(f"{params.slots[v]}  {height} x {width}", fontsize=6.5, color=colour, pad=2.5, fontweight="bold")


def describe(params: ViewParams, slot: int, image: int, operations: Sequence[Operation] = ()) -> str:
    """The parameters of one view in short lines: the crop's share, then what is on, or its program line by line."""
    at = (slot, image)
    area = float(params.h[at] * params.w[at]) / float(params.src_h[image] * params.src_w[image])
    first = [f"crop {100 * area:.0f}%"]
    first += [word for word, on in (("flip", params.flip[at]), ("gray", params.gray[at])) if on]
    if params.sigma[at] > 0:
        first.append(f"blur {float(params.sigma[at]):.1f}")
    second = []
    if params.jitter[at]:
        factors = {"b": params.brightness, "c": params.contrast, "s": params.saturation}
        second = [f"{letter} {_short(float(factor[at]))}" for letter, factor in factors.items() if factor[at] != 1]
        second += [f"h {_short(float(params.hue[at]), '+')}"] if params.hue[at] != 0 else []
    third = ["solarize"] if params.solarize[at] <= 1 else []
    program = _program(params, slot, image, operations) if OP in params.extras else []
    return "\n".join("  ".join(words) for words in (first, second, third, *program) if words)


def _program(params: ViewParams, slot: int, image: int, operations: Sequence[Operation]) -> list[list[str]]:
    """The operations of a view, each with its magnitude, and its direction if it has two."""
    steps = zip(*(params.extras[name][slot, image].tolist() for name in (OP, MAGNITUDE, SIGN)), strict=True)
    done = [(operations[op], magnitude, sign) for op, magnitude, sign in steps if op != NOTHING]
    return [
        [operation.name, _short(sign * magnitude, "+") if operation.signed else _short(magnitude)]
        for operation, magnitude, sign in done
    ]


def _short(value: float, sign: str = "") -> str:
    """Two decimals without the leading zero."""
    text = f"{value:{sign}.2f}"
    return text.replace("0.", ".", 1) if abs(value) < 1 else text


def _is_global(params: ViewParams, v: int) -> bool:
    return params.slots[v].startswith("global")


def _show(axes: Axes, pixels: NDArray[np.float64]) -> None:
    # Small images keep their pixels visible; smoothing would hide what the model really gets.
    smooth = min(pixels.shape[:2]) > 128
    axes.imshow(pixels, interpolation="antialiased" if smooth else "nearest", cmap="gray", vmin=0, vmax=1)


def _caption(axes: Axes, text: str) -> None:
    axes.annotate(
        text,
        xy=(0.5, 0),
        xycoords="axes fraction",
        xytext=(0, -4),
        textcoords="offset points",
        ha="center",
        va="top",
        fontsize=6,
        color="#333333",
        linespacing=1.25,
        parse_math=False,
    )


def _denormalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float64]:
    """`[C, h, w]` of the model to `[h, w, C]` of the eye, in [0, 1]."""
    columns = torch.tensor([list(std), list(mean)], dtype=torch.float64)[:, :, None, None]
    shown = (pixels.detach().cpu().double() * columns[0] + columns[1]).clamp(0, 1)
    return _printable(shown.permute(1, 2, 0).numpy())


def _printable(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """What a screen can show of C channels: gray of one or two, the first three of more."""
    if pixels.shape[2] < 3:
        return np.asarray(pixels.mean(2))
    return pixels[..., :3]


def _colours(count: int) -> list[str]:
    """Ten colours in turn: when they repeat, the globals have been drawn and dashes tell the locals from them."""
    palette = colormaps["tab10"]
    return [to_hex(palette(v % palette.N)) for v in range(count)]
