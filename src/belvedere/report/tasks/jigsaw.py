"""What the jigsaw learned: shuffled boards, the order that the head reads from them, and the true one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
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

DRAWN = 6
SIDE = 3
MARGIN, BOARD = 0.75, 0.92


def draw(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder) -> list[Picture]:
    """Write jigsaw.webp and jigsaw.csv.

    Args:
        shown: as `tasks.jigsaw.Jigsaw.show` gives it.
        encoder: for mean and std of the pixels.
    """
    truth, said = (shown[name].long().numpy() for name in ("truth", "said"))
    right = (truth == said).all(1)
    orders, drawn = len(shown["orders"]), min(DRAWN, len(truth))
    figure = new_figure(9.6, 9.6 * 3 / (MARGIN + drawn))
    axes = cell_axes(figure, MARGIN + drawn, 3)
    for row, title in enumerate(("as seen", "as the network\norders it", "true order")):
        put_text(axes, title, 0.03, row + 0.47, fontweight="bold")
    for column in range(drawn):
        tiles = [printable(encoder, tile) for tile in shown["shuffled"][column]]
        for row, order in enumerate((np.arange(SIDE**2), said[column], truth[column])):
            # Tile t lies where it came from by that order.
            _put_board(axes, tiles, order, MARGIN + column, row + 0.04)
        put_frame(axes, MARGIN + column, 1.04, GOOD if right[column] else BAD, side=BOARD)
    save_figure(figure, folder / "jigsaw.webp")
    table = [
        (image, _digits(truth[image]), _digits(said[image]), int(right[image]), int((truth == said)[image].sum()))
        for image in range(len(truth))
    ]
    write_table(folder / "jigsaw.csv", ["image", "true_order", "said_order", "right", "tiles_in_place"], table)
    told = f"{right.sum()} of {len(right)} boards ({right.mean():.0%}) are put in order; chance is 1 in {orders}."
    return [
        Picture(
            "jigsaw",
            "Jigsaw",
            f"Nine tiles of an image, shuffled in one of {orders} orders that the network has to name. The middle row "
            "puts each tile where the network says it came from: a green frame is right, a red one wrong. These are "
            f"images of the training, in their orders of the last epoch. {told}",
            f"{drawn} shuffled images, each above the order that the network chose and above the true one. {told}",
            "jigsaw.webp",
            "jigsaw.csv",
        )
    ]


def _put_board(axes: Axes, tiles: list[NDArray[np.float32]], order: NDArray[np.int64], left: float, top: float) -> None:
    side = BOARD / SIDE
    for tile, place in zip(tiles, order.tolist(), strict=True):
        y, x = divmod(place, SIDE)
        put_image(axes, tile, left + x * side, top + y * side, side=0.95 * side)


def _digits(order: NDArray[np.int64]) -> str:
    return "-".join(map(str, (order + 1).tolist()))
