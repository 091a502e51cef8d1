"""The pictures of docs/views.md that benchmarks/views.py draws from its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#57606a", "#c2571a", "#b58900", "#8a4fc4", "#1f6feb", "#12875a", "#d6336c", "#0aa2c0")
Runs = Mapping[str, list[dict[str, Any]]]
Groups = Mapping[tuple[str, int, float, str], Runs]


def draw_frontier(found: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Cost to the right, kept hardness upwards, one panel an objective."""
    figure, panels = _panels(len(found))
    for axes, (objective, ways) in zip(panels, found.items(), strict=True):
        for number, way in enumerate(ways, 1):
            axes.plot(way["cost"], way["kept"], "o", color="#1f6feb")
            axes.annotate(
                str(number), (way["cost"], way["kept"]), textcoords="offset points", xytext=(4, 4), fontsize=8
            )
        axes.plot(1, 0, "s", color="#57606a")
        axes.set_title(objective)
        axes.set_xlabel("time of a step over that with random")
    panels[0].set_ylabel("hardness kept, mean over all steps")
    figure.savefig(path, dpi=110)


def draw_time(groups: Groups, policies: Sequence[str], path: Path) -> None:
    """k-NN of a run's looks over minutes of its budget: a panel a recipe and data size, a line a policy."""
    figure, panels = _panels(len(groups), width=3.8)
    for axes, ((recipe, images, minutes, _), runs) in zip(panels, groups.items(), strict=True):
        for policy, colour in zip(policies, COLOURS, strict=True):
            if policy in runs:
                x, y = mean_curve(runs[policy])
                axes.plot(x, y, color=colour, label=policy, linewidth=1.6)
        axes.set_title(f"{recipe}, {images:,} images, {minutes:g} minutes", fontsize=10)
        axes.set_xlabel("minutes of the budget")
    panels[0].set_ylabel("k-NN of training images, %")
    figure.legend(
        *_labels(panels), loc="outside lower center", ncols=(len(policies) + 1) // 2, frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=110)


def mean_curve(runs: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Minutes of the budget (steps by the pace of a quiet machine) and k-NN of each look, means over seeds."""
    curves = []
    for run in runs:
        looks = [look for look in run["curve"] if "knn" in look]
        minutes = np.array([look["step"] for look in looks]) * run["minutes"] / run["steps"]
        curves.append((minutes, np.array([look["knn"] for look in looks])))
    shortest = min(len(x) for x, _ in curves)
    x, y = (np.mean([curve[k][:shortest] for curve in curves], axis=0) for k in range(2))
    return x, y


def draw_sweep(groups: Groups, strengths: Mapping[str, float], path: Path) -> None:
    """k-NN and logistic probe on the test images over retention, a dot a run; dashed: `random`."""
    figure, panels = _panels(len(groups), width=4.2)
    for axes, ((recipe, images, minutes, _), runs) in zip(panels, groups.items(), strict=True):
        for (protocol, label), colour in zip(
            {"knn": "k-NN", "logistic": "logistic probe"}.items(), ("#1f6feb", "#c2571a"), strict=True
        ):
            found = {strengths[policy]: _top1(runs[policy], protocol) for policy in strengths if policy in runs}
            axes.plot(list(found), [np.mean(values) for values in found.values()], color=colour, label=label)
            for strength, values in found.items():
                axes.plot([strength] * len(values), values, ".", color=colour)
            if "random" in runs:
                axes.axhline(np.mean(_top1(runs["random"], protocol)), color=colour, linestyle="--", linewidth=0.9)
        axes.set_title(f"{recipe}, {images:,} images, {minutes:g} minutes", fontsize=10)
        axes.set_xlabel("views.retention (dashed: random views)")
    panels[0].set_ylabel("accuracy on the test images, %")
    panels[0].legend(frameon=False)
    figure.savefig(path, dpi=110)


def _top1(runs: Sequence[dict[str, Any]], protocol: str) -> list[float]:
    return [run["test"][protocol]["metrics"]["run"]["top1"]["value"] for run in runs]


def _panels(count: int, width: float = 3.1) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(width * count, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axes in panels:
        axes.grid(alpha=0.3)
    return figure, panels


def _labels(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Every label of the panels once, with its line."""
    found = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)
