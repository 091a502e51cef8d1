"""What a view policy did over training, from the run's log: hard views (V1 to V8), learned views (A1 to A3).

Spec view_policies 5. The reference numbers are those of the plots in the authors' repository: SimSiam, ResNet-50,
ImageNet, 100 epochs, 4 candidates, crops of 20 to 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np
import torch
from numpy.typing import NDArray

from belvedere.config import Config
from belvedere.measure.bands import RULES
from belvedere.pretrain.compose import slots_of
from belvedere.report.charts import Bar, bars, ridges, stacked_histograms
from belvedere.report.curves import POLICIES, Panel, smoothed
from belvedere.report.plots import Line, plot, short
from belvedere.report.record import Record, Series
from belvedere.schedules import batches
from belvedere.views.chosen import IOU_BINS
from belvedere.views.policies._law import MAGNITUDE_START, mean_magnitude
from belvedere.views.policies.hard import WIDER, by_turns, competing

HARD, LEARNED = POLICIES
REFERENCE = "SimSiam, ResNet-50, ImageNet"
# A batch tells these means coarsely: curves are averaged over a twelfth of the run.
_PARTS = 12
# Histograms over the run.
_HISTOGRAMS = 5
# Share of chance from which on views are too hard to recognise (spec 2.7).
ALARM = next(rule.amber for rule in RULES if rule.value == "policy/l_reg_share")
# What is written for a fact of a pair; those of colours are differences.
FACTS = {
    "iou": "overlap (IoU)",
    "area_small": "smaller crop's area",
    "area_large": "larger crop's area",
    "distance": "distance of centres",
    "corner_distance": "distance of corners",
    "delta_brightness": "brightness",
    "delta_contrast": "contrast",
    "delta_saturation": "saturation",
    "delta_hue": "hue",
    "delta_gray": "grayscale",
    "delta_blur": "blur",
    "masked": "masked patches",
}
_COLOURS = {
    "brightness": "brightness",
    "contrast": "contrast",
    "saturation": "saturation",
    "hue": "hue",
    "gray": "grayscale",
    "blur": "blur",
}


def policy_groups(record: Record) -> list[tuple[str, list[Panel]]]:
    """(heading, panels) of all that the run's policy logged; empty where it logged nothing of its own."""
    groups = [
        ("Which views are chosen", overlap_panels(record)),
        ("Colours of the chosen views", colour_panels(record)),
        ("Is choosing fair, and worth its price?", choice_panels(record)),
        ("Which operations are learned", operation_panels(record)),
        ("How hard the learned views are", strength_panels(record)),
    ]
    return [(heading, panels) for heading, panels in groups if panels]


def told_of_epochs(record: Record) -> str:
    """How many steps an epoch has, as a sentence for the lead of curves over steps; empty where it is not known."""
    batch = record.resolved.config.train.batch
    if record.images is None or batch == "auto":
        return ""
    steps = max(1, batches(record.images, batch))
    return f" {steps:,} {'step' if steps == 1 else 'steps'} = 1 epoch."


# --- hard views -------------------------------------------------------------------------------------------------------


def overlap_panels(record: Record) -> list[Panel]:
    """V1 to V6: overlap, areas and distances of the chosen pair and of the others, their masks, what goes with loss."""
    panels = [
        _compared(
            record,
            "iou",
            "Overlap of the two crops (IoU)",
            "1: the same place of the image, 0: two places that do not touch.",
            "0.345 chosen, 0.488 others; in the first of 100 epochs 0.385 and 0.477, least about 0.33 near epoch 7",
        ),
        _overlap_histograms(record),
        _least_overlap(record),
        _areas(record),
        _compared(
            record,
            "distance",
            "Distance of the crops' centres",
            "As a share of the image's diagonal.",
        ),
        _compared(
            record,
            "corner_distance",
            "Distance of the crops' upper left corners",
            "As a share of the image's diagonal; crops of different size differ here even at one centre.",
            "0.205 chosen, 0.157 others",
        ),
        _masked(record),
        _correlations(record),
    ]
    return [panel for panel in panels if panel is not None]


def _correlations(record: Record) -> Panel | None:
    """V6 over time: what goes with a high loss while the network learns."""
    found = {label: record.of_steps(f"{HARD}corr/{name}") for name, label in FACTS.items()}
    lines = [_line(label, series) for label, series in found.items() if series]
    if not lines:
        return None
    lines.sort(key=lambda line: -abs(line.y[-1]))
    title = "What goes with a pair's loss"
    note = (
        "Rank correlation of each fact with the score among the pairs of an image, the closest on top. Above 0: the "
        "more of it, the harder; below: the less. 1: nothing else counts. Of colours: the difference of both views."
    )
    svg = ridges(lines, ("0", 0.0), record.done, _hundredths)
    alt = f"{title} at the end: " + ", ".join(f"{line.label} {_hundredths(line.y[-1])}" for line in lines) + "."
    return Panel(title, f"most: {lines[0].label}", note, alt, svg)


