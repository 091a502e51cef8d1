"""The one sentence at the top of the page: did pretraining pay on these images? Honest also when it did not."""

from __future__ import annotations

import math
from dataclasses import dataclass

from belvedere.measure.bands import Color
from belvedere.report.record import Record


@dataclass(frozen=True)
class Answer:
    """The sentence, a colour for it, and what to do about it (empty when nothing)."""

    sentence: str
    color: Color
    advice: str = ""


def half_width(percent: float, images: int) -> float:
    """Half of the 95 % interval of an accuracy in percent, binomial."""
    p = min(max(percent / 100, 0.0), 1.0)
    return 196 * math.sqrt(p * (1 - p) / max(images, 1))


def answer(record: Record) -> Answer:
    """k-NN beside its floors where there are labels, else the health in words."""
    if not record.looks:
        return Answer("The run has only begun: nothing was measured yet.", "amber")
    knn = record.of_looks("knn")
    floors = {"raw pixels": record.floor("pixels"), "untrained": record.floor("untrained")}
    known = {name: level for name, level in floors.items() if level is not None}
    if not knn or not known:
        return _of_health(record)
    return _of_knn(record, knn[-1][1], known)


def _of_health(record: Record) -> Answer:
    look = record.looks[-1]
    ending = "; there are no labels to say whether it pays" if not record.of_looks("knn") else ""
    if look.word == "too early":
        return Answer(f"Too early to tell: health is judged from a tenth of the training on{ending}.", "amber")
    return Answer(f"Health: {look.word}. {look.why[0].rstrip('.')}{ending}.", look.color)


def _of_knn(record: Record, knn: float, floors: dict[str, float]) -> Answer:
    most = record.resolved.config.monitor.knn
    images = most if record.labelled is None else min(most, record.labelled)
    margin = half_width(knn, images)
    upper, level = max(floors.items(), key=lambda floor: floor[1])
    told = ", ".join(f"{name} {x:.1f} %" for name, x in floors.items())
    about = "up to " if record.labelled is None else ""
    start = f"k-NN {knn:.1f} % on {about}{images:,} images, {told}: "
    if knn > level + margin:
        return Answer(f"{start}pretraining pays.", "green")
    rival = "raw pixels do" if upper == "raw pixels" else "an untrained network does"
    longer = "A young run has to pass the pixels first: train longer, and read the health below."
    if knn < level - margin:
        word = "pretraining did not pay" if record.finished else "pretraining does not pay so far"
        return Answer(f"{start}{word}, {rival} better.", "red" if record.finished else "amber", longer)
    than = "raw pixels" if upper == "raw pixels" else "an untrained network"
    return Answer(f"{start}no clear gain over {than} (the interval is ± {margin:.1f} points).", "amber", longer)
