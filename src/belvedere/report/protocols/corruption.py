"""Accuracy over strength for every corruption, the floors as lines, above one image at all strengths (picture 13)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from belvedere.evaluate.contract import MAJORITY, PIXELS, RUN, UNTRAINED, EvalData, Number, Result
from belvedere.evaluate.corruptions import corrupted
from belvedere.report.drawing import ACCENT, INK, Picture, new_figure, put_image, save_figure, write_table
from belvedere.report.numbers import CORRUPTIONS

_FLOORS = {UNTRAINED: ("untrained network", ":"), PIXELS: ("raw pixels", "--"), MAJORITY: ("majority class", "-.")}
_OTHERS = ("#c2571a", "#12875a", "#8a4fc4", "#b98512")
# In inches.
_WIDTH, _CURVES, _LEGEND = 9.0, 2.1, 0.45
# Of a row of images: its name, in images' widths.
_NAME = 0.8


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write corruption.webp and corruption.csv."""
    strengths = {kind: list(result.settings[kind]) for kind in CORRUPTIONS}
    columns = _NAME + 1 + max(map(len, strengths.values()))
    height = _CURVES + _LEGEND + _WIDTH / columns * len(strengths)
    figure = new_figure(_WIDTH, height)
    _draw_curves(figure, height, result, strengths)
    image = int(result.draws["images"][0])
    _draw_strip(figure, height, image, strengths, data)
    save_figure(figure, folder / "corruption.webp")
    rows = [
        (subject, kind, level, ("clean", *values)[level], number.value, number.low, number.high)
        for subject, numbers in result.metrics.items()
        for kind, values in strengths.items()
        for level, number in enumerate(_line(numbers, kind, len(values)))
    ]
    header = ["encoder", "corruption", "level", "strength", "top1", "low", "high"]
    write_table(folder / "corruption.csv", header, rows)
    own = result.metrics[RUN]
    told = ", ".join(f"{CORRUPTIONS[kind].lower()} {own[kind].value:.0f} %" for kind in strengths)
    return [
        Picture(
            "corruption",
            "Worse pictures",
            "Top-1 accuracy of a probe that was fitted on clean images, on clean ones (0) and under each corruption at "
            f"growing strength; the band is the 95 % interval of this run. Below, {data.test.names[image]} at all of "
            "them: where you can no longer tell, no network has to.",
            "Four curves of accuracy over strength, and one image at every strength. "
            f"Clean {own['clean'].value:.0f} %, mean over the strengths: {told}.",
            "corruption.webp",
            "corruption.csv",
        )
    ]


def _line(numbers: dict[str, Number], kind: str, levels: int) -> list[Number]:
    """Clean, then every strength; what was read at no strength says the same at all."""
    return [numbers["clean"], *(numbers.get(f"{kind}{level + 1}", numbers["clean"]) for level in range(levels))]


def _draw_curves(figure: Figure, height: float, result: Result, strengths: dict[str, list[float]]) -> None:
    gap, left = 0.32, 0.42
    width = (_WIDTH - left - gap * (len(strengths) - 1) - 0.06) / len(strengths)
    first: Axes | None = None
    for column, (kind, values) in enumerate(strengths.items()):
        corner = (left + column * (width + gap)) / _WIDTH, 1 - (_CURVES - 0.28) / height
        axes = figure.add_axes((*corner, width / _WIDTH, (_CURVES - 0.58) / height), sharey=first)
        first = first or axes
        others = 0
        for subject, numbers in result.metrics.items():
            x, y = np.arange(len(values) + 1), _line(numbers, kind, len(values))
            mean = [number.value for number in y]
            if subject in _FLOORS:
                label, dash = _FLOORS[subject]
                axes.plot(x, mean, color=INK, linewidth=1.1, linestyle=dash, label=label)
                continue
            colour = ACCENT if subject == RUN else _OTHERS[others % len(_OTHERS)]
            others += subject != RUN
            if subject == RUN:
                axes.fill_between(x, [n.low for n in y], [n.high for n in y], color=colour, alpha=0.18, linewidth=0)
            label = "this run" if subject == RUN else subject
            axes.plot(x, mean, color=colour, linewidth=1.9, marker="o", markersize=3.5, label=label)
        _style(axes, CORRUPTIONS[kind], len(values))
    assert first is not None
    handles, labels = first.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (0.03, 1 - (_CURVES + 0.24) / height), "ncols": 6}
    legend = figure.legend(handles, labels, **place, frameon=False, fontsize=8.5, labelcolor=INK, handlelength=3)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _style(axes: Axes, title: str, levels: int) -> None:
    axes.set_title(title, fontsize=10, color=INK, loc="left", pad=5)
    axes.patch.set_alpha(0)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(levels + 1))
    axes.tick_params(colors=INK, labelsize=8, length=0)
    axes.grid(True, axis="y", color=INK, alpha=0.25, linewidth=0.7)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_strip(figure: Figure, height: float, image: int, strengths: dict[str, list[float]], data: EvalData) -> None:
    """A row a corruption: its name, the image as it is, then at every strength."""
    axes = figure.add_axes((0, 0, 1, 1 - (_CURVES + _LEGEND) / height))
    axes.set_axis_off()
    axes.set_xlim(0, _NAME + 1 + max(map(len, strengths.values())))
    axes.set_ylim(len(strengths), 0)
    one = data.test.subset([image])
    with TemporaryDirectory() as folder:
        for row, (kind, values) in enumerate(strengths.items()):
            axes.text(0.03, row + 0.48, CORRUPTIONS[kind], fontsize=9, color=INK, va="center")
            sets = [one, *(corrupted(one, kind, value, data.seed, Path(folder)) for value in values)]
            for column, shown in enumerate(sets):
                pixels = shown.pixels(0) / 255
                seen = pixels.mean(2) if pixels.shape[2] < 3 else pixels[..., :3]
                put_image(axes, seen, _NAME + column, row, side=0.96)