def _hundredths(y: float) -> str:
    return f"{round(y, 2) + 0.0:.2f}"  # adding 0 turns -0 into 0


def _masked(record: Record) -> Panel | None:
    if not any(y for name in ("masked", "masked_others") for _, y in record.of_steps(f"{HARD}{name}")):
        return None
    note = (
        "As a share of the two views' patches. A view without a mask has no loss of patches, so masked ones are chosen "
        "more often whatever they show."
    )
    return _compared(record, "masked", "Masked patches of the pair", note)


def colour_panels(record: Record) -> list[Panel]:
    """V6: how far the colours of two views differ, chosen pair and others; what never differs is left out."""
    panels = []
    for name, label in _COLOURS.items():
        switch = name in ("gray", "blur")
        note = "How often only one of the two views has it." if switch else "Absolute difference of the two factors."
        both = record.of_steps(f"hard/delta_{name}") + record.of_steps(f"hard/delta_{name}_others")
        panel = _compared(record, f"delta_{name}", f"Difference in {label}", note) if any(y for _, y in both) else None
        panels += [panel] if panel else []
    return panels


def choice_panels(record: Record) -> list[Panel]:
    """V8, what choosing gains, how faithful cheap scores are, and what a step costs."""
    panels = [
        _frequencies(record),
        _single(
            record,
            "hard/gain",
            "How much harder the chosen pair is",
            "Its loss above the mean of all pairs of the image, in standard deviations of their losses. Blindly: 0.",
        ),
    ]
    # Full scoring chooses as itself.
    if any(y < 1 for _, y in record.of_steps("hard/fidelity")):
        some = (record.resolved.config.views.model_extra or {}).get("local_views") == "choose"
        drawn = f" Full: of {WIDER} times views.limit combinations, if there are as many." if some else ""
        panels += [
            _single(
                record,
                "hard/fidelity",
                "Choices that full scoring would make too",
                "Share of images where cheap scores (small, of features, or of some combinations) choose what the loss "
                f"at full resolution would.{drawn}",
                domain=(0, 1),
                floors=[] if some else _chance(record),
            ),
            _single(
                record,
                "hard/kept",
                "Hardness that cheap scoring keeps",
                "1: as hard as the pair that full scoring would choose, 0: no harder than a random pair.",
                domain=(0, 1),
            ),
        ]
    if record.of_steps("hard/kept_all") != record.of_steps("hard/kept"):
        panels.append(
            _single(
                record,
                "hard/kept_all",
                "Hardness kept over all steps and images",
                "1: as if full scoring chose for every image of every step; where nothing is chosen, nothing is kept. "
                "Of the steps from views.start_epoch on.",
                domain=(0, 1),
            )
        )
    return [*(panel for panel in panels if panel is not None), *_cost(record, panels)]


def _cost(record: Record, panels: Sequence[Panel | None]) -> list[Panel]:
    if not any(panels):
        return []
    note = "Time of a step over its time without choosing and learning, by the clock. 1: the policy is free."
    panel = _single(record, "view_cost", "What the policy costs", note, domain=(1, 1.5))
    mean = fmean(y for _, y in record.of_steps("view_cost")) if panel else 0.0
    return [replace(panel, value=f"{mean:.2f} on average")] if panel else []


def _compared(record: Record, name: str, title: str, note: str, reference: str = "") -> Panel | None:
    """A fact of the chosen pair and of the others; None where it was not logged."""
    chosen, others = record.of_steps(f"hard/{name}"), record.of_steps(f"hard/{name}_others")
    if not chosen:
        return None
    known = [(label, series) for label, series in (("chosen", chosen), ("others", others)) if series]
    last = {label: f"{smoothed(series, _PARTS)[-1]:.2f}" for label, series in known}
    told = ", ".join(f"{value} {label}" for label, value in last.items())
    seen = f" {REFERENCE}: {reference}." if reference else ""
    svg = plot([_line(label, series) for label, series in known], last_step=record.done)
    return Panel(title, " vs ".join(last.values()), note + seen, f"{title} over the steps, at the end {told}.", svg)


