"""The curves of a run as small panels: does it learn, is it healthy, what is its objective doing, how does it train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from belvedere.measure.bands import RULES, Color, Rule
from belvedere.report.plots import Band, Line, plot, short
from belvedere.report.record import Record, Series
from belvedere.report.vitals import BACKBONE_GRADIENTS, ELSEWHERE, GROUPS, HEAD_GRADIENTS, RANKS, VITALS, Vital

# Scalars of the steps that panels of their own show.
_TRAINING = {"step", "loss", "lr", "weight_decay", "seconds", "waited", "view_cost"}
POLICIES = ("hard/", "policy/")
"""What the names of the scalars of hard and of learned views begin with; the section on views shows them."""
# What the health section does not judge, and what it says besides.
DIAGNOSES: dict[str, tuple[str, str]] = {
    "teacher_entropy": ("Entropy of the teacher", "Falls as the teacher becomes sure of its answers."),
    "student_entropy": ("Entropy of the student", "Falls as the student becomes sure of its answers."),
    "distinct_argmax": ("Prototypes in use", "Share of the prototypes that could be used in a batch."),
    "center_max": ("Largest centre", "One that grows on and on: one prototype takes over."),
    "patch_teacher_entropy": ("Entropy of the teacher, patches", "Of its answers at the masked patches."),
    "patch_student_entropy": ("Entropy of the student, patches", "Of its answers at the masked patches."),
    "patch_kl": ("KL of student and teacher, patches", "Near 0 they agree whatever the patch."),
    "patch_distinct_argmax": ("Prototypes in use, patches", "Share of those that the masked patches could use."),
    "masked_fraction": ("Masked patches", "Share of the patches of the global views that the student does not see."),
    "loss_cls": ("Loss of the class tokens", "Without its weight."),
    "loss_patch": ("Loss of the masked patches", "Without its weight; may rise for a while in a healthy run."),
    "momentum": (
        "Momentum of the teacher",
        "Its schedule. Near 1 the teacher hardly moves, which is where it ends; the lower, the closer it follows.",
    ),
    "teacher_temp": (
        "Temperature of the teacher",
        "Its schedule: the lower, the surer the teacher's answers; too high, they spread evenly.",
    ),
    "patch_teacher_temp": (
        "Temperature of the teacher, patches",
        "Its schedule for the masked patches; it begins with the masks.",
    ),
    "contrastive_accuracy": ("Contrastive accuracy", "How often a view's partner is nearest within the batch."),
    "positive_cosine": ("Cosine of two views of an image", "Rises as views of an image are recognised."),
}


@dataclass(frozen=True)
class Panel:
    """A small plot: heading, newest value, its colour, how to read it, and the SVG with its alternative text."""

    title: str
    value: str
    note: str
    alt: str
    svg: str
    color: Color | None = None


def learning_panels(record: Record) -> list[Panel]:
    """k-NN with its floors, the loss, and the losses of tasks."""
    panels = []
    knn = record.of_looks("knn")
    if knn:
        floors = list(record.floors().items())
        said = "".join(f", {name} {level:.1f} %" for name, level in floors)
        note = "Leave-one-out on labelled images; the dashed lines have to be passed."
        panels.append(
            _panel(record, "k-NN accuracy", f"{knn[-1][1]:.1f} %", note, [("k-NN", knn)], floors=floors, more=said)
        )
    loss = record.of_steps("loss")
    if loss:
        panels.append(_loss_panel(record, "Loss", "Per step, and smoothed.", loss))
    for name in _names(record, "task/"):
        panels.append(_loss_panel(record, f"Loss of {name[5:]}", "Of the task alone.", record.of_steps(name)))
    return panels


def health_panels(record: Record) -> list[tuple[str, list[Panel]]]:
    """Every value that tells whether the run is healthy, with its bands, in groups under their headings."""
    groups = []
    for heading, vitals in GROUPS.items():
        panels = [_vital(record, name, vital) for name, vital in vitals.items() if _series(record, name)]
        if "rankme_share" in vitals:
            panels += _several(record, "Effective rank", "Directions in use, counted in three ways.", RANKS)
        if "gradient_spikes" in vitals:
            names = {f"grad/{group}": label for group, label in BACKBONE_GRADIENTS.items()}
            note = "Before clipping; spikes at the patches announce trouble, tens of steps ahead of the rest."
            panels = _several(record, "Gradient norms, backbone", note, names, log=True) + panels
            names = {f"grad/{group}": label for group, label in HEAD_GRADIENTS.items()}
            panels += _several(record, "Gradient norms, head", "Before clipping.", names, log=True)
        if panels:
            groups.append((heading, panels))
    return groups


def objective_panels(record: Record) -> list[Panel]:
    """What the objective and the policy tell of their steps beside what the sections on health and views show."""
    shown = _TRAINING | set(VITALS)
    elsewhere = ("grad/", "task/", *POLICIES)
    told = [name for name in _names(record) if name not in shown and not name.startswith(elsewhere)]
    looked = {name for look in record.looks for name in look.values} - set(VITALS) - ELSEWHERE - set(told)
    ordered = [*(name for name in DIAGNOSES if name in told), *(name for name in told if name not in DIAGNOSES)]
    described = {name: DIAGNOSES.get(name, (name.replace("_", " "), "")) for name in [*ordered, *sorted(looked)]}
    return [_vital(record, name, Vital(title, note)) for name, (title, note) in described.items()]


def training_panels(record: Record) -> list[Panel]:
    """Schedules, speed and the share of time spent waiting for data."""
    panels = []
    for name, title in (("lr", "Learning rate"), ("weight_decay", "Weight decay")):
        series = record.of_steps(name)
        if series and (name == "lr" or len({y for _, y in series}) > 1):
            panels.append(_panel(record, title, short(series[-1][1]), "Its schedule.", [(title, series)]))
    seconds, batch = record.of_steps("seconds"), record.resolved.config.train.batch
    if seconds and batch != "auto":
        speed = [(step, batch / time) for step, time in seconds if time > 0]
        middle = float(np.median([y for _, y in speed]))
        note = "Images through the network a second."
        panels.append(_panel(record, "Speed", f"{short(middle)} images/s", note, [("", speed)], domain=(0, 1)))
        waited = dict(record.of_steps("waited"))
        share = [(step, 100 * waited[step] / time) for step, time in seconds if time > 0 and step in waited]
        middle = float(np.median([y for _, y in share])) if share else 0.0
        note = "Share of the time without data: above 10 %, decoding holds the run up."
        panels.append(_panel(record, "Waiting for data", f"{middle:.0f} %", note, [("", share)], domain=(0, 20)))
    return panels


def _names(record: Record, prefix: str = "") -> list[str]:
    """Names of the steps' scalars in the order in which they were first logged."""
    return list(dict.fromkeys(name for entry in record.steps for name in entry if name.startswith(prefix)))


