"""Pictures of a classifying protocol: confusion matrix, classes with intervals, most confident errors (picture 11)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from numpy.typing import NDArray
from scipy.stats import binomtest

from belvedere.evaluate.contract import PIXELS, RUN, UNTRAINED, EvalData, Result
from belvedere.report.drawing import (
    ACCENT,
    BAD,
    INK,
    Picture,
    cell_axes,
    new_figure,
    put_frame,
    put_image,
    put_text,
    save_figure,
    write_table,
)
from belvedere.report.protocols._images import Thumbnails, shortened

MOST_CLASSES = 24
"""Of the matrix and the bars; of more, those that the run confuses most."""
ERRORS = 12
COLUMNS = 6
_SHADE = LinearSegmentedColormap.from_list("shade", ["#3b76e100", "#3b76e1ff"])
_MARKS = {UNTRAINED: "s", PIXELS: "D"}

Labels = NDArray[np.int64]


def draw_classification(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """The three pictures of a protocol whose `draws[subject]` hold `confusion`, `predictions` and `confidence`."""
    confusion: Labels = result.draws[RUN]["confusion"]
    shown = chosen_classes(confusion)
    return [
        _draw_confusion(folder, result.protocol, confusion, shown, data),
        _draw_classes(folder, result, shown, data),
        _draw_errors(folder, result.protocol, result.draws[RUN], data),
    ]


def chosen_classes(confusion: Labels) -> list[int]:
    """Ascending classes to show: all that have test images, or those with most errors made in and into them."""
    present = np.flatnonzero(confusion.sum(1))
    wrong = confusion - np.diag(np.diag(confusion))
    errors = wrong.sum(0) + wrong.sum(1)
    worst = present[np.argsort(-errors[present], kind="stable")][:MOST_CLASSES]
    return sorted(worst.tolist())


def wilson(right: int, of: int) -> tuple[float, float]:
    """95 % interval of a share in percent, by Wilson's score."""
    found = binomtest(right, of).proportion_ci(method="wilson")
    return 100 * float(found.low), 100 * float(found.high)


def _draw_confusion(folder: Path, protocol: str, confusion: Labels, shown: list[int], data: EvalData) -> Picture:
    """Rows are true classes, their cells shares of the row in percent; the interval of each stands in the table."""
    n = len(shown)
    part = confusion[np.ix_(shown, shown)]
    totals = confusion.sum(1)[shown]
    shares = 100 * part / totals[:, None]
    names = [shortened(data.classes[i], 18) for i in shown]
    left = 0.35 + 0.085 * max(map(len, names))
    side = 0.62 if n <= 12 else 0.4
    top = left
    figure = new_figure(left + side * n, top + side * n)
    axes = cell_axes(figure, (left + side * n) / side, (top + side * n) / side)
    x0, y0 = left / side, top / side
    axes.imshow(shares, extent=(x0, x0 + n, y0 + n, y0), cmap=_SHADE, vmin=0, vmax=100, aspect="auto")
    axes.set_xlim(0, x0 + n)
    axes.set_ylim(y0 + n, 0)
    rows: list[tuple[Any, ...]] = []
    for i in range(n):
        put_text(axes, names[i], x0 - 0.15, y0 + i + 0.5, size=8, ha="right")
        put_text(axes, names[i], x0 + i + 0.5, y0 - 0.15, size=8, ha="center", va="bottom", rotation=90)
        for j in range(n):
            low, high = wilson(int(part[i, j]), int(totals[i]))
            pair = data.classes[shown[i]], data.classes[shown[j]]
            rows.append((*pair, int(part[i, j]), int(totals[i]), float(shares[i, j]), low, high))
            if part[i, j]:
                colour = "white" if shares[i, j] > 45 else INK
                size = 8.5 if n <= 12 else 6.5
                put_text(axes, f"{shares[i, j]:.0f}", x0 + j + 0.5, y0 + i + 0.42, size=size, ha="center", color=colour)
                if n <= 12:
                    text = f"{low:.0f} to {high:.0f}"
                    put_text(axes, text, x0 + j + 0.5, y0 + i + 0.76, size=4.8, ha="center", color=colour)
    name = f"{protocol}_confusion"
    save_figure(figure, folder / f"{name}.webp")
    header = ["class", "answer", "images", "of", "percent", "low", "high"]
    write_table(folder / f"{name}.csv", header, rows)
    off = np.where(np.eye(n, dtype=bool), -1, part)
    i, j = divmod(int(off.argmax()), n)
    worst = (
        f"Most often {data.classes[shown[i]]} is taken for {data.classes[shown[j]]} "
        f"({int(part[i, j])} of {int(totals[i])})."
        if off[i, j] > 0
        else "No class shown is taken for another."
    )
    less = "" if n == (confusion.sum(1) > 0).sum() else f" Only the {n} classes with most errors are shown."
    return Picture(
        name,
        "What is taken for what",
        "Each row is a true class, each column an answer; a cell is the share of the row's images in percent, below it "
        f"its 95 % interval (Wilson). {worst}{less}",
        f"Confusion matrix of {n} classes. {worst}",
        f"{name}.webp",
        f"{name}.csv",
    )