def _overlap_histograms(record: Record) -> Panel | None:
    """V5 over time: the logged histograms, averaged over equal parts of the run."""
    names = {"chosen": "iou_bin", "others": "iou_bin_others", "first pair": "iou_bin_first"}
    kinds = {label: _bins(record, f"{HARD}{name}") for label, name in names.items()}
    steps = [step for step, _ in record.of_steps(f"{HARD}iou_bin/0")]
    # A run that was begun by an earlier version has no first pairs in its first lines.
    known = {label: rows for label, rows in kinds.items() if len(rows) == len(steps) > 0}
    if "chosen" not in known:
        return None
    parts = np.array_split(np.arange(len(steps)), min(_HISTOGRAMS, len(steps)))
    rows = [
        (f"from step {short(steps[part[0]])}", [shares[part].mean(0) for shares in known.values()]) for part in parts
    ]
    middle = (np.arange(IOU_BINS) + 0.5) / IOU_BINS
    means = ", ".join(f"{label} {float(rows[-1][1][i] @ middle):.2f}" for i, label in enumerate(known))
    title = "Overlap over the run"
    note = "Share of the pairs by overlap (IoU), in equal parts of the run, the first on top."
    if "first pair" in known:
        note += " First pair: each image's first two views, which are trained on where none are chosen."
    svg = stacked_histograms(rows, list(known), (0.0, 1.0), "overlap (IoU) of the two crops")
    return Panel(title, "", note, f"{title}: {len(rows)} histograms; means of the last one: {means}.", svg)


def _bins(record: Record, name: str) -> NDArray[np.float64]:
    """(lines of the log, bins) shares; empty where they were not logged."""
    columns = [[y for _, y in record.of_steps(f"{name}/{k}")] for k in range(IOU_BINS)]
    return np.array(columns if len({len(column) for column in columns}) == 1 else []).T


def _least_overlap(record: Record) -> Panel | None:
    series = record.of_steps("hard/min_iou")
    if not series:
        return None
    title, now = "Images whose chosen pair overlaps least", smoothed(series, _PARTS)[-1]
    note = (
        "Of all pairs of the image. At chance, overlap plays no part; at 1, nothing else does. "
        f"{REFERENCE}: 0.32 at first, 0.47 at most, then 0.40 to 0.43."
    )
    svg = plot([_line("", series)], floors=_chance(record), domain=(0, 1), last_step=record.done)
    return Panel(title, f"{now:.2f}", note, f"{title}: a share of {now:.2f} at the end.", svg)


def _areas(record: Record) -> Panel | None:
    found = {
        label: (record.of_steps(f"hard/area_{key}"), record.of_steps(f"hard/area_{key}_others"))
        for label, key in (("larger", "large"), ("smaller", "small"))
    }
    if not all(chosen for chosen, _ in found.values()):
        return None
    lines = [
        line
        for label, (chosen, others) in found.items()
        for line in ([Line("", *_xy(others), faint=True)] if others else []) + [_line(label, chosen)]
    ]
    last = {label: f"{smoothed(chosen, _PARTS)[-1]:.2f}" for label, (chosen, _) in found.items()}
    told = ", ".join(f"{value} {label}" for label, value in last.items())
    title = "Areas of the chosen pair's two crops"
    note = (
        "As shares of the image; faint: of the other pairs. "
        f"{REFERENCE}: 0.33 ± 0.10 smaller, 0.565 ± 0.17 larger, throughout."
    )
    svg = plot(lines, last_step=record.done)
    return Panel(title, " and ".join(last.values()), note, f"{title} over the steps, at the end {told}.", svg)


def _frequencies(record: Record) -> Panel | None:
    prefix = f"{HARD}chosen/"
    logged = {name for entry in record.steps for name in entry if name.startswith(prefix)}
    if not logged:
        return None
    names = by_turns(name.removeprefix(prefix) for name in logged)
    rows = []
    for name, label in zip(names, numbered(names), strict=True):
        values = [y for _, y in record.of_steps(f"{prefix}{name}")]
        error = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        rows.append(Bar(label, fmean(values), error))
    expected = expected_frequencies(record.resolved.config, len(names), _scorer(record.resolved.config))
    same = len({round(share, 6) for share in expected.values()}) == 1
    level = ("expected", next(iter(expected.values()))) if same else None
    told = "Expected if no candidate is preferred: " + (
        f"{next(iter(expected.values())):.2f} for each."
        if same
        else ", ".join(f"{label} {expected[name]:.2f}" for name, label in zip(names, numbered(names), strict=True))
        + "."
    )
    title = "How often each candidate is in the chosen pair"
    alt = f"{title}: " + ", ".join(f"{bar.label} {bar.value:.2f}" for bar in rows) + "."
    note = (
        f"Mean over training with its 95 % interval. {told} One interval in twenty misses that by chance; several far "
        "from it are a bug in the policy or in the views."
    )
    return Panel(title, f"{len(rows)} candidates", note, alt, bars(rows, level))


def numbered(names: Sequence[str]) -> list[str]:
    """Candidates by the number that the gallery gives them, and the name that the log does: "3 (global_a.1)"."""
    return [f"{number} ({name})" for number, name in enumerate(names, 1)]