def smoothed(series: Series, parts: int = 40) -> list[float]:
    """A moving average over a fortieth (or another part) of the series; at its ends over what there is."""
    window = max(1, len(series) // parts)
    kernel = np.ones(window)
    values = np.array([y for _, y in series])
    means = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return [float(mean) for mean in means]


def _loss_panel(record: Record, title: str, note: str, series: Series) -> Panel:
    steps, values, smooth = [x for x, _ in series], [y for _, y in series], smoothed(series)
    lines = [Line("", steps, values, faint=True), Line("", steps, smooth)]
    svg = plot(lines, last_step=record.done)
    return Panel(title, short(smooth[-1]), note, _describe(title, series), svg)


def _series(record: Record, name: str) -> Series:
    """A value as finely as it is known: of the steps, else of the looks."""
    return record.of_steps(name) or record.of_looks(name)


def _vital(record: Record, name: str, vital: Vital) -> Panel:
    """A value with the bands that judge it, and the colour of what the monitor judged last: a median, or a change."""
    # Not every run is judged by every value that is measured of it (`rules_for`).
    told = name in record.judged or not record.of_looks(name)
    rules = [rule for rule in RULES if rule.value == name and told]
    series = _series(record, name)
    color = _color(rules, (record.of_looks(name) or series)[-1], record) if rules else None
    return _panel(
        record,
        vital.title,
        short(series[-1][1]),
        vital.note,
        [("", series)],
        rules=rules,
        color=color,
        domain=vital.domain,
        log=vital.log,
    )


def _several(record: Record, title: str, note: str, names: Mapping[str, str], log: bool = False) -> list[Panel]:
    """A plot of those of the values that are known, by name and label; none when none is."""
    known = [(label, found) for name, label in names.items() if (found := _series(record, name))]
    return [_panel(record, title, short(known[0][1][-1][1]), note, known, log=log)] if known else []


def _color(rules: Sequence[Rule], last: tuple[int, float], record: Record) -> Color | None:
    """The worst band that applies at the last value's step; None while none does."""
    progress = (last[0] + 1) / max(record.planned, last[0] + 1)
    found = [rule.color(last[1]) for rule in rules if rule.start <= progress <= rule.until]
    worst: tuple[Color, ...] = ("red", "amber", "green")
    return next((color for color in worst if color in found), None)


def _panel(
    record: Record,
    title: str,
    value: str,
    note: str,
    series: Sequence[tuple[str, Series]],
    *,
    floors: Sequence[tuple[str, float]] = (),
    rules: Sequence[Rule] = (),
    domain: tuple[float, float] | None = None,
    log: bool = False,
    color: Color | None = None,
    more: str = "",
) -> Panel:
    lines = [Line(label, [x for x, _ in points], [y for _, y in points]) for label, points in series]
    shown = [Band(rule, record.planned) for rule in rules]
    svg = plot(lines, floors=floors, bands=shown, domain=domain, log=log, last_step=record.done)
    alt = "; ".join(_describe(f"{title} {label}".strip() if len(series) > 1 else title, one) for label, one in series)
    band = f", in the {color} band" if color else ""
    return Panel(title, value, note, f"{alt}{band}{more}.", svg, color)


def _describe(title: str, series: Series) -> str:
    """The curve in words, for those who cannot see it."""
    if not series:
        return f"{title}: no values"
    values = [y for _, y in series]
    return (
        f"{title} over {series[-1][0]} steps: from {values[0]:.3g} to {values[-1]:.3g}, "
        f"between {min(values):.3g} and {max(values):.3g}"
    )
