"""Can a linear classifier read the classes off? Logistic regression on frozen, standardised features; nothing to tune.

Spec evaluation 2.2. Deterministic (L-BFGS), its one strength of regularisation chosen on a tenth of the training
images; the test images are read once. Raw pixels, the untrained network and the majority class go through the same
lines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.metrics import confusion_matrix

from belvedere.errors import UserError
from belvedere.evaluate.contract import MAJORITY, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, resample
from belvedere.evaluate.probe import ProbeOptions, choice_rows, fit_probe
from belvedere.evaluate.scores import TOP, classification
from belvedere.measure.floors import majority


class Logistic(Protocol):
    """Top-1, top-5 (from six classes on), balanced accuracy and, of unbalanced classes, F1 in percent."""

    Options = ProbeOptions
    quick = True

    def run(self, data: EvalData) -> Result:
        """Fit and read a probe on every encoder in `data.features`.

        Raises:
            UserError: when all training images are of one class.
        """
        if len(np.unique(data.train_labels)) < 2:
            raise UserError("logistic: all training images are of one class, a probe needs two")
        counts = resample(len(data.test_labels), data.seed)
        metrics: dict[str, dict[str, Number]] = {}
        iterations: dict[str, int] = {}
        grid: dict[str, dict[str, float]] = {}
        chosen: dict[str, float] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, (_, test) in data.features.items():
            probe = fit_probe(name, data, self.options)
            grid[name], chosen[name] = probe.grid, probe.strength
            iterations[name] = int(probe.model.n_iter_.max())
            logits = probe.logits(test)
            ranking = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
            metrics[name] = classification(ranking, data.test_labels, len(data.classes), counts)
            items[name] = {"top1": (ranking[:, 0] == data.test_labels).astype(np.float64)}
            draws[name] = {
                "predictions": ranking[:, 0],
                "confidence": softmax(logits, axis=1).max(1),
                "confusion": confusion_matrix(data.test_labels, ranking[:, 0], labels=range(len(data.classes))),
            }
        always = np.tile(majority(data.train_labels, len(data.classes))[:TOP], (len(data.test_labels), 1))
        metrics[MAJORITY] = classification(always, data.test_labels, len(data.classes), counts)
        return Result(
            protocol="logistic",
            metrics=metrics,
            chosen={
                "C": chosen,
                "on": f"{data.choice.said}, fitted on {len(choice_rows(data, self.options)[0])}",
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
