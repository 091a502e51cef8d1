"""Did pretraining help? Each headline number against every rival, item by item, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from belvedere.evaluate.contract import PIXELS, RUN, UNTRAINED, Number, Result
from belvedere.evaluate.intervals import paired_difference, resample

HEADLINES = {
    "knn": ("top1", "in k-NN"),
    "fewshot": ("shots8", "with 8 labels a class"),
    "logistic": ("top1", "with a logistic probe"),
    "linear": ("top1", "with a linear probe"),
    "finetune": ("top1", "fine-tuned"),
    "retrieval": ("recall1", "in retrieval"),
    "vlad": ("map", "in finding pages by their patches"),
    "corruption": ("mean", "on corrupted images"),
    "ood": ("knn_auroc", "in noticing foreign images"),
}
"""The metric that a sentence is of, and where it was measured, in a sentence."""
NAMES = {UNTRAINED: "the untrained network", PIXELS: "raw pixels"}


def verdicts(results: Sequence[Result], seed: int) -> list[str]:
    """A sentence for every headline number that was measured; a difference is told when its 95 % interval leaves 0."""
    by_name = {result.protocol: result for result in results}
    said = []
    for protocol, (metric, where) in HEADLINES.items():
        result = by_name.get(protocol)
        values = {} if result is None else {name: own[metric] for name, own in result.items.items() if metric in own}
        if RUN in values and len(values) > 1:
            said.append(_sentence(f"{where[0].upper()}{where[1:]}", values, seed))
    return said


def _sentence(start: str, values: Mapping[str, NDArray[np.float64]], seed: int) -> str:
    counts = resample(values[RUN].shape[-1], seed)
    found = {
        NAMES.get(name, name): paired_difference(values[RUN], other, counts)
        for name, other in values.items()
        if name != RUN
    }
    gains = [f"{_points(n)} points over {name}" for name, n in found.items() if n.low > 0]
    losses = [f"{_points(n)} points behind {name}" for name, n in found.items() if n.high < 0]
    ties = [f"{name} ({n.value:+.1f} ± {_half(n):.1f})" for name, n in found.items() if n.low <= 0 <= n.high]
    parts = [f"pretraining on your images gains {_listed(gains)}"] if gains else []
    parts += [f"the run is {_listed(losses)}"] if losses else []
    parts += [f"the run cannot be told apart from {_listed(ties)}"] if ties else []
    return f"{start}, {'; '.join(parts)}."


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def _points(number: Number) -> str:
    return f"{abs(number.value):.1f} ± {_half(number):.1f}"


def _half(number: Number) -> float:
    return (number.high - number.low) / 2
