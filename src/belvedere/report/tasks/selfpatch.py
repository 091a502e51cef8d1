"""Which of its eight neighbours a patch is asked to predict (SelfPatch, arXiv:2206.07990)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import (
    ACCENT,
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

IMAGES = 6
# In cells: side of a view, distance of the 3 x 3 patches beside it, their side, and heights of a row and of the sums.
VIEW, STEP, AROUND, ROW, SUMS = 1.5, 1.3, 1.17, 1.68, 1.3


@dataclass(frozen=True)
class Choices:
    """What the task's `show` gave, of n views on a grid of T = height x width patches.

    Attributes:
        pixels: (n, C, h, w).
        neighbours: (T, 8) ids.
        similarity, chosen: (n, T, 8), float and bool.
    """

    height: int
    width: int
    pixels: Tensor
    neighbours: NDArray[np.int64]
    similarity: NDArray[np.float32]
    chosen: NDArray[np.bool_]

    @property
    def k(self) -> int:
        """Neighbours chosen of eight."""
        return int(self.chosen[0, 0].sum())

    def directions(self) -> NDArray[np.int64]:
        """(T, 8, 2) row and column, 0 to 2, in which each neighbour lies around its patch at (1, 1)."""
        place = np.arange(self.height * self.width)[:, None]
        down = (self.neighbours // self.width - place // self.width + 1) % self.height
        right = (self.neighbours % self.width - place % self.width + 1) % self.width
        return np.stack([down, right], axis=-1)

    def shares(self) -> NDArray[np.float64]:
        """(3, 3) how often each direction is chosen, over all patches of all views; the middle is 0."""
        found = np.zeros((3, 3))
        y, x = np.moveaxis(self.directions(), -1, 0)
        np.add.at(found, (y, x), self.chosen.mean(0) / len(self.neighbours))
        return found


def draw(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder) -> list[Picture]:
    """Write selfpatch.webp and selfpatch.csv.

    Args:
        shown: what the task's `show` gave.
        encoder: for mean and std of the pixels.
    """
    height, width = (int(side) for side in shown["grid"].tolist())
    found = Choices(
        height,
        width,
        shown["pixels"],
        shown["neighbours"].long().numpy(),
        shown["similarity"].numpy(),
        shown["chosen"].numpy() > 0,
    )
    images, queries = min(IMAGES, len(found.pixels)), _queries(height, width)
    columns, rows = VIEW + 0.15 + STEP * len(queries), ROW * images + SUMS
    figure = new_figure(1.15 * columns, 1.15 * rows)
    axes = cell_axes(figure, columns, rows)
    for i in range(images):
        _put_row(axes, found, i, queries, printable(encoder, found.pixels[i]), ROW * i + 0.04)
    _put_shares(axes, found, ROW * images + 0.02)
    save_figure(figure, folder / "selfpatch.webp")
    header = ["image", "row", "column", "neighbour_row", "neighbour_column", "cosine", "chosen"]
    table = [
        (i, *divmod(patch, width), *divmod(int(j), width), float(cosine), int(picked))
        for i in range(images)
        for patch, ids in enumerate(found.neighbours)
        for j, cosine, picked in zip(ids, found.similarity[i, patch], found.chosen[i, patch], strict=True)
    ]
    write_table(folder / "selfpatch.csv", header, table)
    alike = f"{found.similarity[found.chosen].mean():.2f}"
    alike += "" if found.k == 8 else f", the others {found.similarity[~found.chosen].mean():.2f}"
    return [
        Picture(
            "selfpatch",
            "Neighbours that patches are asked to predict",
            "Left a view with numbered patches; beside it each of them amid its eight neighbours, with their "
            f"similarity to it. The {found.k} framed ones are its positives: the patch must predict what the teacher "
            "makes of them. They should show more of the same thing. Beyond the border of a view lies its opposite "
            f"side. Over all patches, chosen neighbours have a mean cosine of {alike}: where the two are close, tokens "
            "tell little apart. At the bottom, how often each direction is chosen; one that always wins means that "
            "positions speak louder than what is seen.",
            f"{images} views with {len(queries)} patches each among their eight neighbours, {found.k} of them framed.",
            "selfpatch.webp",
            "selfpatch.csv",
        )
    ]


def _queries(height: int, width: int) -> list[int]:
    """The middles of the four quarters and the last corner, which looks across two borders."""
    rows, columns = (height // 4, 3 * height // 4), (width // 4, 3 * width // 4)
    places = [y * width + x for y in rows for x in columns] + [height * width - 1]
    return list(dict.fromkeys(places))


def _put_row(axes: Axes, found: Choices, i: int, queries: list[int], view: NDArray[np.float32], top: float) -> None:
    """One view, and each query amid its neighbours."""
    put_image(axes, view, 0.03, top, side=VIEW)
    badge = {"boxstyle": "circle,pad=0.15", "facecolor": ACCENT, "linewidth": 0}
    for number, query in enumerate(queries):
        y, x = divmod(query, found.width)
        middle = 0.03 + (x + 0.5) * VIEW / found.width, top + (y + 0.5) * VIEW / found.height
        put_text(axes, str(number + 1), *middle, size=6, color="white", ha="center", bbox=badge)
        left = VIEW + 0.15 + STEP * number
        put_text(axes, str(number + 1), left + AROUND / 2, top + 0.14, size=6, color="white", ha="center", bbox=badge)
        _put_around(axes, found, i, query, view, left, top + 0.3)


def _put_around(
    axes: Axes, found: Choices, i: int, query: int, view: NDArray[np.float32], left: float, top: float
) -> None:
    """A patch and its eight neighbours as 3 x 3, those chosen framed, with their cosines."""
    side = AROUND / 3
    put_image(axes, _patch(found, view, query), left + side + 0.02, top + side + 0.02, side=side - 0.04)
    for j, (y, x) in enumerate(found.directions()[query]):
        corner = left + x * side + 0.02, top + y * side + 0.02
        picked = bool(found.chosen[i, query, j])
        put_image(axes, _patch(found, view, int(found.neighbours[query, j])), *corner, side=side - 0.04)
        if picked:
            put_frame(axes, *corner, ACCENT, side=side - 0.04, width=2.2)
        badge = {"boxstyle": "square,pad=0.1", "facecolor": "black", "alpha": 0.6, "linewidth": 0}
        centre = corner[0] + side / 2 - 0.02, corner[1] + side - 0.1
        put_text(
            axes, f"{found.similarity[i, query, j]:.2f}", *centre, size=4.6, color="white", ha="center", bbox=badge
        )


def _patch(found: Choices, view: NDArray[np.float32], patch: int) -> NDArray[np.float32]:
    y, x = divmod(patch, found.width)
    high, wide = view.shape[0] // found.height, view.shape[1] // found.width
    return view[y * high : (y + 1) * high, x * wide : (x + 1) * wide]


def _put_shares(axes: Axes, found: Choices, top: float) -> None:
    """How often each of the eight directions is chosen."""
    side, left = AROUND / 3, 0.03 + (VIEW - AROUND) / 2
    for (y, x), share in np.ndenumerate(found.shares()):
        if (y, x) == (1, 1):
            continue
        corner = left + x * side, top + y * side
        put_frame(axes, corner[0] + 0.02, corner[1] + 0.02, ACCENT, side=side - 0.04, width=0.5 + 3 * share)
        put_text(axes, f"{100 * share:.0f} %", corner[0] + side / 2, corner[1] + side / 2, size=6.5, ha="center")
    words = (
        f"how often the neighbour in each direction is among the {found.k} chosen,\n"
        f"over {len(found.pixels)} views; {100 * found.k / 8:.0f} % if no direction is preferred"
    )
    put_text(axes, words, VIEW + 0.2, top + AROUND / 2, size=8)
