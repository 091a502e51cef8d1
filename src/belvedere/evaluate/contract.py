"""The contract of an evaluation protocol: encoders and data in, numbers with floors and intervals out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from belvedere.evaluate.splits import Labels, Rows, hold_out
from belvedere.images.annotations import Annotations
from belvedere.images.canvases import Canvases
from belvedere.images.masks import Masks
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract, pixels_features
from belvedere.measure.readings import Reading
from belvedere.objectives.contract import NoOptions

RUN, PIXELS, UNTRAINED, MAJORITY = "run", "pixels", "untrained", "majority"
"""Names of the run's own encoder and of the floors; every other subject is a baseline that the user named."""

Indexed = TypeVar("Indexed", Tensor, NDArray[np.int64])


@dataclass(frozen=True)
class Subject:
    """What goes through the protocols: the run's encoder, an untrained one, given weights, or raw pixels.

    Attributes:
        name: in every result.
        encoder: None for raw pixels.
        device: where it runs.
        cache_dir: of its features, see `extract`; None keeps none.
    """

    name: str
    encoder: Encoder | None
    device: torch.device | str = "cpu"
    cache_dir: Path | None = None

    def features(self, canvases: Canvases, reading: Reading | None = None, together: bool = False) -> Tensor:
        """(N, D) float32 features of any images, on the CPU, as the encoder reads its tokens or in another reading.

        Args:
            together: all processes ask and share the work, see `extract`.

        Raises:
            UserError: when the encoder has no such reading, or its features are not finite.
        """
        if self.encoder is None:
            return pixels_features(canvases)
        encoder = self.encoder if reading is None else self.encoder.reading_as(reading)
        return extract(encoder, canvases, device=self.device, cache_dir=self.cache_dir, together=together)


@dataclass(frozen=True)
class Choice:
    """On what settings are chosen: `fit` rows of the training images, and `val` rows of these or of the test images."""

    fit: Rows
    val: Rows
    on_test: bool
    said: str

    def of(self, train: Indexed, test: Indexed) -> tuple[Indexed, Indexed]:
        """What to fit on and what to choose by, of anything that has a row an image."""
        return train[self.fit], (test if self.on_test else train)[self.val]


@dataclass(frozen=True)
class EvalData:
    """What a protocol reads.

    Attributes:
        subjects: by name, the run first; all go through every protocol that they can go through.
        train, test: the images; `test` items are read once, choices are made on a part of `train`.
        train_labels, test_labels: int64 class ids over the union of both splits' classes; -1 for all where the images
            have none, which only protocols that do not need labels see.
        classes: their names.
        train_masks, test_masks: the classes of their pixels, where there are any.
        train_objects, test_objects: boxes and outlines in them, where there are any.
        other: images from elsewhere, where they were given.
        folder: where a protocol may leave what it made for others to use; None keeps nothing.
        mirrored: whether images may be mirrored where a protocol trains on views of them.
        paper: choose on the test images, as most papers do, and say so.
        seed: of every random choice of a protocol.
        shared: what several protocols need of it and one has made, by a key of theirs.
    """

    subjects: dict[str, Subject]
    train: Canvases
    test: Canvases
    train_labels: Labels
    test_labels: Labels
    classes: list[str]
    train_masks: Masks | None = None
    test_masks: Masks | None = None
    train_objects: Annotations | None = None
    test_objects: Annotations | None = None
    other: Canvases | None = None
    folder: Path | None = None
    mirrored: bool = True
    paper: bool = False
    seed: int = 0
    shared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def features(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Subject name -> (train (N, D), test (M, D)) float32 features; extracted once and shared by all protocols."""
        return {
            name: (subject.features(self.train), subject.features(self.test)) for name, subject in self.subjects.items()
        }

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The subjects that are networks, by name."""
        return {name: subject.encoder for name, subject in self.subjects.items() if subject.encoder is not None}

    @property
    def device(self) -> torch.device | str:
        """Where the subjects run."""
        return self.subjects[RUN].device

    @cached_property
    def choice(self) -> Choice:
        """A tenth of the training images, class by class or group by group; with `paper` the test images."""
        count = len(self.train_labels)
        if self.paper:
            on = f"the {len(self.test_labels)} test images (selected on test)"
            return Choice(np.arange(count), np.arange(len(self.test_labels)), True, on)
        fit, val = hold_out(self.train_labels, self.seed, groups=self.train.groups)
        whole = "" if self.train.groups is None else ", whole groups"
        return Choice(fit, val, False, f"{len(val)} of {count} training images{whole}")


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
        metrics: subject name -> metric name -> Number; floors ("pixels", "untrained", "majority") stand beside "run".
        chosen: the settings chosen, and on what.
        settings: everything else that was used (reading, transform, grid, seeds).
        items: subject name -> metric name -> one value a test item, whose mean (times 100 for shares) is the metric;
            (n,), or (draws, n) where the labels were drawn several times, alike for all subjects.
            They are kept beside the JSON, so that two runs can be compared item by item.
        draws: arrays that the report draws (neighbours, confusion matrices); not part of the JSON.
    """

    protocol: str
    metrics: dict[str, dict[str, Number]]
    chosen: dict[str, Any]
    settings: dict[str, Any]
    items: dict[str, dict[str, NDArray[np.float64]]] = field(default_factory=dict)
    draws: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """The numbers as text, a line an encoder; what failed says why."""
        if "error" in self.settings:
            return [f"{self.protocol}  failed: {self.settings['error']}"]
        return [
            f"{self.protocol}  {encoder:12} "
            + "  ".join(f"{name} {n.value:.1f} [{n.low:.1f}, {n.high:.1f}]" for name, n in numbers.items())
            for encoder, numbers in self.metrics.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """The result as plain JSON data, without what is only drawn or compared."""
        return {
            "protocol": self.protocol,
            "metrics": {
                subject: {name: asdict(number) for name, number in numbers.items()}
                for subject, numbers in self.metrics.items()
            },
            "chosen": self.chosen,
            "settings": self.settings,
        }


class Protocol:
    """Base class; a subclass is one file of `evaluate/protocols/`.

    Attributes:
        needs: what the images must have: "labels", "masks", "objects", "other" images to compare with, or
            nothing.
        quick: whether it is cheap enough for `--quick`: seconds on 3,000 small images once features are there.
    """

    Options: ClassVar[type[BaseModel]] = NoOptions
    needs: ClassVar[Sequence[Literal["labels", "masks", "objects", "other"]]] = ("labels",)
    quick: ClassVar[bool] = False

    def __init__(self, options: Any) -> None:
        self.options = options

    def run(self, data: EvalData) -> Result:
        """Evaluate every subject that can be; see the subclass for the paper's protocol."""
        raise NotImplementedError
