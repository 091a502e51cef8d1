"""What learned views did over training, from the run's log: A1 to A3 of spec view_policies 5."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from belvedere.measure.bands import RULES
from belvedere.report.charts import Bar, bars, ridges
from belvedere.report.curves import Panel, smoothed
from belvedere.report.plots import Line, plot, short
from belvedere.report.policy_curves import LEARNED, PARTS, cost_panels, line_of, points_of, single_panel
from belvedere.report.record import Record
from belvedere.views.policies._law import MAGNITUDE_START, mean_magnitude

# Share of chance from which on views are too hard to recognise (spec 2.7).
ALARM = next(rule.amber for rule in RULES if rule.value == "policy/l_reg_share")


def operation_panels(record: Record) -> list[Panel]:
    """A1 and A3: probability, magnitude and reward of every operation."""
    magnitude = float(mean_magnitude(torch.tensor([MAGNITUDE_START])))
    panels = [
        _ridges(
            record,
            "p/",
            "Probability of each operation",
            "How often it is drawn first or second; dashed: all alike, where the policy starts.",
            (lambda operations: ("all alike", 1 / operations)),
        ),
        _ridges(
            record,
            "m/",
            "Mean strength of each operation",
            f"0: it changes nothing, 1: the end of its range; dashed: where a policy starts, {magnitude:.2f}.",
            (lambda _: ("start", magnitude)),
        ),
        _rewards(record),
    ]
    return [panel for panel in panels if panel is not None]


def strength_panels(record: Record) -> list[Panel]:
    """A2: the second operation, the regulariser and its weight, dead views, entropy."""
    operations = len(_operations(record, "p/"))
    target = (record.resolved.config.views.model_extra or {}).get("retention")
    panels = [
        single_panel(
            record,
            "policy/retention",
            "How hard views are to recognise",
            "By the loss of finding a view's own image in its batch. 0: no harder than the crop alone makes "
            "it, 1: no better than guessing. The dashed line is what was asked for.",
            domain=(0, 1),
            floors=[("asked for", float(target))] if isinstance(target, int | float) else [],
        ),
        single_panel(
            record,
            "policy/lambda",
            "Weight of recognisability (lambda)",
            "Rises while views are too hard to recognise, falls while they are too easy; 0: nothing holds the policy. "
            "Dashed: where it came to rest in small trials of the method, 1.0 to 1.8 by what was asked for.",
            domain=(0, 2),
            floors=[("off", 0.0), ("from 1.0", 1.0), ("to 1.8", 1.8)],
        ),
        single_panel(
            record,
            "policy/dead_views",
            "Views that show nothing",
            "Share of views that are almost one plain colour. Above 0.01 the policy destroys images.",
            domain=(0, 0.02),
            floors=[("alarm", 0.01)],
        ),
        single_panel(
            record,
            "policy/entropy",
            "Variety of the operations (entropy)",
            "In nats; dashed: all operations alike. Near 0 the policy always does the same.",
            domain=(0, 1),
            floors=[("all alike", math.log(operations))] if operations > 1 else [],
        ),
        single_panel(
            record,
            "policy/apply",
            "Probability of a second operation",
            "The first is always applied. Dashed: where a policy starts.",
            domain=(0, 1),
            floors=[("start", 0.5)],
        ),
        _recognition(record),
    ]
    known = [panel for panel in panels if panel is not None]
    return known + (cost_panels(record, known) if not record.of_steps("hard/iou") else [])


def _recognition(record: Record) -> Panel | None:
    """l_reg between what crops alone lose and chance, the logarithm of the number of images to choose from."""
    found, crops, shares = (record.of_steps(f"{LEARNED}{name}") for name in ("l_reg", "floor", "l_reg_share"))
    if not found:
        return None
    chance = found[-1][1] / shares[-1][1] if shares and shares[-1][1] > 0 else 0.0
    title, now = "Loss of finding a view's own image", smoothed(found, PARTS)[-1]
    lines = [line_of("views", found), *([line_of("crops alone", crops)] if crops else [])]
    floors = [("chance", chance), ("alarm", ALARM * chance)] if chance else []
    note = (
        "In nats; what lambda weighs. Higher is harder to recognise. Dashed: chance, which is the logarithm of the "
        f"number of images in the batch, and {ALARM:g} of it, from where on views are too hard."
    )
    svg = plot(lines, floors=floors, last_step=record.done)
    told = f", chance {chance:.3g}" if chance else ""
    told += f", of crops alone {smoothed(crops, PARTS)[-1]:.3g}" if crops else ""
    return Panel(title, short(now), note, f"{title} over the steps: {now:.3g} at the end{told}.", svg)


def _operations(record: Record, kind: str) -> list[str]:
    prefix = f"{LEARNED}{kind}"
    names = dict.fromkeys(name for entry in record.steps for name in entry if name.startswith(prefix))
    return [name.removeprefix(prefix) for name in names]


def _ridges(
    record: Record, kind: str, title: str, note: str, level: Callable[[int], tuple[str, float]]
) -> Panel | None:
    """`level` gives a dashed line and its label for so many operations."""
    series = {name: record.of_steps(f"{LEARNED}{kind}{name}") for name in _operations(record, kind)}
    if not series:
        return None
    ordered = sorted(series, key=lambda name: -series[name][-1][1])
    svg = ridges([Line(name, *points_of(series[name])) for name in ordered], level(len(series)), record.done)
    alt = f"{title} at the end: " + ", ".join(f"{name} {series[name][-1][1]:.2f}" for name in ordered) + "."
    return Panel(title, f"most: {ordered[0]}", note, alt, svg)


def _rewards(record: Record) -> Panel | None:
    rows = []
    for name in _operations(record, "reward/"):
        value, error = record.of_steps(f"policy/reward/{name}"), record.of_steps(f"policy/reward_se/{name}")
        rows.append(Bar(name, value[-1][1], 1.96 * error[-1][1] if error else 0.0))
    if not rows:
        return None
    rows.sort(key=lambda bar: -bar.value)
    title = "What each operation brings"
    note = (
        "At the end: reward of views with the operation above the mean of their batch (harder for the network, yet "
        "recognisable), with its 95 % interval. Those right of 0 are drawn more and more often."
    )
    alt = f"{title}: " + ", ".join(f"{bar.label} {bar.value:.3f}" for bar in rows) + "."
    return Panel(title, f"best: {rows[0].label}", note, alt, bars(rows, digits=3))
