"""The few-shot curve: right answers over labels a class, with intervals, floors as dashed lines."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes

from belvedere.evaluate.contract import PIXELS, RUN, UNTRAINED, EvalData, Result
from belvedere.report.drawing import ACCENT, BAD, GOOD, INK, Picture, new_figure, save_figure, write_table
from belvedere.report.protocols._images import shortened

COLOURS = (GOOD, BAD, "#c98a12", "#8d5fd3")
"""Of baselines, in turn."""
APART = 0.065
"""Least distance of two labels at the right end, in heights of the axes."""


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write fewshot.webp and fewshot.csv."""
    shots: list[int] = result.settings["shots"]
    figure = new_figure(6.4, 3.4)
    axes = figure.add_axes((0.09, 0.14, 0.64, 0.82))
    axes.patch.set_alpha(0)
    ends: list[tuple[float, str, str]] = []
    baselines = [name for name in result.metrics if name not in (RUN, UNTRAINED, PIXELS)]
    for name, numbers in result.metrics.items():
        points = [numbers[f"shots{n}"] for n in shots]
        floor = name in (UNTRAINED, PIXELS)
        colour = ACCENT if name == RUN else INK if floor else COLOURS[baselines.index(name) % len(COLOURS)]
        values = [point.value for point in points]
        style = {UNTRAINED: (0, (4, 2)), PIXELS: (0, (1, 1.5))}.get(name, "-")
        axes.plot(shots, values, color=colour, linestyle=style, linewidth=1.2 if floor else 1.8, marker="o", ms=3.2)
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(shots, low, high, color=colour, alpha=0.08 if floor else 0.16, linewidth=0)
        label = "this run" if name == RUN else shortened(name, 22)
        ends.append((values[-1], f"{label} {values[-1]:.1f}", colour))
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, labels=[str(n) for n in shots])
    axes.set_xlabel("labelled images a class", color=INK, fontsize=8)
    axes.set_ylabel("top-1, %", color=INK, fontsize=8)
    axes.tick_params(which="both", colors=INK, labelsize=8, length=0)
    axes.grid(True, axis="y", color=INK, alpha=0.2, linewidth=0.6)
    for side in axes.spines.values():
        side.set_visible(False)
    _label(axes, ends)
    save_figure(figure, folder / "fewshot.webp")
    rows = [
        (name, n, numbers[f"shots{n}"].value, numbers[f"shots{n}"].low, numbers[f"shots{n}"].high)
        for name, numbers in result.metrics.items()
        for n in shots
    ]
    write_table(folder / "fewshot.csv", ["encoder", "labels_a_class", "percent", "low", "high"], rows)
    said = _said(result, shots)
    return [
        Picture(
            "fewshot",
            "How many labels are needed",
            f"A linear probe on so many labelled images of each class, the mean over {result.settings['draws']} draws "
            f"of them, with 95 % intervals over draws and test images. {said}",
            f"Curves of {len(result.metrics)} encoders over {shots[0]} to {shots[-1]} labels a class. {said}",
            "fewshot.webp",
            "fewshot.csv",
        )
    ]


def _said(result: Result, shots: list[int]) -> str:
    """The run's ends of the curve, and how many labels a floor needs for what the run has with the fewest."""
    run = result.metrics[RUN]
    first, last = run[f"shots{shots[0]}"].value, run[f"shots{shots[-1]}"].value
    told = [f"The run goes from {first:.1f} % with {shots[0]} to {last:.1f} % with {shots[-1]}."]
    for name, needs, fails in (
        (UNTRAINED, "the untrained network needs", "the untrained network does not get there with"),
        (PIXELS, "raw pixels need", "raw pixels do not get there with"),
    ):
        if name in result.metrics:
            reached = [n for n in shots if result.metrics[name][f"shots{n}"].value >= first]
            how = f"{needs} {reached[0]}" if reached else f"{fails} {shots[-1]}"
            told.append(f"For its {first:.1f} % {how}.")
    return " ".join(told)


def _label(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """Names right of the curves' ends, pushed up where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    lowest = -1.0
    for value, text, colour in sorted(ends):
        lowest = max(float(to_axes.transform((1, value))[1]), lowest + APART)
        axes.text(1.02, lowest, text, color=colour, fontsize=8, va="center", transform=axes.transAxes, parse_math=False)
