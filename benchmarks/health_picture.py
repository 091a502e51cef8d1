"""Draw docs/health.png from benchmarks/results/health.json: values of healthy and broken runs, with their bands.

python benchmarks/health_picture.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from belvedere.measure.bands import RULES

ROOT = Path(__file__).parents[1]
# Value, healthy run, broken run, title, whether y is logarithmic, its range.
PANELS = (
    ("entropy_share", "dino", "dino-no-sharpening", "Entropy of the teacher / ln K", False, (0, 1.05)),
    ("mean_entropy_share", "dino", "dino-no-centring", "Variety of the teacher's answers", False, (0, 1.05)),
    ("projection_rank", "simsiam", "simsiam-no-stop", "Directions of the projections", True, (0.9, 10)),
    ("patch_step", "mocov3", "mocov3-large-lr", "Step of the patch embedding / its length", True, (1e-4, 1)),
)
SHADES = {"amber": "#f2b632", "red": "#e4574f"}


def draw(axes: Axes, runs: list[dict[str, Any]], panel: tuple[Any, ...]) -> None:
    """One value: the bands that judge it, and a line for every seed of both runs."""
    name, healthy, broken, title, log, (bottom, top) = panel
    steps = next(run["settings"]["train.steps"] for run in runs if run["case"] == healthy)
    for rule in (rule for rule in RULES if rule.value == name):
        end = top if rule.worse == "above" else bottom
        amber, red = np.clip((rule.amber, rule.red), bottom, top)
        for shade, low, high in (("amber", amber, red), ("red", red, end)):
            axes.fill_between([rule.start * steps, steps], low, high, color=SHADES[shade], alpha=0.25, linewidth=0)
    for case, colour in ((healthy, "#2f6ae0"), (broken, "#2b2f36")):
        for i, run in enumerate(run for run in runs if run["case"] == case):
            x, y = np.array(run["curves"][name]).T
            style = "-" if case == healthy else "--"
            axes.plot(x, y, style, color=colour, linewidth=1.4, label=None if i else case)
    axes.axvline(steps / 3, color="#9aa4b2", linewidth=0.8, linestyle=":")
    axes.set(title=title, xlim=(0, steps), ylim=(bottom, top), yscale="log" if log else "linear")
    axes.title.set_fontsize(10)
    axes.tick_params(labelsize=8, length=0)
    axes.legend(fontsize=8, frameon=False)
    for side in axes.spines.values():
        side.set_visible(False)


def main() -> None:
    found = json.loads((ROOT / "benchmarks" / "results" / "health.json").read_text())
    figure = Figure(figsize=(8.4, 5.4), dpi=100, layout="constrained")
    for axes, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        draw(axes, found["runs"], panel)
    figure.supxlabel("steps; dotted: a third of the run", fontsize=9)
    figure.savefig(ROOT / "docs" / "health.png")


if __name__ == "__main__":
    main()
