"""Charts beside the curves over steps, in the same dress: histograms, bars, lines over any x, a frontier, ridges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from belvedere.report.plots import HEIGHT, WIDTH, Line, data_uri, short, stand_in

# Inches: of a row of bars or ridges, and of the axis below ridges.
ROW, FRAME = 0.17, 0.26
# Where bars and ridges begin, right of their labels.
LEFT = 0.36
_SIZE = 7.5


@dataclass(frozen=True)
class Bar:
    """One bar: its label, value, and half the width of the interval around it."""

    label: str
    value: float
    error: float = 0.0


@dataclass(frozen=True)
class Point:
    """One setting: what it costs, what it brings, and what is written beside it (nothing for most)."""

    x: float
    y: float
    label: str = ""


def histogram(
    groups: Sequence[tuple[str, ArrayLike]],
    limits: tuple[float, float],
    x_label: str,
    marks: Sequence[tuple[str, float]] = (),
    bins: int = 24,
) -> str:
    """Shares of the values of several groups per bin, over each other, with their means as short lines.

    `marks` are further means to compare with, by label.
    """
    figure, axes = _figure(HEIGHT, (0.05, 0.22, 0.93, 0.74))
    edges = np.linspace(*limits, bins + 1)
    top = 0.0
    for i, (label, values) in enumerate(groups):
        numbers, colour = np.asarray(values, float), stand_in(f"line{i}")
        share = np.histogram(numbers, edges)[0] / len(numbers)
        top = max(top, float(share.max()))
        axes.stairs(share, edges, color=colour, linewidth=1.4, fill=False)
        axes.stairs(share, edges, color=colour, alpha=0.16, fill=True)
        axes.axvline(float(numbers.mean()), color=colour, linewidth=0.9, linestyle=(0, (3, 2)))
        text = f"{label}, mean {numbers.mean():.2f}"
        _write(axes, text, 0.99, 0.95 - 0.13 * i, colour, ha="right", transform=axes.transAxes)
    for i, (label, value) in enumerate(marks, len(groups)):
        axes.axvline(value, color=stand_in("ink"), linewidth=0.9, linestyle=(0, (1, 2)))
        text = f"{label}, mean {value:.2f}"
        _write(axes, text, 0.99, 0.95 - 0.13 * i, stand_in("ink"), ha="right", transform=axes.transAxes)
    axes.set_xlim(*limits)
    axes.set_ylim(0, (1.25 + 0.2 * len(marks)) * top)
    axes.yaxis.set_major_locator(FixedLocator([]))
    _finish(axes, x_label)
    return data_uri(figure)


def stacked_histograms(
    rows: Sequence[tuple[str, Sequence[ArrayLike]]], labels: Sequence[str], limits: tuple[float, float], x_label: str
) -> str:
    """One histogram below the other on one scale, each with its label left of it.

    Args:
        rows: label, and the shares in equal bins of each of the groups.
        labels: of the groups.
    """
    height, below = len(rows) * 1.8 * ROW + FRAME + 0.3, FRAME + 0.1
    figure, axes = _figure(height, (0.26, below / height, 0.7, 1 - below / height))
    top = max(float(np.max(shares)) for _, groups in rows for shares in groups) or 1.0
    for i, (label, groups) in enumerate(rows):
        for k, shares in enumerate(groups):
            heights = np.asarray(shares, float) / top * 0.88
            edges, colour = np.linspace(*limits, len(heights) + 1), stand_in(f"line{k}")
            axes.stairs(heights - i, edges, baseline=-i, color=colour, alpha=0.3 if k == 0 else 0.0, fill=True)
            axes.stairs(heights - i, edges, baseline=-i, color=colour, linewidth=1.1)
        _write(axes, label, -0.02, 0.3 - i, stand_in("ink"), ha="right", transform=axes.get_yaxis_transform())
    for k, label in enumerate(labels):
        place = limits[0] + (limits[1] - limits[0]) * (1 - 0.25 * (len(labels) - 1 - k))
        _write(axes, label, place, 1.2, stand_in(f"line{k}"), ha="right")
    axes.set_xlim(*limits)
    axes.set_ylim(0.95 - len(rows), 1.45)
    axes.yaxis.set_major_locator(FixedLocator([]))
    _finish(axes, x_label)
    return data_uri(figure)


def bars(rows: Sequence[Bar], level: tuple[str, float] | None = None, digits: int = 2) -> str:
    """Horizontal bars, the first on top, with their values; `level` is a dashed line and its label."""
    figure, axes = _figure(len(rows) * ROW + 0.2, (LEFT, 0.0, 0.52, 1.0))
    place = [-float(i) for i in range(len(rows))]
    values, errors = np.array([bar.value for bar in rows]), np.array([bar.error for bar in rows])
    axes.barh(place, values, height=0.62, color=stand_in("line0"), alpha=0.75)
    if errors.any():
        axes.errorbar(values, place, xerr=errors, fmt="none", ecolor=stand_in("ink"), elinewidth=0.9, capsize=2)
    low, high = min(0.0, float((values - errors).min())), max(0.0, float((values + errors).max()))
    if level is not None:
        high = max(high, level[1])
        bottom = 0.55 - len(rows)
        axes.plot([level[1]] * 2, [bottom, 0.5], color=stand_in("ink"), linewidth=0.9, linestyle=(0, (3, 2)))
        _write(axes, level[0], level[1], 0.85, stand_in("ink"), ha="center")
    span = (high - low) or 1.0
    axes.set_xlim(low - 0.02 * span, high + 0.02 * span)
    axes.set_ylim(0.55 - len(rows), 1.3)
    if low < 0:
        axes.axvline(0, color=stand_in("grid"), linewidth=0.9, zorder=0)
    for y, bar in zip(place, rows, strict=True):
        _write(axes, bar.label, -0.02, y, stand_in("ink"), ha="right", transform=axes.get_yaxis_transform())
        # Adding 0 turns -0 into 0.
        _write(
            axes,
            f"{round(bar.value, digits) + 0.0:.{digits}f}",
            1.02,
            y,
            stand_in("ink"),
            transform=axes.get_yaxis_transform(),
        )
    axes.set_axis_off()
    return data_uri(figure)


def lines(
    given: Sequence[Line], x_label: str, domain: tuple[float, float], level: tuple[str, float] | None = None
) -> str:
    """Lines with dots at few given places, the largest left, labelled at their right ends."""
    figure, axes = _figure(HEIGHT, (0.125, 0.24, 0.6, 0.72))
    places = sorted({x for line in given for x in line.x})
    values = [y for line in given for y in line.y] + ([level[1]] if level else [])
    axes.set_ylim(min(domain[0], *values), max(domain[1], *values) * 1.04)
    ends: list[tuple[float, str, str]] = []
    for i, line in enumerate(given):
        colour = stand_in(f"line{i % 4}")
        axes.plot(line.x, line.y, color=colour, linewidth=1.5, marker="o", markersize=3)
        ends.append((line.y[int(np.argmin(line.x))], line.label, colour))
    if level is not None:
        axes.axhline(level[1], color=stand_in("ink"), linewidth=0.9, linestyle=(0, (3, 2)))
        ends.append((level[1], level[0], stand_in("ink")))
    axes.invert_xaxis()
    _put_ends(axes, ends)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
    axes.grid(True, axis="y", color=stand_in("grid"), linewidth=0.7)
    _finish(axes, x_label)
    return data_uri(figure)


def frontier(points: Sequence[Point], best: Sequence[Point], x_label: str, y_label: str) -> str:
    """All points faint, the best ones joined and labelled."""
    figure, axes = _figure(2.6, (0.125, 0.16, 0.84, 0.78))
    axes.scatter([p.x for p in points], [p.y for p in points], s=7, color=stand_in("ink"), alpha=0.35, linewidths=0)
    axes.plot(
        [p.x for p in best], [p.y for p in best], color=stand_in("line0"), linewidth=1.2, marker="o", markersize=4
    )
    axes.margins(x=0.14, y=0.08)
    for point in _apart(axes, best):
        axes.annotate(
            point.label,
            (point.x, point.y),
            xytext=(4, -9),
            textcoords="offset points",
            fontsize=_SIZE,
            color=stand_in("line0"),
            parse_math=False,
        )
    _write(axes, y_label, 0.0, 1.05, stand_in("ink"), transform=axes.transAxes)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, color=stand_in("grid"), linewidth=0.7)
    _finish(axes, x_label)
    return data_uri(figure)


def ridges(
    rows: Sequence[Line],
    level: tuple[str, float] | None,
    last_step: int,
    written: Callable[[float], str] = short,
) -> str:
    """One small filled curve over steps for each label, all on one scale, with the newest value at its right.

    Filled from 0, which is the row's lower end unless a value is below it.
    """
    height = len(rows) * 1.15 * ROW + FRAME + 0.12
    figure, axes = _figure(height, (LEFT, FRAME / height, 0.52, 1 - FRAME / height))
    values = [y for row in rows for y in row.y] + ([level[1]] if level else [])
    low = min(0.0, *values)
    unit = 0.88 / (max(0.0, *values, low + 1e-9) - low)
    for i, row in enumerate(rows):
        zero, heights = -float(i) - low * unit, np.asarray(row.y, float) * unit
        axes.fill_between(row.x, zero, zero + heights, color=stand_in("line0"), alpha=0.35, linewidth=0)
        axes.plot(row.x, zero + heights, color=stand_in("line0"), linewidth=0.9)
        if level is not None:
            end = zero + level[1] * unit
            axes.plot([0, last_step], [end, end], color=stand_in("ink"), linewidth=0.6, linestyle=(0, (3, 2)))
        place: dict[str, Any] = {"y": 0.35 - i, "colour": stand_in("ink"), "transform": axes.get_yaxis_transform()}
        _write(axes, row.label, -0.02, ha="right", **place)
        _write(axes, written(row.y[-1]), 1.02, **place)
    if level is not None:
        _write(axes, level[0], 1.0, 1.25, stand_in("ink"), ha="right", transform=axes.get_yaxis_transform())
    axes.set_xlim(0, max(last_step, 1))
    axes.set_ylim(0.85 - len(rows), 1.5)
    axes.yaxis.set_major_locator(FixedLocator([]))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    _finish(axes, "")
    return data_uri(figure)


def _figure(height: float, place: tuple[float, float, float, float]) -> tuple[Figure, Axes]:
    """A transparent figure of that height in inches, and axes at (left, bottom, width, height) of it."""
    figure = Figure(figsize=(WIDTH, height))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_axes(place)
    axes.patch.set_alpha(0)
    return figure, axes


def _finish(axes: Axes, x_label: str) -> None:
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.tick_params(which="both", colors=stand_in("ink"), labelsize=_SIZE, length=0, pad=3)
    axes.set_xlabel(x_label, fontsize=_SIZE, color=stand_in("ink"), labelpad=2)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _put_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Labels right of the axes at the heights of their lines' ends, pushed apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    lowest = -1.0
    for value, text, colour in sorted(ends):
        lowest = max(float(to_axes.transform((0, value))[1]), lowest + 0.155)
        _write(axes, text, 1.03, lowest, colour, transform=axes.transAxes)


def _apart(axes: Axes, points: Sequence[Point]) -> list[Point]:
    """Of points that climb, those whose labels do not touch; the last one is always among them."""
    to_axes = axes.transData + axes.transAxes.inverted()
    kept: list[Point] = []
    above = float("inf")
    for point in reversed(points):
        height = float(to_axes.transform((point.x, point.y))[1])
        if height < above - 0.1:
            kept.append(point)
            above = height
    return kept


def _write(axes: Axes, text: str, x: float, y: float, colour: str, **how: Any) -> None:
    axes.text(x, y, text, color=colour, **{"fontsize": _SIZE, "va": "center", "parse_math": False, **how})
