"""Image, truth and prediction side by side, with a legend that tells the IoU of every class (spec evaluation, 4.12)."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from belvedere.evaluate.contract import RUN, EvalData, Number, Result
from belvedere.images.masks import IGNORE
from belvedere.report.drawing import (
    INK,
    Picture,
    cell_axes,
    new_figure,
    put_text,
    save_figure,
    write_table,
)

# In inches: the figure, the gaps, a line of text, and a column of the legend.
WIDTH, GAP, LINE, ENTRY = 9.6, 0.06, 0.2, 2.4
TRIPLETS = 2
"""Triplets side by side."""
LISTED = 24
"""Most classes in the legend: those that cover most of the test images."""


def draw_segmentation(folder: Path, result: Result, data: EvalData, how: str) -> list[Picture]:
    """Write NAME.webp and NAME.csv of a segmenting protocol, NAME its name.

    Args:
        how: one clause about where the predictions come from.
    """
    assert data.test_masks is not None
    rows: list[int] = result.draws[RUN]["rows"]
    predictions: list[NDArray[np.uint8]] = result.draws[RUN]["predictions"]
    classes: list[str] = result.draws["classes"]
    iou: dict[str, dict[str, Number | None]] = result.draws["class_iou"]
    masks = [data.test_masks[i] for i in rows]
    colours = class_colours(len(classes))
    side = (WIDTH - GAP * (3 * TRIPLETS + 1)) / (3 * TRIPLETS)
    # Every row is as high as its highest image.
    lines = [range(k, min(k + TRIPLETS, len(rows))) for k in range(0, len(rows), TRIPLETS)]
    heights = [side * max(masks[k].shape[0] / masks[k].shape[1] for k in line) for line in lines]
    listed = _largest(masks, predictions, classes)
    a_line = int(WIDTH / ENTRY)
    height = LINE + sum(heights) + GAP * len(lines) + LINE * (1 + -(-len(listed) // a_line))
    figure = new_figure(WIDTH, height)
    axes = cell_axes(figure, WIDTH, height)
    for place in range(3 * min(TRIPLETS, len(rows))):
        left = GAP + place * (side + GAP)
        put_text(axes, ("image", "truth", "prediction")[place % 3], left, LINE / 2, fontweight="bold")
    top = LINE
    for line, high in zip(lines, heights, strict=True):
        for n, k in enumerate(line):
            pictures = (canvas_picture(data, rows[k]), paint(masks[k], colours), paint(predictions[k], colours))
            for column, picture in enumerate(pictures):
                left = GAP + (3 * n + column) * (side + GAP)
                tall = side * masks[k].shape[0] / masks[k].shape[1]
                axes.imshow(
                    picture, extent=(left, left + side, top + tall, top), aspect="auto", interpolation="nearest"
                )
        top += high + GAP
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    _legend(axes, listed, classes, colours, iou[RUN], top + LINE / 2, a_line)
    save_figure(figure, folder / f"{result.protocol}.webp")
    header = ["subject", "class", "iou", "low", "high"]
    write_table(folder / f"{result.protocol}.csv", header, _table(iou))
    number = result.metrics[RUN]["miou"]
    others = [f"{name} {one['miou'].value:.1f}" for name, one in result.metrics.items() if name != RUN]
    return [
        Picture(
            result.protocol,
            f"Segmentation: {how}",
            f"{len(rows)} test images, evenly spaced: the image, its true classes, and those predicted; white was left "
            f"out of the score. The legend tells each class's IoU in percent. mIoU {number.value:.1f} "
            f"[{number.low:.1f}, {number.high:.1f}]; to compare with: {', '.join(others)}.",
            f"{len(rows)} triplets of image, true and predicted classes. Over all test images the mean IoU of "
            f"{len(classes)} classes is {number.value:.1f} %.",
            f"{result.protocol}.webp",
            f"{result.protocol}.csv",
        )
    ]


def class_colours(count: int) -> NDArray[np.float64]:
    """(count, 3) colours: distinct for the first twenty, evenly around the hues after."""
    if count <= 20:
        order = [*range(0, 20, 2), *range(1, 20, 2)]
        table = matplotlib.colormaps["tab20"](np.array(order[:count]))
    else:
        # Neighbouring ids get hues far apart.
        table = matplotlib.colormaps["gist_rainbow"](np.arange(count) * 0.618034 % 1)
    colours: NDArray[np.float64] = np.asarray(table)[:, :3]
    return colours


def paint(classes: NDArray[np.uint8], colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """(h, w, 3) picture of (h, w) class ids, white where they are left out."""
    table = np.ones((IGNORE + 1, 3))
    table[: len(colours)] = colours
    return table[classes]


def canvas_picture(data: EvalData, i: int) -> NDArray[np.float64]:
    """The canvas for the eye: gray of one or two channels, the first three of more."""
    pixels = data.test.pixels(i) / 255.0
    picture: NDArray[np.float64] = pixels.mean(2) if pixels.shape[2] < 3 else pixels[..., :3]
    return picture


def _largest(masks: list[NDArray[np.uint8]], predictions: list[NDArray[np.uint8]], classes: list[str]) -> list[int]:
    """Ids of the classes in the picture, at most `LISTED` and those that cover most, in their order."""
    pixels = sum(np.bincount(one.ravel(), minlength=IGNORE + 1) for one in (*masks, *predictions))
    covered = np.asarray(pixels)[: len(classes)]
    most = np.argsort(-covered, kind="stable")[:LISTED]
    return sorted(int(k) for k in most if covered[k])


def _legend(
    axes: Axes,
    listed: list[int],
    classes: list[str],
    colours: NDArray[np.float64],
    iou: dict[str, Number | None],
    top: float,
    a_line: int,
) -> None:
    for n, k in enumerate(listed):
        row, column = divmod(n, a_line)
        left, middle = GAP + column * ENTRY, top + (row + 0.5) * LINE
        number = iou[classes[k]]
        told = "no IoU" if number is None else f"{number.value:.0f} [{number.low:.0f}, {number.high:.0f}]"
        square = Rectangle((left, middle - 0.06), 0.12, 0.12, facecolor=colours[k], edgecolor=INK, linewidth=0.4)
        axes.add_patch(square)
        name = classes[k] if len(classes[k]) <= 18 else f"{classes[k][:17]}…"
        put_text(axes, f"{name}  {told}", left + 0.18, middle)


def _table(iou: dict[str, dict[str, Number | None]]) -> list[tuple[object, ...]]:
    return [
        (subject, label, *(("", "", "") if number is None else (number.value, number.low, number.high)))
        for subject, row in iou.items()
        for label, number in row.items()
    ]
