"""The confusion of the four turns, beside some of the turned views."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import (
    BAD,
    GOOD,
    Picture,
    cell_axes,
    new_figure,
    printable,
    put_frame,
    put_image,
    put_text,
    save_figure,
    write_table,
)
from belvedere.tasks.rotation import TURNS

A_TURN = 6
"""Views that are drawn of each turn."""
SIDE, TOP, MATRIX = 0.94, 0.45, 4.9
NAMES = ("0°", "90°", "180°", "270°")
NEVER, ALWAYS = (0.95, 0.96, 0.98), (0.45, 0.58, 0.86)
"""Shades of the matrix, under black figures on light and dark pages alike."""


def draw(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder) -> list[Picture]:
    """Write rotation.webp and rotation.csv: how often each turn is taken for each, and examples.

    Args:
        shown: what the task's `show` gave.
        encoder: for mean and std of the pixels.
    """
    turns, said = shown["turns"].long(), shown["logits"].argmax(1)
    confusion = confusion_of(turns, said)
    columns, rows = MATRIX + A_TURN, TOP + TURNS
    figure = new_figure(9.6, 9.6 * rows / columns)
    axes = cell_axes(figure, columns, rows)
    _put_matrix(axes, confusion)
    put_text(axes, "views by their true turn; framed green where it was told right", MATRIX, 0.2)
    for true in range(TURNS):
        for column, n in enumerate(torch.nonzero(turns == true).flatten()[:A_TURN].tolist()):
            left, top = MATRIX + column, TOP + true
            put_image(axes, printable(encoder, shown["pixels"][n]), left, top, side=SIDE)
            put_frame(axes, left, top, GOOD if int(said[n]) == true else BAD, side=SIDE, width=1.8)
    save_figure(figure, folder / "rotation.webp")
    table = [(NAMES[true], *confusion[true].tolist()) for true in range(TURNS)]
    write_table(folder / "rotation.csv", ["turned", *(f"taken for {name}" for name in NAMES)], table)
    accuracy = float((said == turns).float().mean())
    return [
        Picture(
            "rotation",
            "Which way up?",
            "Views turned clockwise by quarters. Rows of the table are the true turn, columns what the network says, "
            f"in percent of the row: {100 * accuracy:.0f} % of {len(turns)} views are told right, guessing gives 25 %. "
            "Turns that are told well need things with a top and a bottom: textures, and pictures taken from above, "
            "have none, and the task teaches little there.",
            f"Confusion of the four turns with {100 * accuracy:.0f} % on the diagonal, and some of the turned views.",
            "rotation.webp",
            "rotation.csv",
        )
    ]


def confusion_of(turns: Tensor, said: Tensor) -> Tensor:
    """(4, 4) int64 numbers of views: row the true turn, column the answer."""
    return torch.bincount(TURNS * turns + said, minlength=TURNS**2).view(TURNS, TURNS)


def _put_matrix(axes: Axes, confusion: Tensor) -> None:
    shares = confusion / confusion.sum(1, keepdim=True).clamp(min=1)
    for k, name in enumerate(NAMES):
        put_text(axes, name, 0.55 + k + 0.5, 0.2, size=9, ha="center")
        put_text(axes, name, 0.45, TOP + k + 0.5, size=9, ha="right")
        for column in range(TURNS):
            share = float(shares[k, column])
            shade = tuple((1 - share) * low + share * high for low, high in zip(NEVER, ALWAYS, strict=True))
            axes.add_patch(Rectangle((0.55 + column, TOP + k), 1, 1, facecolor=shade, linewidth=0))
            text = f"{100 * share:.0f} %"
            put_text(axes, text, 0.55 + column + 0.5, TOP + k + 0.5, size=9, ha="center", color="black")
