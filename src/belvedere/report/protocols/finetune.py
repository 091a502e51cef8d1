"""Fine-tuning epoch by epoch: held-out accuracy of every network, and the epochs that the tested ones had."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from belvedere.evaluate.contract import MAJORITY, RUN, EvalData, Result
from belvedere.report.drawing import ACCENT, GOOD, INK, Picture, new_figure, save_figure, write_table

# The run's own first; baselines share the others in turn.
COLOURS = (ACCENT, "#c2571a", GOOD, "#8a4fc4")
LEAST_GAP = 0.07
"""Between two names at the ends of lines, as a share of the height."""


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write finetune.webp and finetune.csv."""
    curves: dict[str, list[float]] = result.chosen["accuracy"]
    best: dict[str, int] = result.chosen["epoch"]
    chance = result.metrics[MAJORITY]["top1"].value
    figure = new_figure(6.4, 3.2)
    axes = figure.add_axes((0.09, 0.15, 0.68, 0.8))
    _style(axes)
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(curves)}
    for name, curve in curves.items():
        epochs = range(1, len(curve) + 1)
        axes.plot(epochs, curve, color=colours[name], linewidth=1.8, marker="." if len(curve) < 4 else "")
        axes.plot(best[name], curve[best[name] - 1], "o", color=colours[name], markersize=6)
    axes.axhline(chance, color=INK, linewidth=0.8, linestyle=":")
    _name_ends(axes, [*((curve[-1], name, colours[name]) for name, curve in curves.items()), (chance, MAJORITY, INK)])
    save_figure(figure, folder / "finetune.webp")
    losses: dict[str, dict[str, list[float]]] = result.chosen["task_losses"]
    rows = [
        (name, i, accuracy, int(i == best[name]), *(loss[i - 1] for loss in losses[name].values()))
        for name, curve in curves.items()
        for i, accuracy in enumerate(curve, 1)
    ]
    write_table(folder / "finetune.csv", ["network", "epoch", "held-out accuracy", "chosen", *losses[RUN]], rows)
    tested = ", ".join(f"{name} {numbers['top1'].value:.1f} %" for name, numbers in result.metrics.items())
    return [
        Picture(
            name="finetune",
            title="Fine-tuning",
            caption=f"Accuracy in percent on {result.chosen['on']}, after each epoch. The dot is how many epochs "
            f"the tested network was trained for; dotted, the commonest class.{_learned(losses[RUN])}",
            alt=f"Lines of held-out accuracy over {len(curves[RUN])} epochs. On the test images: {tested}.",
            file="finetune.webp",
            table="finetune.csv",
        )
    ]


def _learned(losses: dict[str, list[float]]) -> str:
    """What the tasks beside the classes came to, as a sentence; nothing without tasks."""
    if not losses:
        return ""
    told = ", ".join(f"{name} {loss[0]:.2f} to {loss[-1]:.2f}" for name, loss in losses.items())
    return f" Losses of the tasks beside the classes, after the first epoch and the last: {told}."


def _style(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_xlabel("epoch", color=INK, fontsize=8)
    axes.set_ylabel("held-out accuracy, %", color=INK, fontsize=8)


def _name_ends(axes: Axes, ends: list[tuple[float, str, str]]) -> None:
    """The names at the right of the lines, pushed apart where lines end close together."""
    low, high = axes.get_ylim()
    at = -1.0
    for value, name, colour in sorted(ends):
        at = max((value - low) / (high - low), at + LEAST_GAP)
        where = axes.transAxes
        axes.text(1.02, at, name[:24], color=colour, transform=where, fontsize=8, va="center", parse_math=False)
