"""The curves of a run as small panels: does it learn, is it healthy, what is its objective doing, how does it train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from belvedere.measure.bands import RULES, Color, Rule
from belvedere.report.plots import Line, plot, short
from belvedere.report.record import Record, Series

# Value of the looks -> (title, how to read it, the range that is always shown).
MEASURES: dict[str, tuple[str, str, tuple[float, float] | None]] = {
    "head_std": (
        "Spread of the head's output",
        "1: spread in all directions; 0: the same for every image.",
        (0, 1.05),
    ),
    "feature_std": (
        "Spread of the features",
        "1: spread in all directions; 0: the same for every image.",
        (0, 1.05),
    ),
    "mean_cosine": (
        "Mean cosine of two images",
        "0 is ideal; near 1 all features point the same way.",
        (0, 1),
    ),
    "rankme_share": (
        "RankMe, share of what is possible",
        "How many of the possible directions the features use.",
        (0, 0.2),
    ),
    "alpha_req": ("Slope of the spectrum (alpha-ReQ)", "Near 1 is good; steep means few directions.", (0, 2.5)),
    "uniformity": ("Uniformity", "Lower is more evenly spread over the sphere; 0 is constant.", (-4, 0)),
    "alignment": ("Alignment", "Distance of the two views of an image: lower is more alike.", (0, 1)),
    "instance_recall": (
        "Views that find each other",
        "Share of images whose nearest neighbour is their own other view.",
        (0, 1),
    ),
    "attention_max": ("Attention entropy, broadest head", "0: looks at one token; 1: everywhere alike.", (0, 1)),
    "attention_min": ("Attention entropy, narrowest head", "0: looks at one token; 1: everywhere alike.", (0, 1)),
    "lidar": ("LiDAR", "Directions that tell images apart.", None),
}
RANKS = {"rankme": "RankMe", "rankme_centred": "centred", "participation_ratio": "participation"}
_HIDDEN = {"step", "finite", "knn", "knn_pixels", "knn_untrained", "knn_start", "alpha_req_fit", "alpha_req_r2", *RANKS}
# Scalars of the steps that panels of their own show.
_TRAINING = {"step", "loss", "lr", "weight_decay", "seconds", "waited"}
DIAGNOSES: dict[str, tuple[str, str]] = {
    "kl": ("KL of student and teacher", "Near 0 they agree whatever the image: constant output."),
    "teacher_entropy": ("Entropy of the teacher", "Falls as the teacher becomes sure of its answers."),
    "student_entropy": ("Entropy of the student", "Follows the teacher's."),
    "max_mean_prob": ("Largest mean probability", "Near 1 one prototype takes all images."),
    "distinct_argmax": ("Prototypes in use", "Share of the prototypes that could be used in a batch."),
    "patch_teacher_entropy": ("Entropy of the teacher, patches", "Of its answers at the masked patches."),
    "patch_max_mean_prob": ("Largest mean probability, patches", "Near 1 one prototype takes all patches."),
    "patch_distinct_argmax": ("Prototypes in use, patches", "Share of those that the masked patches could use."),
    "masked_fraction": ("Masked patches", "Share of the patches of the global views that the student does not see."),
    "loss_cls": ("Loss of the class tokens", "Without its weight."),
    "loss_patch": ("Loss of the masked patches", "Without its weight; may rise for a while in a healthy run."),
    "contrastive_accuracy": ("Contrastive accuracy", "How often a view's partner is nearest within the batch."),
    "positive_cosine": ("Cosine of two views of an image", "Rises as views of an image are recognised."),
    "negative_cosine": ("Cosine of different images", "Near 1 different images are embedded alike."),
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


def health_panels(record: Record) -> list[Panel]:
    """Every value of the looks, with the bands that judge it."""
    panels = []
    known = {name for look in record.looks for name in look.values} - _HIDDEN
    for name in [*(measure for measure in MEASURES if measure in known), *sorted(known - set(MEASURES))]:
        title, note, domain = MEASURES.get(name, (name, "", None))
        panels.append(_judged(record, name, title, note, record.of_looks(name), domain))
    ranks = [(label, found) for name, label in RANKS.items() if (found := record.of_looks(name))]
    if ranks:
        value = short(ranks[0][1][-1][1])
        panels.append(_panel(record, "Effective rank", value, "Directions in use, counted in three ways.", ranks))
    return panels


def objective_panels(record: Record) -> list[Panel]:
    """What the objective and the policy tell of their steps."""
    told = [name for name in _names(record) if name not in _TRAINING and not name.startswith(("grad/", "task/"))]
    ordered = [*(name for name in DIAGNOSES if name in told), *(name for name in told if name not in DIAGNOSES)]
    return [
        _judged(record, name, *DIAGNOSES.get(name, (name.replace("_", " "), "")), record.of_steps(name), None)
        for name in ordered
    ]


def training_panels(record: Record) -> list[Panel]:
    """Schedules, gradients, speed and the share of time spent waiting for data."""
    panels = []
    for name, title in (("lr", "Learning rate"), ("weight_decay", "Weight decay")):
        series = record.of_steps(name)
        if series and (name == "lr" or len({y for _, y in series}) > 1):
            panels.append(_panel(record, title, short(series[-1][1]), "Its schedule.", [(title, series)]))
    gradients = [(name[5:].replace("_", " "), record.of_steps(name)) for name in _names(record, "grad/")]
    if gradients:
        value = short(dict(gradients).get("all", gradients[0][1])[-1][1])
        note = "Before clipping; spikes at the patch embedding announce trouble."
        panels.append(_panel(record, "Gradient norms", value, note, gradients, log=True))
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


def smoothed(series: Series) -> list[float]:
    """A moving average over a fortieth of the series; at its ends over what there is."""
    window = max(1, len(series) // 40)
    kernel = np.ones(window)
    values = np.array([y for _, y in series])
    means = np.convolve(values, kernel, "same") / np.convolve(np.ones(len(values)), kernel, "same")
    return [float(mean) for mean in means]


def _loss_panel(record: Record, title: str, note: str, series: Series) -> Panel:
    steps, values, smooth = [x for x, _ in series], [y for _, y in series], smoothed(series)
    lines = [Line("", steps, values, faint=True), Line("", steps, smooth)]
    svg = plot(lines, last_step=record.done)
    return Panel(title, short(smooth[-1]), note, _describe(title, series), svg)


def _judged(
    record: Record, name: str, title: str, note: str, series: Series, domain: tuple[float, float] | None
) -> Panel:
    rules = [rule for rule in RULES if rule.value == name]
    color = _color(rules, series[-1], record) if rules else None
    return _panel(record, title, short(series[-1][1]), note, [("", series)], rules=rules, color=color, domain=domain)


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
    svg = plot(lines, floors=floors, rules=rules, domain=domain, log=log, last_step=record.done)
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
