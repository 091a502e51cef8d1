"""What curves of view policies have in common, hard ones and learned ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from belvedere.report.curves import POLICIES, Panel, smoothed
from belvedere.report.plots import Line, plot, short
from belvedere.report.record import Record, Series

HARD, LEARNED = POLICIES
# A batch tells these means coarsely: curves are averaged over a twelfth of the run.
PARTS = 12


def single_panel(
    record: Record,
    name: str,
    title: str,
    note: str,
    *,
    domain: tuple[float, float] | None = None,
    floors: Sequence[tuple[str, float]] = (),
) -> Panel | None:
    """The curve of one logged value over the steps; None where it was not logged. `floors`: dashed lines with names."""
    series = record.of_steps(name)
    if not series:
        return None
    now = smoothed(series, PARTS)[-1]
    svg = plot([line_of("", series)], floors=floors, domain=domain, last_step=record.done)
    return Panel(title, short(now), note, f"{title} over the steps: {now:.3g} at the end.", svg)


def points_of(series: Series) -> tuple[list[float], list[float]]:
    """Steps and values as they were logged."""
    return [float(x) for x, _ in series], [y for _, y in series]


def line_of(label: str, series: Series) -> Line:
    """The values smoothed."""
    return Line(label, [float(x) for x, _ in series], smoothed(series, PARTS))


def cost_panels(record: Record, panels: Sequence[Panel | None]) -> list[Panel]:
    """What the policy costs, where one of its own panels is shown."""
    if not any(panels):
        return []
    note = "Time of a step over its time without choosing and learning, by the clock. 1: the policy is free."
    panel = single_panel(record, "view_cost", "What the policy costs", note, domain=(1, 1.5))
    mean = fmean(y for _, y in record.of_steps("view_cost")) if panel else 0.0
    return [replace(panel, value=f"{mean:.2f} on average")] if panel else []
