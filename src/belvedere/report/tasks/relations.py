"""What RelViT's task learned: which relations are taken for which, and the places of the grid that are recognised."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import INK, Picture, new_figure, save_figure, write_table
from belvedere.tasks.relations import RELATIONS

WORDS = (
    *("above left", "above", "above right"),
    *("left", "itself", "right"),
    *("below left", "below", "below right"),
)
"""The relations as words, in the order of `RELATIONS`: patch a is ... of patch b."""


def draw(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder) -> list[Picture]:
    """Draw those of the pictures whose head there is.

    Args:
        shown: `confusion` (9, 9) counts, rows the truth; `places` (h, w) share of the images in which it was right;
            `distance` and `angle` (2, P) truth and what was said of every pair.
    """
    pictures = []
    if "confusion" in shown:
        pictures.append(_confusion(folder, shown["confusion"].numpy().astype(np.int64)))
    if "places" in shown:
        pictures.append(_places(folder, shown["places"].numpy().astype(np.float64)))
    if regressed := [name for name in ("distance", "angle") if name in shown]:
        pictures.append(_regressed(folder, {name: shown[name].numpy().astype(np.float64) for name in regressed}))
    return pictures


def _confusion(folder: Path, counts: NDArray[np.int64]) -> Picture:
    """Write relations.webp and relations.csv."""
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(1, totals)
    figure = new_figure(6.2, 5.0)
    axes = figure.add_axes((0.2, 0.2, 0.78, 0.78))
    _heat(axes, shares)
    axes.set_xticks(range(len(WORDS)), WORDS, rotation=40, ha="right")
    axes.set_yticks(range(len(WORDS)), WORDS)
    axes.set_xlabel("was said to be")
    axes.set_ylabel("is")
    _in_ink(axes)
    save_figure(figure, folder / "relations.webp")
    rows = [
        (RELATIONS[i], WORDS[i], RELATIONS[j], WORDS[j], int(counts[i, j]), float(shares[i, j]))
        for i, j in np.ndindex(*counts.shape)
    ]
    write_table(folder / "relations.csv", ["relation", "is", "called", "was said to be", "pairs", "share"], rows)
    right, most = counts.diagonal().sum() / counts.sum(), totals.max() / counts.sum()
    return Picture(
        "relations",
        "Relations of patches",
        "From the tokens of two patches the network says where the first lies as seen from the second. Each row is one "
        "true relation, its squares the share of pairs that were called so: what is right lies on the diagonal. Over "
        f"all pairs of some training images {right:.0%} are right; always naming the most frequent relation would give "
        f"{most:.0%}. Near 100 % the tokens carry their position, and the task teaches nothing more.",
        f"Confusion matrix of nine relations between patches; {right:.0%} of the pairs are right.",
        "relations.webp",
        "relations.csv",
    )


def _places(folder: Path, shares: NDArray[np.float64]) -> Picture:
    """Write places.webp and places.csv."""
    height, width = shares.shape
    scale = 3.6 / max(height, width)
    figure = new_figure(scale * width + 0.3, scale * height + 0.3)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    _heat(axes, shares)
    axes.set_axis_off()
    save_figure(figure, folder / "places.webp")
    rows = [(y, x, float(shares[y, x])) for y, x in np.ndindex(height, width)]
    write_table(folder / "places.csv", ["row", "column", "share right"], rows)
    return Picture(
        "places",
        "Places of patches",
        "From its token alone the network says at which place of the grid a patch lies. Each square is one place, and "
        f"the number the share of some training images in which it was recognised; {shares.mean():.0%} on average, "
        f"where a guess gives {1 / shares.size:.0%}. Corners and borders are often easier than the middle.",
        f"Grid of {height} x {width} patches with the share of images in which each place was recognised, "
        f"{shares.mean():.0%} on average.",
        "places.webp",
        "places.csv",
    )


def _regressed(folder: Path, found: Mapping[str, NDArray[np.float64]]) -> Picture:
    """Write pairs.webp and pairs.csv: what is said of all pairs of one truth, in the mean and from 10 % to 90 %."""
    figure = new_figure(4.2 * len(found), 3.6)
    rows, told = list[tuple[str, float, float, int]](), list[str]()
    for place, (name, (truth, said)) in enumerate(found.items()):
        axes = figure.add_axes(((place + 0.18) / len(found), 0.16, 0.76 / len(found), 0.78))
        about = truth.round(1)
        values = np.unique(about)
        groups = [said[about == value] for value in values]
        means = np.array([group.mean() for group in groups])
        low, high = np.array([np.quantile(group, (0.1, 0.9)) for group in groups]).T
        ends = values.min(), values.max()
        axes.plot(ends, ends, color=INK, linestyle=":", linewidth=1)
        axes.fill_between(values, low, high, alpha=0.25, linewidth=0)
        axes.plot(values, means, marker="o", markersize=3)
        axes.set_xlabel(f"true {name}")
        axes.set_ylabel(f"{name} that is said")
        _in_ink(axes)
        rows += [(name, float(v), float(m), len(group)) for v, m, group in zip(values, means, groups, strict=True)]
        explained = 1 - ((said - truth) ** 2).mean() / max(float(truth.var()), 1e-12)
        told.append(f"of the {name}s {max(0.0, explained):.0%}")
    save_figure(figure, folder / "pairs.webp")
    write_table(folder / "pairs.csv", ["what", "truth", "said", "pairs"], rows)
    return Picture(
        "pairs",
        "Distances and angles of patches",
        "From the tokens of two patches the network says how far they lie apart, and at which angle, on scales of its "
        "task. The line is the mean over all pairs of one truth, the band what is said of eight in ten of them; a "
        f"network that knows lies on the dotted line. It explains {' and '.join(told)}; always saying the mean "
        "explains nothing.",
        f"What is said of every true value; the network explains {' and '.join(told)}.",
        "pairs.webp",
        "pairs.csv",
    )


def _heat(axes: Axes, shares: NDArray[np.float64]) -> None:
    """Shares in [0, 1] as squares, darker for more, with the percent written in where there is room."""
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if max(shares.shape) > 10:
        return
    for y, x in np.ndindex(*shares.shape):
        ink = "white" if shares[y, x] > 0.55 else "#22303c"
        axes.text(x, y, f"{100 * shares[y, x]:.0f}", ha="center", va="center", fontsize=8, color=ink)


def _in_ink(axes: Axes) -> None:
    """Ticks, labels and frame in the ink that reads on any page."""
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for spine in axes.spines.values():
        spine.set_visible(False)
