"""How far the other images are, as bars beside the floors, and those of them that are nearest and farthest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from belvedere.evaluate.contract import RUN, EvalData, Number, Result
from belvedere.report.drawing import ACCENT, BAD, INK, Picture, new_figure, save_figure, write_table
from belvedere.report.numbers import ENCODERS, subjects_in_order
from belvedere.report.protocols._images import Thumbnails, draw_rows, shortened

SHOWN = 8
"""Images a row."""
LISTED = 1000
"""Images in the table, which the page embeds."""
_KINDS = {"frechet_within": ("your images, one half to the other", INK), "frechet": ("the others to yours", ACCENT)}
# In inches.
_WIDTH, _LINE, _NAME = 7.0, 0.52, 1.5


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write shift.webp and shift_images.webp with their tables."""
    return [_bars(folder, result), _images(folder, result, data)]


def _bars(folder: Path, result: Result) -> Picture:
    subjects = subjects_in_order(set(result.metrics))
    height = len(subjects) * _LINE + 0.75
    figure = new_figure(_WIDTH, height)
    box = _NAME / _WIDTH, 0.3 / height, 1 - (_NAME + 0.75) / _WIDTH, len(subjects) * _LINE / height
    axes = figure.add_axes(box)
    for line, subject in enumerate(subjects):
        for k, (metric, (label, colour)) in enumerate(_KINDS.items()):
            _bar(axes, line + 0.3 * k, result.metrics[subject][metric], colour, label if line == 0 else None)
    axes.set_yticks([line + 0.15 for line in range(len(subjects))])
    axes.set_yticklabels([shortened(ENCODERS.get(name, name), 22) for name in subjects], parse_math=False)
    axes.set_ylim(len(subjects) - 0.35, -0.3)
    axes.set_xlim(left=0)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.grid(True, axis="x", color=INK, alpha=0.25, linewidth=0.7)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.legend(loc="upper left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    save_figure(figure, folder / "shift.webp")
    rows = [
        (subject, metric, number.value, number.low, number.high)
        for subject in subjects
        for metric, number in result.metrics[subject].items()
    ]
    write_table(folder / "shift.csv", ["encoder", "metric", "value", "low", "high"], rows)
    own = result.metrics[RUN]
    told = ""
    if "top1_there" in own:
        told = (
            f" A probe is right on {own['top1_here'].value:.0f} % of your test images of the shared classes and on "
            f"{own['top1_there'].value:.0f} % of the others."
        )
    return Picture(
        "shift",
        "How far the other images are",
        "Fréchet distance of the images of --other to yours, in percent of the variance of your images' features, "
        "above it (gray) that between two halves of your own images, which is what no shift looks like; lines are "
        "95 % of the draws. A bar far longer than the gray one says that the images have changed. Lengths of different "
        f"encoders do not compare; how many times the gray one it is does.{told}",
        f"Bars of {len(subjects)} encoders. This run: {own['frechet'].value:.0f} to the others, "
        f"{own['frechet_within'].value:.0f} within your own images.",
        "shift.webp",
        "shift.csv",
    )


def _bar(axes: Axes, y: float, number: Number, colour: str, label: str | None) -> None:
    axes.barh(y, number.value, height=0.27, color=colour, alpha=0.75, linewidth=0, label=label)
    axes.plot([number.low, number.high], [y, y], color=colour, linewidth=1.6, solid_capstyle="butt")
    axes.annotate(
        f"{number.value:.3g}",
        (max(number.value, number.high), y),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=INK,
    )


def _images(folder: Path, result: Result, data: EvalData) -> Picture:
    assert data.other is not None
    distances: NDArray[np.float64] = result.draws["distances"]
    nearest: NDArray[np.int64] = result.draws["nearest"]
    order = np.argsort(distances, kind="stable")
    # Where there are few, no image stands in both rows.
    count = min(SHOWN, len(order) // 2)
    near, far = order[:count], order[::-1][:count]
    test, other = Thumbnails(data.test), Thumbnails(data.other)
    shown: list[tuple[str, str, list[Any]]] = []
    for title, colour, rows in (("nearest to yours", ACCENT, near), ("farthest from yours", BAD, far)):
        shown.append((f"Other images {title}", colour, [other[int(i)] for i in rows]))
        shown.append(("and the image of yours nearest to each", INK, [test[int(nearest[i])] for i in rows]))
    draw_rows(folder / "shift_images.webp", shown)
    listed = [
        (data.other.names[int(i)], data.test.names[int(nearest[i])], float(distances[i])) for i in order[::-1][:LISTED]
    ]
    write_table(folder / "shift_images.csv", ["other_image", "nearest_test_image", "distance"], listed)
    return Picture(
        "shift_images",
        "The nearest and the farthest of them",
        "Images of --other by their distance to the nearest test image in this run's features, 1 less the cosine. What "
        "the farthest have in common (a background, a lens, a scanner's edge) is often what has changed. The table "
        f"names {len(listed)}, the farthest first.",
        f"{count} images at {distances[near[0]]:.2f} to {distances[near[-1]]:.2f}, and {count} at "
        f"{distances[far[-1]]:.2f} to {distances[far[0]]:.2f}, each above the test image nearest to it.",
        "shift_images.webp",
        "shift_images.csv",
    )
