"""The one sentence at the top of the page: did pretraining pay on these images? Honest also when it did not."""

from __future__ import annotations

from dataclasses import dataclass

from belvedere.measure.bands import Color
from belvedere.measure.knn import half_width
from belvedere.report.record import FLOORS, Record

# In a sentence: who is better, and its verb.
_RIVALS = {
    FLOORS["pixels"]: ("raw pixels", "do"),
    FLOORS["untrained"]: ("an untrained network", "does"),
    FLOORS["start"]: ("the weights it started from", "do"),
}
_LONGER = "A young run has to pass the pixels first: train longer, and read the health below."
_GENTLER = "Keep the weights it started from, or train longer with a smaller train.lr."


@dataclass(frozen=True)
class Answer:
    """The sentence, a colour for it, and what to do about it (empty when nothing)."""

    sentence: str
    color: Color
    advice: str = ""


def answer(record: Record) -> Answer:
    """k-NN beside its floors where there are labels, else the health in words, with what an evaluation said first."""
    if not record.looks:
        return Answer("The run has only begun: nothing was measured yet.", "amber")
    floors = record.floors()
    if record.knn is None or not floors:
        return _of_health(record)
    return _of_knn(record, record.knn, floors)


def _of_health(record: Record) -> Answer:
    look = record.looks[-1]
    unknown = record.knn is None and not record.verdict
    ending = "; there are no labels to say whether it pays" if unknown else ""
    if look.word == "too early":
        return Answer(f"Too early to tell: health is judged from a tenth of the training on{ending}.", "amber")
    measured = f" {record.verdict[0]}" if record.verdict and record.knn is None else ""
    return Answer(f"Health: {look.word}. {look.why[0].rstrip('.')}{ending}.{measured}", look.color)


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
    than, does = _RIVALS[upper]
    longer = _LONGER if upper != FLOORS["start"] else _GENTLER
    if knn < level - margin:
        word = "pretraining did not pay" if record.finished else "pretraining does not pay so far"
        return Answer(f"{start}{word}, {than} {does} better.", "red" if record.finished else "amber", longer)
    return Answer(f"{start}no clear gain over {than} (the interval is ± {margin:.1f} points).", "amber", longer)
