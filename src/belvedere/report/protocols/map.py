"""The map: the run's images where its features place them, and the floors' maps as dots beside it (picture 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.report.drawing import INK, Picture, new_figure, put_text, save_figure, write_table
from belvedere.report.protocols._images import Thumbnails, shortened

MAP = 5.4
"""Inches of the run's map; those of the others are drawn in a row below."""
CELLS = 34
"""Thumbnails at most along a side: one an occupied cell, so that none hides another."""
COLOURS = ("#3b76e1", "#e0524a", "#17a06b", "#c98a12", "#8d5fd3", "#12a5b8", "#d35f9c", "#7a8f2a", "#a0622d", "#5d6b7d")
MOST_COLOURS = len(COLOURS)


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write map.webp and map.csv."""
    others = [name for name in result.draws if name != RUN][:4]
    small = MAP / max(2, len(others))
    legend = 0.55 if _coloured(data) and others else 0.0
    height = MAP + (small + 0.3 if others else 0) + legend
    figure = new_figure(MAP, height)
    axes = figure.add_axes((0, 1 - MAP / height, 1, MAP / height))
    _thumbnails(axes, result.draws[RUN], data)
    for place, name in enumerate(others):
        box = (place * small / MAP, legend / height, small / MAP, small / height)
        beside = figure.add_axes(box)
        _dots(beside, result.draws[name], data)
        title = f"{shortened(name, 24)}, {result.metrics[name]['kept'].value:.0f} % kept"
        put_text(beside, title, 0.5, 1.06, size=7.5, ha="center", transform=beside.transAxes)
    if legend:
        for i, label in enumerate(data.classes):
            left, line = 0.02 + 0.195 * (i % 5), i // 5
            y = (legend - 0.18 - 0.2 * line) / height
            figure.text(left, y, "●", color=COLOURS[i], fontsize=7, va="center")
            text = shortened(label, 15)
            figure.text(left + 0.022, y, text, color=INK, fontsize=7, va="center", parse_math=False)
    save_figure(figure, folder / "map.webp")
    write_table(folder / "map.csv", ["encoder", "image", "class", "x", "y"], _rows(result, data))
    kept, images = result.metrics[RUN]["kept"].value, result.settings["images"]
    method = {"tsne": "t-SNE", "umap": "UMAP"}[result.settings["method"]]
    colours = ", coloured by class" if _coloured(data) else ""
    return [
        Picture(
            "map",
            "Map of the images",
            f"{images} training images, placed by {method} so that what the network finds alike stands side by side; "
            f"on average {kept:.0f} % of an image's nearest ten are among its nearest ten here. Only neighbourhoods "
            "can be read: distances between islands, and their sizes, mean nothing. Below, the same images by the "
            f"other encoders{colours}.",
            f"A map of {images} images as thumbnails by the run's features, {kept:.0f} % of neighbours kept, and "
            f"{len(others)} smaller maps as dots.",
            "map.webp",
            "map.csv",
        )
    ]


def spread(points: NDArray[np.float32], cells: int) -> dict[tuple[int, int], int]:
    """Of a grid of cells x cells over all points, the occupied cells (column, row) and the first point in each."""
    low, high = points.min(0), points.max(0)
    place = np.minimum((cells * (points - low) / np.maximum(high - low, 1e-12)).astype(int), cells - 1)
    found: dict[tuple[int, int], int] = {}
    for i, (column, row) in enumerate(place.tolist()):
        found.setdefault((column, row), i)
    return found


def _thumbnails(axes: Axes, found: dict[str, Any], data: EvalData) -> None:
    axes.set_axis_off()
    thumbnails = Thumbnails(data.train, 48)
    for (column, row), i in spread(found["points"], CELLS).items():
        image = thumbnails[int(found["rows"][i])]
        extent = (column + 0.04, column + 0.96, row + 0.04, row + 0.96)
        axes.imshow(image, extent=extent, aspect="auto", cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
        if _coloured(data):
            label = data.train_labels[found["rows"][i]]
            axes.add_patch(_border(extent, COLOURS[label] if label >= 0 else INK))
    axes.set_xlim(-0.5, CELLS + 0.5)
    axes.set_ylim(-0.5, CELLS + 0.5)


def _border(extent: tuple[float, float, float, float], colour: str) -> Rectangle:
    left, right, bottom, top = extent
    return Rectangle((left, bottom), right - left, top - bottom, fill=False, edgecolor=colour, linewidth=0.8)


def _dots(axes: Axes, found: dict[str, Any], data: EvalData) -> None:
    points: NDArray[np.float32] = found["points"]
    _frame(axes, points)
    labels = data.train_labels[found["rows"]]
    known = _coloured(data)
    colours = [COLOURS[label] if known and label >= 0 else INK for label in labels]
    axes.scatter(points[:, 0], points[:, 1], s=3, c=colours, linewidths=0, alpha=0.8)


def _frame(axes: Axes, points: NDArray[np.float32]) -> None:
    axes.set_axis_off()
    for limits, set_limits in ((points[:, 0], axes.set_xlim), (points[:, 1], axes.set_ylim)):
        low, high = float(limits.min()), float(limits.max())
        margin = 0.03 * (high - low) or 1.0
        set_limits(low - margin, high + margin)


def _coloured(data: EvalData) -> bool:
    """Whether the classes are few enough to tell by colour."""
    return 1 < len(data.classes) <= MOST_COLOURS and bool((data.train_labels >= 0).any())


def _rows(result: Result, data: EvalData) -> list[tuple[Any, ...]]:
    table = []
    for name, found in result.draws.items():
        for i, (x, y) in zip(found["rows"].tolist(), found["points"].tolist(), strict=True):
            label = data.train_labels[i]
            table.append((name, data.train.names[i], data.classes[label] if label >= 0 else "", x, y))
    return table
