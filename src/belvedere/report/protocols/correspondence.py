"""Lines between two views of an image, from patches to where the network finds them (spec evaluation, picture 10)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.evaluate.protocols.correspondence import Match
from belvedere.report.drawing import (
    BAD,
    GOOD,
    Picture,
    cell_axes,
    new_figure,
    printable,
    put_image,
    save_figure,
    write_table,
)

A_LINE = 3
"""Pairs of views side by side."""
LINES = 14
"""Patches of an image that get a line: more hide what they run over."""
# In cells: the gap between the two views of a pair, the width and the height of a pair.
GAP, PAIR, ROW = 0.18, 2.3, 1.1


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write correspondence.webp and correspondence.csv."""
    rows: list[int] = result.draws[RUN]["rows"]
    matches: list[Match] = result.draws[RUN]["matches"]
    across, down = min(A_LINE, len(matches)), -(-len(matches) // A_LINE)
    columns, height = PAIR * across, ROW * down
    figure = new_figure(9.6 * across / A_LINE, 9.6 / (PAIR * A_LINE) * height)
    axes = cell_axes(figure, columns, height)
    for n, match in enumerate(matches):
        line, place = divmod(n, A_LINE)
        left, top = PAIR * place + 0.04, ROW * line + 0.04
        for side, pixels in enumerate(match.views):
            put_image(axes, printable(data.encoders[RUN], pixels), left + side * (1 + GAP), top)
        right = match.right()
        for patch in _spread(match):
            start = _centre(patch, match.grid, left, top)
            end = _centre(int(match.found[patch]), match.grid, left + 1 + GAP, top)
            _put_line(axes, start, end, bool(right[patch]))
    save_figure(figure, folder / "correspondence.webp")
    header = ["image", "row", "column", "true_row", "true_column", "found_row", "found_column", "within_one_cell"]
    table = [row for i, match in zip(rows, matches, strict=True) for row in _numbers(data.test.names[i], match)]
    write_table(folder / "correspondence.csv", header, table)
    number, chance = result.metrics[RUN]["within1"], result.settings["chance_percent"][RUN]
    others = [f"{name} {one['within1'].value:.0f} %" for name, one in result.metrics.items() if name != RUN]
    floors = f"; to compare with: {', '.join(others)}" if others else ""
    return [
        Picture(
            "correspondence",
            "Patches found again in another view",
            "Two views of one image each, with other crops, flips and colours. A line leads from a patch of the left "
            "view to the patch of the right view that the network finds most like it: full and green within one cell "
            "of the true place, dashed and red elsewhere. In a network with good local features most are green. Over "
            f"{result.settings['images']} images {number.value:.0f} % [{number.low:.0f}, {number.high:.0f}] are "
            f"right; chance is {chance:.0f} %{floors}.",
            f"{len(matches)} pairs of views with lines between patches and where they were found; "
            f"{number.value:.0f} % of all patches are found within one cell of their place.",
            "correspondence.webp",
            "correspondence.csv",
        )
    ]


def _spread(match: Match) -> list[int]:
    """At most `LINES` of the patches that both views see, spread over them all."""
    seen = match.inside.nonzero()[:, 0].numpy()
    if not len(seen):
        return []
    picked: NDArray[np.int64] = seen[np.linspace(0, len(seen) - 1, min(LINES, len(seen))).round().astype(np.int64)]
    return [int(patch) for patch in np.unique(picked)]


def _centre(patch: int, grid: tuple[int, int], left: float, top: float) -> tuple[float, float]:
    """The middle of a patch of a view that fills a cell of side 1."""
    row, column = divmod(patch, grid[1])
    return left + (column + 0.5) / grid[1], top + (row + 0.5) / grid[0]


def _put_line(axes: Axes, start: tuple[float, float], end: tuple[float, float], right: bool) -> None:
    across, down = zip(start, end, strict=True)
    colour, dashes = (GOOD, "-") if right else (BAD, (0, (2.2, 1.6)))
    # A light edge keeps lines visible on dark images, their own colour on light ones.
    axes.plot(across, down, color="white", linewidth=2.1, alpha=0.6, solid_capstyle="round")
    axes.plot(across, down, color=colour, linewidth=1.2, linestyle=dashes, solid_capstyle="round")
    axes.plot(*start, marker="o", markersize=3.2, color=colour, markeredgecolor="white", markeredgewidth=0.5)
    axes.plot(*end, marker="s", markersize=3.2, color=colour, markeredgecolor="white", markeredgewidth=0.5)


def _numbers(name: str, match: Match) -> list[tuple[object, ...]]:
    """Every patch that both views see."""
    right = match.right()
    return [
        (
            name,
            *divmod(patch, match.grid[1]),
            *(int(x) for x in match.place[patch].floor()),
            *divmod(int(match.found[patch]), match.grid[1]),
            int(right[patch]),
        )
        for patch in match.inside.nonzero()[:, 0].tolist()
    ]
