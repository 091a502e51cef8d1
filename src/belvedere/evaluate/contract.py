"""The contract of an evaluation protocol: an encoder and data in, numbers with floors and intervals out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel
from torch import Tensor

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.objectives.contract import NoOptions


@dataclass(frozen=True)
class EvalData:
    """What a protocol reads. Features of every encoder and split are extracted once and shared by all protocols.

    Attributes:
        train, test: the images; `test` items are read once, choices are made on a part of `train`.
        features: encoder name ("run", "untrained", "pixels", ...) -> (train (N, D), test (M, D)) float32 features.
        train_labels, test_labels: int64 class ids over the union of both splits' classes.
        classes: their names.
        seed: of every random choice of a protocol.
    """

    train: Canvases
    test: Canvases
    features: dict[str, tuple[Tensor, Tensor]]
    train_labels: np.ndarray
    test_labels: np.ndarray
    classes: list[str]
    seed: int = 0


@dataclass(frozen=True)
class Number:
    """One metric of one encoder: its value and 95 % bootstrap interval over test items, in percent or its own unit."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Result:
    """What a protocol found.

    Attributes:
        protocol: its name.
        metrics: encoder name -> metric name -> Number; floors ("pixels", "untrained", "majority") stand beside "run".
        chosen: the settings chosen, and on what.
        settings: everything else that was used (reading, transform, grid, seeds).
        draws: arrays that the report draws (neighbours, confusion matrices); not part of the JSON.
    """

    protocol: str
    metrics: dict[str, dict[str, Number]]
    chosen: dict[str, Any]
    settings: dict[str, Any]
    draws: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The numbers as text, a line an encoder."""
        return [
            f"{self.protocol}  {encoder:12} "
            + "  ".join(f"{name} {n.value:.1f} [{n.low:.1f}, {n.high:.1f}]" for name, n in numbers.items())
            for encoder, numbers in self.metrics.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data, without what is only drawn."""
        data = asdict(self)
        del data["draws"]
        return data


class Protocol:
    """Base class; a subclass is one file of `evaluate/protocols/`."""

    Options: ClassVar[type[BaseModel]] = NoOptions
    needs_labels: ClassVar[bool] = True

    def __init__(self, options: Any) -> None:
        self.options = options

    def run(self, encoder: Encoder, data: EvalData) -> Result:
        """Evaluate; see the subclass for the paper's protocol."""
        raise NotImplementedError
