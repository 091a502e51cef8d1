"""What all pictures of the report share: colours that read on light and dark pages, figures, saving, CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from belvedere.atomic import write_atomically
from belvedere.measure.encoder import Encoder

# Pictures have no background of their own; this ink has a contrast of about 4 on white and on near-black.
INK = "#7b838f"
ACCENT, GOOD, BAD = "#3b76e1", "#17a06b", "#e0524a"
DPI = 150
LARGEST = 380_000
"""Bytes of a picture: the page embeds all of them and has to stay light."""


@dataclass(frozen=True)
class Picture:
    """One picture of the report, or why there is none.

    Attributes:
        name: short name; file names begin with it.
        title, caption, alt: heading, how to read it, and what it shows, for those who cannot see it.
        file, table: names of the picture and of the CSV with its numbers; empty when it was skipped.
        skipped: why it was not drawn; empty when it was.
    """

    name: str
    title: str
    caption: str = ""
    alt: str = ""
    file: str = ""
    table: str = ""
    skipped: str = ""


def new_figure(width: float, height: float) -> Figure:
    """A transparent figure of its own, in inches, unknown to pyplot."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.patch.set_alpha(0)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a WebP of at most `LARGEST` bytes, as good as fits."""
    for quality in (90, 80, 65, 45, 25):
        content = io.BytesIO()
        figure.savefig(content, format="webp", pil_kwargs={"quality": quality})
        if content.tell() <= LARGEST:
            break
    write_atomically(path, lambda beside: _write_bytes(beside, content.getvalue()))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a picture's numbers as CSV; floats with six digits."""

    def write(beside: Path) -> None:
        with beside.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)

    write_atomically(path, write)


def cell_axes(figure: Figure, columns: float, rows: float) -> Axes:
    """Axes over the whole figure, in cells from the upper left corner."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, columns)
    axes.set_ylim(rows, 0)
    return axes


def put_image(axes: Axes, pixels: NDArray[Any], left: float, top: float, side: float = 1.0, **how: Any) -> None:
    """Draw an image into a square cell; small ones keep their pixels visible."""
    smooth = "antialiased" if min(pixels.shape[:2]) > 96 else "nearest"
    how = {"interpolation": smooth, "cmap": "gray", "vmin": 0, "vmax": 1, **how}
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(pixels, extent=(left, left + side, top + side, top), aspect="auto", **how)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])


def put_frame(axes: Axes, left: float, top: float, colour: str, side: float = 1.0, width: float = 2.4) -> None:
    """Draw a frame around a cell."""
    axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=colour, linewidth=width))


def put_text(axes: Axes, text: str, left: float, top: float, size: float = 8, **how: Any) -> None:
    """Write in the ink that reads on any page; dollars are dollars."""
    how = {"color": INK, "ha": "left", "va": "center", "parse_math": False, **how}
    axes.text(left, top, text, fontsize=size, **how)


def printable(encoder: Encoder, pixels: Tensor) -> NDArray[np.float32]:
    """(C, h, w) normalised pixels as an image for the eye: gray of one or two channels, the first three of more.

    Returns:
        (h, w) or (h, w, 3) in [0, 1].
    """
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (encoder.mean, encoder.std))
    image = (pixels.detach().cpu().float() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
    shown: NDArray[np.float32] = image.mean(2) if image.shape[2] < 3 else image[..., :3]
    return shown
