"""How much do worse pictures cost? Accuracy under blur, noise, JPEG and low contrast at growing strengths.

Spec evaluation 2.4. A logistic probe is fitted on clean training features and reads the test images at every strength,
the same images and the same pixels for every subject. Raw pixels, the untrained network and the majority class are read
too.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

from belvedere.errors import UserError
from belvedere.evaluate.contract import MAJORITY, EvalData, Protocol, Result
from belvedere.evaluate.corruptions import CORRUPTIONS, LEAST, SIDE, corrupted
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.evaluate.probe import Probe, ProbeOptions, fit_probe
from belvedere.evaluate.splits import hold_out
from belvedere.images.canvases import Canvases
from belvedere.measure.floors import majority

Values = NDArray[np.float64]


class Options(BaseModel):
    """Strengths of each corruption, the mildest first, and how many images are read.

    The defaults are our severity scale, with the numbers of ImageNet-C but not its pictures, see `corruptions`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    blur: tuple[PositiveFloat, ...] = Field((1.0, 2.0, 3.0, 4.0, 6.0), min_length=1)
    """Standard deviations in pixels at a short side of 224, in proportion at others down to 90."""
    noise: tuple[PositiveFloat, ...] = Field((0.08, 0.12, 0.18, 0.26, 0.38), min_length=1)
    """Standard deviations of values in [0, 1]."""
    jpeg: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field((25, 18, 15, 10, 7), min_length=1)
    """Qualities."""
    contrast: tuple[Annotated[float, Field(ge=0)], ...] = Field((0.4, 0.3, 0.2, 0.1, 0.05), min_length=1)
    """Factors."""
    images: int = Field(1000, ge=2)
    """Most test images, class by class: each goes through every encoder at every strength."""

    def strengths(self) -> dict[str, tuple[float, ...]]:
        """Of every corruption."""
        return {name: getattr(self, name) for name in CORRUPTIONS}


class Corruption(Protocol):
    """Top-1 in percent: clean, at each strength, and the mean of each corruption and of all."""

    Options = Options

    def run(self, data: EvalData) -> Result:
        """Fit on clean images and read corrupted ones with every subject.

        Raises:
            UserError: when all training images are of one class.
        """
        if len(np.unique(data.train_labels)) < 2:
            raise UserError("corruption: all training images are of one class, a probe needs two")
        rows = np.arange(len(data.test_labels))
        if len(rows) > self.options.images:
            rows = hold_out(data.test_labels, data.seed, self.options.images / len(rows))[1]
        test, truth = data.test.subset(rows), data.test_labels[rows]
        counts = resample(len(rows), data.seed)
        probes = {name: fit_probe(name, data, ProbeOptions()) for name in data.subjects}
        right = {
            name: {"clean": _right(probes[name].logits(features[rows]), truth)}
            for name, (_, features) in data.features.items()
        }
        with TemporaryDirectory() as folder:
            for kind, strengths in self.options.strengths().items():
                for level, strength in enumerate(strengths, 1):
                    worse = corrupted(test, kind, strength, data.seed, Path(folder))
                    self._read(worse, f"{kind}{level}", truth, data, probes, right)
                    worse.path.unlink()
        items = {name: self._with_means(found) for name, found in right.items()}
        metrics = {
            name: {metric: mean_percent(values, counts) for metric, values in found.items()}
            for name, found in items.items()
        }
        commonest = majority(data.train_labels, len(data.classes))[0]
        metrics[MAJORITY] = {"clean": mean_percent((truth == commonest).astype(np.float64), counts)}
        return Result(
            protocol="corruption",
            metrics=metrics,
            chosen={"C": {name: probe.strength for name, probe in probes.items()}, "on": data.choice.said},
            settings={
                **{name: list(strengths) for name, strengths in self.options.strengths().items()},
                "scale": "ours: ImageNet-C's numbers on images of any size, so no accuracy on ImageNet-C",
                "units": f"blur: sigma in px at a short side of {SIDE}, in proportion down to {LEAST}; "
                "noise: sigma of values in [0, 1]; JPEG: quality; contrast: factor",
                "corrupted": "the images as they were decoded, before the encoder's own transform",
                "images": len(rows),
                "interval": f"95 % bootstrap over {len(rows)} test images, {DRAWS} draws",
            },
            items=items,
            draws={"images": rows},
        )

    def _read(
        self,
        worse: Canvases,
        metric: str,
        truth: NDArray[np.int64],
        data: EvalData,
        probes: dict[str, Probe],
        right: dict[str, dict[str, Values]],
    ) -> None:
        for name, subject in data.subjects.items():
            right[name][metric] = _right(probes[name].logits(subject.features(worse)), truth)

    def _with_means(self, found: dict[str, Values]) -> dict[str, Values]:
        """The clean ones, the mean over all, of each corruption, then every strength."""
        points = {kind: [f"{kind}{i + 1}" for i in range(len(s))] for kind, s in self.options.strengths().items()}
        means = {kind: np.mean([found[point] for point in names], axis=0) for kind, names in points.items()}
        every = np.mean(list(means.values()), axis=0)
        return {"clean": found["clean"], "mean": every, **means, **found}


def _right(logits: Values, truth: NDArray[np.int64]) -> Values:
    right: Values = (logits.argmax(1) == truth).astype(np.float64)
    return right
