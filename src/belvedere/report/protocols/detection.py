"""Objects that were found in test images, over those that are there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.evaluate.metrics.coco import Objects
from belvedere.images.annotations import Annotations
from belvedere.report.drawing import Picture, cell_axes, new_figure, put_text, save_figure, write_table
from belvedere.report.protocols._segmentation import LISTED, canvas_picture, class_colours

# In inches: the figure, the gaps, a line of text, and a column of the legend.
WIDTH, GAP, LINE, ENTRY = 9.6, 0.08, 0.2, 1.9
A_LINE = 2
"""Images side by side."""
SURE = 0.5
"""Least score of a box that is drawn."""


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write detection.webp and detection.csv."""
    there = data.test_objects
    assert there is not None
    rows: list[int] = result.draws[RUN]["rows"]
    found: list[Objects] = result.draws[RUN]["found"]
    colours = class_colours(len(there.classes))
    side = (WIDTH - GAP * (A_LINE + 1)) / A_LINE
    lines = [range(k, min(k + A_LINE, len(rows))) for k in range(0, len(rows), A_LINE)]
    tall = [side * max(there.sizes[rows[k]][0] / there.sizes[rows[k]][1] for k in line) for line in lines]
    listed = _listed(there, rows, found)
    a_line = int(WIDTH / ENTRY)
    height = sum(tall) + GAP * (len(lines) + 1) + LINE * (1 + -(-len(listed) // a_line))
    figure = new_figure(WIDTH, height)
    axes = cell_axes(figure, WIDTH, height)
    top = GAP
    for line, high in zip(lines, tall, strict=True):
        for n, k in enumerate(line):
            picture = canvas_picture(data, rows[k])
            _scene(axes, picture, there, rows[k], found[k], colours, (GAP + n * (side + GAP), top), side)
        top += high + GAP
    axes.set_xlim(0, WIDTH)
    axes.set_ylim(height, 0)
    for n, k in enumerate(listed):
        name = there.classes[k]
        row, column = divmod(n, a_line)
        left, middle = GAP + column * ENTRY, top + (row + 0.5) * LINE
        axes.add_patch(Rectangle((left, middle - 0.06), 0.12, 0.12, facecolor=colours[k], linewidth=0))
        put_text(axes, name if len(name) <= 18 else f"{name[:17]}…", left + 0.18, middle)
    save_figure(figure, folder / "detection.webp")
    write_table(
        folder / "detection.csv",
        ["image", "class", "score", "left", "top", "width", "height"],
        _table(data, there, rows, found),
    )
    number = result.metrics[RUN]["box_ap"]
    others = [f"{name} {one['box_ap'].value:.1f}" for name, one in result.metrics.items() if name != RUN]
    return [
        Picture(
            "detection",
            "Objects found",
            f"{len(rows)} test images, evenly spaced: boxes that were found with a score of {SURE:g} or more, in the "
            "colour of their class with their score in percent, and dashed those that are there. Average "
            f"precision of boxes {number.value:.1f} [{number.low:.1f}, {number.high:.1f}]"
            + (f"; to compare with: {', '.join(others)}." if others else "."),
            f"{len(rows)} images with the boxes of objects. Over all test images the average precision of boxes of "
            f"{len(there.classes)} classes is {number.value:.1f} %.",
            "detection.webp",
            "detection.csv",
        )
    ]


def _listed(there: Annotations, rows: list[int], found: list[Objects]) -> list[int]:
    """Ids of the classes in the picture, at most `LISTED` and those that are there most often, in their order."""
    named = Counter(one.label for row in rows for one in there.objects[row])
    for one in found:
        assert one.scores is not None
        named.update(one.classes[one.scores >= SURE].tolist())
    return sorted(label for label, _ in named.most_common(LISTED))


def _scene(
    axes: Axes,
    picture: NDArray[np.float64],
    there: Annotations,
    row: int,
    found: Objects,
    colours: NDArray[np.float64],
    corner: tuple[float, float],
    side: float,
) -> None:
    """One image with its boxes, its upper left corner at `corner`, `side` wide."""
    left, top = corner
    height, width = there.sizes[row]
    scale = side / width
    extent = (left, left + side, top + height * scale, top)
    axes.imshow(picture, extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=1)

    def frame(box: list[float], **how: Any) -> None:
        x, y, w, h = (value * scale for value in box)
        axes.add_patch(Rectangle((left + x, top + y), w, h, fill=False, **how))

    for one in there.objects[row]:
        frame(list(one.box), edgecolor="white", linewidth=1.0)
        frame(list(one.box), edgecolor=colours[one.label], linewidth=1.0, linestyle=(0, (3, 2)))
    assert found.scores is not None
    for box, label, score in zip(found.boxes.tolist(), found.classes.tolist(), found.scores.tolist(), strict=True):
        if score >= SURE:
            frame(box, edgecolor=colours[label], linewidth=1.4)
            x, y = left + box[0] * scale, top + box[1] * scale
            plate = {"facecolor": colours[label], "edgecolor": "none", "pad": 1}
            put_text(
                axes, f"{100 * score:.0f}", x + 0.03, y + 0.07, size=7, color="white", fontweight="bold", bbox=plate
            )


def _table(data: EvalData, there: Annotations, rows: list[int], found: list[Objects]) -> list[tuple[object, ...]]:
    return [
        (data.test.names[row], there.classes[label], score, *box)
        for row, one in zip(rows, found, strict=True)
        for box, label, score in zip(
            one.boxes.tolist(), one.classes.tolist(), [] if one.scores is None else one.scores.tolist(), strict=True
        )
    ]