def expected_frequencies(config: Config, candidates: int, scorer: str) -> dict[str, float]:
    """How often each candidate would be in a pair chosen blindly: for all pairs of n candidates 2 / n."""
    pairs = _pairs(config, candidates, scorer)
    names = dict.fromkeys(name for pair in pairs for name in pair)
    return {name: sum(name in pair for pair in pairs) / len(pairs) for name in names}


def _chance(record: Record) -> list[tuple[str, float]]:
    """The share of images on which a blind choice would be right, as a dashed line."""
    candidates = len({name for entry in record.steps for name in entry if name.startswith("hard/chosen/")})
    config = record.resolved.config
    return [("chance", 1 / len(_pairs(config, candidates, _scorer(config))))] if candidates > 1 else []


def _pairs(config: Config, candidates: int, scorer: str) -> list[tuple[str, str]]:
    first, second = (slot for slot in slots_of(config) if slot.is_target)
    return competing((first, second), candidates, scorer)


def _scorer(config: Config) -> str:
    return str((config.views.model_extra or {}).get("scorer", "loss"))


# --- learned views ----------------------------------------------------------------------------------------------------


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
        _single(
            record,
            "policy/retention",
            "How hard views are to recognise",
            "By the loss of finding a view's own image in its batch. 0: no harder than the crop alone makes "
            "it, 1: no better than guessing. The dashed line is what was asked for.",
            domain=(0, 1),
            floors=[("asked for", float(target))] if isinstance(target, int | float) else [],
        ),
        _single(
            record,
            "policy/lambda",
            "Weight of recognisability (lambda)",
            "Rises while views are too hard to recognise, falls while they are too easy; 0: nothing holds the policy. "
            "Dashed: where it came to rest in small trials of the method, 1.0 to 1.8 by what was asked for.",
            domain=(0, 2),
            floors=[("off", 0.0), ("from 1.0", 1.0), ("to 1.8", 1.8)],
        ),
        _single(
            record,
            "policy/dead_views",
            "Views that show nothing",
            "Share of views that are almost one plain colour. Above 0.01 the policy destroys images.",
            domain=(0, 0.02),
            floors=[("alarm", 0.01)],
        ),
        _single(
            record,
            "policy/entropy",
            "Variety of the operations (entropy)",
            "In nats; dashed: all operations alike. Near 0 the policy always does the same.",
            domain=(0, 1),
            floors=[("all alike", math.log(operations))] if operations > 1 else [],
        ),
        _single(
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
    return known + (_cost(record, known) if not record.of_steps("hard/iou") else [])


def _recognition(record: Record) -> Panel | None:
    """l_reg between what crops alone lose and chance, the logarithm of the number of images to choose from."""
    found, crops, shares = (record.of_steps(f"{LEARNED}{name}") for name in ("l_reg", "floor", "l_reg_share"))
    if not found:
        return None
    chance = found[-1][1] / shares[-1][1] if shares and shares[-1][1] > 0 else 0.0
    title, now = "Loss of finding a view's own image", smoothed(found, _PARTS)[-1]
    lines = [_line("views", found), *([_line("crops alone", crops)] if crops else [])]
    floors = [("chance", chance), ("alarm", ALARM * chance)] if chance else []
    note = (
        "In nats; what lambda weighs. Higher is harder to recognise. Dashed: chance, which is the logarithm of the "
        f"number of images in the batch, and {ALARM:g} of it, from where on views are too hard."
    )
    svg = plot(lines, floors=floors, last_step=record.done)
    told = f", chance {chance:.3g}" if chance else ""
    told += f", of crops alone {smoothed(crops, _PARTS)[-1]:.3g}" if crops else ""
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
    svg = ridges([Line(name, *_xy(series[name])) for name in ordered], level(len(series)), record.done)
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


# --- both -------------------------------------------------------------------------------------------------------------


def _single(
    record: Record,
    name: str,
    title: str,
    note: str,
    *,
    domain: tuple[float, float] | None = None,
    floors: Sequence[tuple[str, float]] = (),
) -> Panel | None:
    series = record.of_steps(name)
    if not series:
        return None
    now = smoothed(series, _PARTS)[-1]
    svg = plot([_line("", series)], floors=floors, domain=domain, last_step=record.done)
    return Panel(title, short(now), note, f"{title} over the steps: {now:.3g} at the end.", svg)


def _xy(series: Series) -> tuple[list[float], list[float]]:
    return [float(x) for x, _ in series], [y for _, y in series]


def _line(label: str, series: Series) -> Line:
    return Line(label, [float(x) for x, _ in series], smoothed(series, _PARTS))
