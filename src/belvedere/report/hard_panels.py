"""What hard views chose over training, from the run's log: V1 to V8 of spec view_policies 5.

The reference numbers are those of the plots in the authors' repository: SimSiam, ResNet-50, ImageNet, 100 epochs, 4
candidates, crops of 20 to 100 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from belvedere.config import Config
from belvedere.pretrain.compose import slots_of
from belvedere.report.charts import Bar, bars, ridges, stacked_histograms
from belvedere.report.curves import Panel, smoothed
from belvedere.report.plots import Line, plot, short
from belvedere.report.policy_curves import HARD, PARTS, cost_panels, line_of, points_of, single_panel
from belvedere.report.record import Record
from belvedere.views.chosen import IOU_BINS
from belvedere.views.policies.hard import WIDER, by_turns, competing

REFERENCE = "SimSiam, ResNet-50, ImageNet"
# Histograms over the run.
_HISTOGRAMS = 5
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
    lines = [line_of(label, series) for label, series in found.items() if series]
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
        single_panel(
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
            single_panel(
                record,
                "hard/fidelity",
                "Choices that full scoring would make too",
                "Share of images where cheap scores (small, of features, or of some combinations) choose what the loss "
                f"at full resolution would.{drawn}",
                domain=(0, 1),
                floors=[] if some else _chance(record),
            ),
            single_panel(
                record,
                "hard/kept",
                "Hardness that cheap scoring keeps",
                "1: as hard as the pair that full scoring would choose, 0: no harder than a random pair.",
                domain=(0, 1),
            ),
        ]
    if record.of_steps("hard/kept_all") != record.of_steps("hard/kept"):
        panels.append(
            single_panel(
                record,
                "hard/kept_all",
                "Hardness kept over all steps and images",
                "1: as if full scoring chose for every image of every step; where nothing is chosen, nothing is kept. "
                "Of the steps from views.start_epoch on.",
                domain=(0, 1),
            )
        )
    return [*(panel for panel in panels if panel is not None), *cost_panels(record, panels)]


def _compared(record: Record, name: str, title: str, note: str, reference: str = "") -> Panel | None:
    """A fact of the chosen pair and of the others; None where it was not logged."""
    chosen, others = record.of_steps(f"hard/{name}"), record.of_steps(f"hard/{name}_others")
    if not chosen:
        return None
    known = [(label, series) for label, series in (("chosen", chosen), ("others", others)) if series]
    last = {label: f"{smoothed(series, PARTS)[-1]:.2f}" for label, series in known}
    told = ", ".join(f"{value} {label}" for label, value in last.items())
    seen = f" {REFERENCE}: {reference}." if reference else ""
    svg = plot([line_of(label, series) for label, series in known], last_step=record.done)
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
    title, now = "Images whose chosen pair overlaps least", smoothed(series, PARTS)[-1]
    note = (
        "Of all pairs of the image. At chance, overlap plays no part; at 1, nothing else does. "
        f"{REFERENCE}: 0.32 at first, 0.47 at most, then 0.40 to 0.43."
    )
    svg = plot([line_of("", series)], floors=_chance(record), domain=(0, 1), last_step=record.done)
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
        for line in ([Line("", *points_of(others), faint=True)] if others else []) + [line_of(label, chosen)]
    ]
    last = {label: f"{smoothed(chosen, PARTS)[-1]:.2f}" for label, (chosen, _) in found.items()}
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