def _draw_classes(folder: Path, result: Result, shown: list[int], data: EvalData) -> Picture:
    """Bars of the run's share of right answers a class, with intervals; floors and baselines as marks."""
    subjects = list(result.draws)
    right = {name: np.diag(result.draws[name]["confusion"])[shown] for name in subjects}
    totals = result.draws[RUN]["confusion"].sum(1)[shown]
    order = np.argsort(right[RUN] / totals, kind="stable")
    figure = new_figure(6.4, 0.75 + 0.27 * len(shown))
    axes = figure.add_axes((0.27, 0.42 / figure.get_figheight(), 0.7, 1 - 0.75 / figure.get_figheight()))
    axes.patch.set_alpha(0)
    rows: list[tuple[Any, ...]] = []
    others = [name for name in subjects if name != RUN]
    for y, i in enumerate(order.tolist()):
        for name in subjects:
            low, high = wilson(int(right[name][i]), int(totals[i]))
            share = 100 * float(right[name][i] / totals[i])
            rows.append((data.classes[shown[i]], name, int(right[name][i]), int(totals[i]), share, low, high))
            if name == RUN:
                axes.barh(y, share, height=0.62, color=ACCENT, alpha=0.75, label="this run" if not y else None)
                axes.plot([low, high], [y, y], color=INK, linewidth=1.1)
            else:
                mark, colour = _MARKS.get(name, "o"), INK if name in _MARKS else BAD
                label = None if y else shortened(name, 24)
                axes.plot(share, y, mark, color="white", mec=colour, mew=1.1, markersize=5, label=label)
    axes.set_yticks(range(len(shown)))
    axes.set_yticklabels([f"{shortened(data.classes[shown[i]], 20)} ({totals[i]})" for i in order], parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("right answers, %", color=INK, fontsize=8)
    axes.tick_params(colors=INK, labelsize=8, length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.grid(True, axis="x", color=INK, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    legend = figure.legend(
        loc="upper left", ncols=1 + len(others), fontsize=7.5, frameon=False, labelcolor=INK, bbox_to_anchor=(0.26, 1.0)
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    name = f"{result.protocol}_classes"
    save_figure(figure, folder / f"{name}.webp")
    write_table(folder / f"{name}.csv", ["class", "encoder", "right", "of", "percent", "low", "high"], rows)
    worst, best = (data.classes[shown[order[k]]] for k in (0, -1))
    return Picture(
        name,
        "Class by class",
        "Share of each class's test images that are answered right, the hardest class first, with its 95 % interval "
        "(Wilson) and, in brackets, how many images it is measured on. Where the marks of the floors stand at the end "
        "of the bar, pretraining has done nothing for the class.",
        f"Bars of {len(shown)} classes, from {worst} (lowest) to {best} (highest).",
        f"{name}.webp",
        f"{name}.csv",
    )


def _draw_errors(folder: Path, protocol: str, found: dict[str, Any], data: EvalData) -> Picture:
    """The wrong answers of highest confidence, as images."""
    name = f"{protocol}_errors"
    title = "Most confident errors"
    wrong = np.flatnonzero(found["predictions"] != data.test_labels)
    if not len(wrong):
        return Picture(name, title, skipped="every test image was answered right")
    worst = wrong[np.argsort(-found["confidence"][wrong], kind="stable")][:ERRORS].tolist()
    columns = min(COLUMNS, len(worst))
    lines = -(-len(worst) // columns)
    figure = new_figure(1.25 * columns, 1.25 * 1.45 * lines)
    axes = cell_axes(figure, columns, 1.45 * lines)
    thumbnails = Thumbnails(data.test)
    rows: list[tuple[Any, ...]] = []
    for place, i in enumerate(worst):
        left, top = place % columns + 0.03, 1.45 * (place // columns) + 0.03
        truth, answer = data.classes[data.test_labels[i]], data.classes[found["predictions"][i]]
        put_image(axes, thumbnails[i], left, top, side=0.94)
        put_frame(axes, left, top, BAD, side=0.94, width=1.6)
        put_text(axes, f"is {shortened(truth, 15)}", left, top + 1.04, size=6.5)
        put_text(axes, f"not {shortened(answer, 14)}", left, top + 1.17, size=6.5, color=BAD)
        put_text(axes, f"{100 * found['confidence'][i]:.0f} % sure", left, top + 1.3, size=6.5)
        rows.append((data.test.names[i], truth, answer, float(found["confidence"][i])))
    save_figure(figure, folder / f"{name}.webp")
    write_table(folder / f"{name}.csv", ["image", "class", "answer", "confidence"], rows)
    return Picture(
        name,
        title,
        f"The {len(worst)} wrong answers that the probe was surest of, of {len(wrong)}. They show what the features "
        "cannot tell apart, and now and then that the label is wrong (see near-duplicates and suspected labels).",
        f"{len(worst)} test images with their class and the wrong answer.",
        f"{name}.webp",
        f"{name}.csv",
    )
