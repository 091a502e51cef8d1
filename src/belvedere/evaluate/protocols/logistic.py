"""Logistic regression on frozen, standardised features: a probe with nothing to tune by hand; spec evaluation 2.2.

Deterministic (L-BFGS), its one strength of regularisation chosen on a tenth of the training images; the test images are
read once. Raw pixels, the untrained network and the majority class go through the same lines.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.preprocessing import StandardScaler

from belvedere.errors import UserError
from belvedere.evaluate.contract import MAJORITY, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, resample
from belvedere.evaluate.scores import TOP, classification
from belvedere.measure.floors import majority

Features = NDArray[np.float32]
Labels = NDArray[np.int64]


class Options(BaseModel):
    """What may be chosen from, and how far the solver goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    strengths: tuple[float, ...] = Field(tuple(float(c) for c in np.logspace(-6, 5, 12)), min_length=1)
    """Inverse strengths C of the L2 penalty to choose from."""
    choice_images: int = Field(5000, ge=2)
    """Most training images that the choice of C fits on; the probe itself is then fitted on all."""
    iterations: int = Field(200, ge=1)
    patience: int = Field(3, ge=1)
    """From the strongest penalty on, the choice ends when so many in a row were worse than the best before them: weak
    penalties take the longest, and on separable data none of them converges."""


class Logistic(Protocol):
    """Top-1, top-5 (from six classes on) and balanced accuracy in percent."""

    Options = Options
    quick = True

    def run(self, data: EvalData) -> Result:
        """Fit and read a probe on every encoder in `data.features`.

        Raises:
            UserError: when all training images are of one class.
        """
        if len(np.unique(data.train_labels)) < 2:
            raise UserError("logistic: all training images are of one class, a probe needs two")
        choice = data.choice
        fit = np.sort(np.random.default_rng(data.seed).permutation(choice.fit)[: self.options.choice_images])
        choice = replace(choice, fit=fit)
        fit_y, val_y = choice.of(data.train_labels, data.test_labels)
        counts = resample(len(data.test_labels), data.seed)
        metrics: dict[str, dict[str, Number]] = {}
        iterations: dict[str, int] = {}
        grid: dict[str, dict[str, float]] = {}
        chosen: dict[str, float] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, (train, test) in data.features.items():
            x, y = train.numpy(), data.train_labels
            fit_x, val_x = choice.of(train, test)
            grid[name], chosen[name] = self._choose(fit_x.numpy(), fit_y, val_x.numpy(), val_y)
            scaler = StandardScaler().fit(x)
            probe = self._fit(chosen[name], scaler.transform(x), y)
            iterations[name] = int(probe.n_iter_.max())
            scores = _scores(probe, scaler.transform(test.numpy()), len(data.classes))
            ranking = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
            metrics[name] = classification(ranking, data.test_labels, len(data.classes), counts)
            items[name] = {"top1": (ranking[:, 0] == data.test_labels).astype(np.float64)}
            draws[name] = {
                "predictions": ranking[:, 0],
                "confidence": softmax(scores, axis=1).max(1),
                "confusion": confusion_matrix(data.test_labels, ranking[:, 0], labels=range(len(data.classes))),
            }
        always = np.tile(majority(data.train_labels, len(data.classes))[:TOP], (len(data.test_labels), 1))
        metrics[MAJORITY] = classification(always, data.test_labels, len(data.classes), counts)
        return Result(
            protocol="logistic",
            metrics=metrics,
            chosen={
                "C": chosen,
                "on": f"{choice.said}, fitted on {len(fit)}",
                "accuracy": grid,
            },
            settings={
                "solver": "lbfgs",
                "iterations": iterations,
                "most_iterations": self.options.iterations,
                "dimensions": {name: train.shape[1] for name, (train, _) in data.features.items()},
                "interval": f"95 % bootstrap over {len(data.test_labels)} test images, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def _fit(self, strength: float, x: Features, y: Labels) -> LogisticRegression:
        with warnings.catch_warnings():
            # Weak penalties do not converge on separable data; the result tells the iterations of the one chosen.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=strength, max_iter=self.options.iterations).fit(x, y)

    def _choose(self, x: Features, y: Labels, val_x: Features, val_y: Labels) -> tuple[dict[str, float], float]:
        """Validation accuracy of every C, in percent, and the best one; of equals the strongest penalty."""
        if len(np.unique(y)) < 2:
            return {}, min(self.options.strengths, key=lambda c: abs(np.log(c)))  # too few images to choose on: about 1
        scaler = StandardScaler().fit(x)
        x, val_x = scaler.transform(x), scaler.transform(val_x)
        found: dict[float, float] = {}
        worse = 0
        for c in sorted(self.options.strengths):
            accuracy = 100 * float(self._fit(c, x, y).score(val_x, val_y))
            worse = 0 if accuracy >= max(found.values(), default=-1.0) else worse + 1
            found[c] = accuracy
            if worse == self.options.patience:
                break
        return {f"{c:g}": value for c, value in found.items()}, max(found, key=found.__getitem__)


def _scores(probe: Any, x: Features, classes: int) -> NDArray[np.float64]:
    """(M, classes) log-odds; a class that training has not comes last."""
    decision = probe.decision_function(x)
    if decision.ndim == 1:
        decision = np.stack([-decision, decision], axis=1)
    scores = np.full((len(x), classes), -np.inf)
    scores[:, probe.classes_] = decision
    return scores
