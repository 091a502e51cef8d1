"""How many labels are needed? A logistic probe on 1, 2, 4, ... and all labelled images of a class.

Spec evaluation 2.3. Every point is the mean over several draws of the labelled images, the same ones for every encoder.
The last point has all labels, of which there is but one draw. Nothing is chosen: so few labels leave none to choose on,
so the strength of the penalty is fixed, and it stays so up to the last point, which makes them one curve; what a chosen
strength gains with all labels is the protocol `logistic`'s number. Raw pixels and the untrained network go through the
same lines.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from sklearn.preprocessing import StandardScaler

from belvedere.errors import UserError
from belvedere.evaluate.contract import EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, balanced_of_draws, mean_of_draws, resample
from belvedere.evaluate.probe import fit_logistic
from belvedere.evaluate.scores import unbalanced

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]


class Options(BaseModel):
    """Points of the curve."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    shots: tuple[PositiveInt, ...] = Field((1, 2, 4, 8, 16), min_length=1)
    """Labelled images a class, beside all of them; what most classes have not is left out."""
    draws: int = Field(5, ge=1)
    """Of the labelled images, at each point."""
    strength: float = Field(1.0, gt=0)
    """Inverse strength C of the L2 penalty, on standardised features."""
    iterations: int = Field(1000, ge=1)


class FewShot(Protocol):
    """Top-1 in percent by labels a class: `shots1`, `shots2`, ...; the last is the largest class's size: all labels.

    Where the test classes are unbalanced, balanced accuracy too: `balanced1`, `balanced2`, ...
    """

    Options = Options
    quick = True

    def run(self, data: EvalData) -> Result:
        """Fit and read a probe at every point, on every draw, with every encoder.

        Raises:
            UserError: when the training images are of one class.
        """
        sizes = np.bincount(data.train_labels, minlength=len(data.classes))
        if (sizes > 0).sum() < 2:
            raise UserError("fewshot: all training images are of one class, a probe needs two")
        shots = points(sizes[sizes > 0], self.options.shots)
        draws = {n: range(self.options.draws if n < shots[-1] else 1) for n in shots}
        counts = resample(len(data.test_labels), data.seed)
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        for name, (train, test) in data.features.items():
            # All images are there without their labels, so the scale of the features may come from all of them.
            scaler = StandardScaler().fit(train.numpy())
            x, read = scaler.transform(train.numpy()), scaler.transform(test.numpy())
            metrics[name], items[name] = {}, {}
            for n in shots:
                rows = [labelled(data.train_labels, n, data.seed, draw) for draw in draws[n]]
                right = np.stack([self._answers(x[r], data.train_labels[r], read) == data.test_labels for r in rows])
                metrics[name][f"shots{n}"] = mean_of_draws(right, counts, data.seed)
                items[name][f"shots{n}"] = (right if len(right) > 1 else right[0]).astype(np.float64)
                if unbalanced(data.test_labels):
                    metrics[name][f"balanced{n}"] = balanced_of_draws(right, data.test_labels, counts, data.seed)
        return Result(
            protocol="fewshot",
            metrics=metrics,
            chosen={},
            settings={
                "C": self.options.strength,
                "draws": self.options.draws,
                "shots": shots,
                "all": f"shots{shots[-1]} has all {len(data.train_labels)} labels, {sizes[sizes > 0].min()} to "
                f"{sizes.max()} a class",
                "interval": f"95 % bootstrap over {self.options.draws} draws of labels (all labels: one) and "
                f"{len(data.test_labels)} test images, {DRAWS} times",
            },
            items=items,
        )

    def _answers(self, x: NDArray[np.float32], y: Labels, test: NDArray[np.float32]) -> Labels:
        probe = fit_logistic(self.options.strength, x, y, self.options.iterations)
        answers: Labels = probe.predict(test)
        return answers


def points(sizes: NDArray[np.int64], asked: tuple[int, ...]) -> list[int]:
    """Labels a class of every point, ascending: those asked for that most classes have, and all that the largest has.

    Args:
        sizes: labelled images of every class that has some.
    """
    enough, most = int(np.median(sizes)), int(sizes.max())
    return sorted({n for n in asked if n <= enough and n < most} | {most})


def labelled(labels: Labels, shots: int, seed: int, draw: int) -> Rows:
    """Ascending rows of `shots` images of every class, fewer of a class that has no more.

    A draw of more images holds that of fewer.
    """
    order = np.random.default_rng([seed, draw]).permutation(len(labels))
    found = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return np.sort(np.concatenate(found))
