"""The logistic probe: standardised features, L2 penalty chosen on held-out training images; spec evaluation 2.2."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from belvedere.evaluate.contract import EvalData

Features = NDArray[np.float32]
Labels = NDArray[np.int64]

ONE_THREAD = 10**9
"""Multiplications of features with weights (images x dimensions x classes) up to which a product is left to one thread.

A core takes some hundredths of a second for so many, and the solver asks for thousands of products. Where other
programs keep the cores busy, the threads of BLAS wait for each other in every single one: on two cores with three such
programs the probes of 2,000 images took 321 s instead of 13.
"""


class ProbeOptions(BaseModel):
    """What may be chosen from, and how far the solver goes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    strengths: tuple[PositiveFloat, ...] = Field(tuple(float(c) for c in np.logspace(-6, 5, 12)), min_length=1)
    """Inverse strengths C of the L2 penalty to choose from."""
    choice_images: int = Field(5000, ge=2)
    """Most training images that the choice of C fits on; the probe itself is then fitted on all."""
    iterations: int = Field(200, ge=1)
    patience: int = Field(3, ge=1)
    """From the strongest penalty on, the choice ends when so many in a row were worse than the best before them: weak
    penalties take the longest, and on separable data none of them converges."""


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        scaler, model: of scikit-learn.
        classes: how many there are; training may lack some.
        strength: the C chosen.
        grid: validation accuracy of every C, in percent; empty where there were too few images to choose on.
    """

    scaler: StandardScaler
    model: LogisticRegression
    classes: int
    strength: float
    grid: dict[str, float]

    def logits(self, features: Tensor) -> NDArray[np.float64]:
        """(M, classes) log-odds of (M, D) features; a class that training has not is at minus infinity."""
        decision = self.model.decision_function(self.scaler.transform(features.numpy()))
        if decision.ndim == 1:
            # Of two classes scikit-learn gives the difference of their log-odds.
            decision = np.stack([-decision / 2, decision / 2], axis=1)
        scores = np.full((len(features), self.classes), -np.inf)
        scores[:, self.model.classes_] = decision
        return scores


def fit_probe(subject: str, data: EvalData, options: ProbeOptions) -> Probe:
    """The probe of a subject's features: C is chosen as `data.choice` says, then it is fitted on all training images.

    Images without a label (-1) take no part; at least two classes must have training images. Fitted once for all
    protocols that ask for it with the same options.
    """
    key = ("probe", subject, options)
    if key not in data.shared:
        data.shared[key] = _fit_probe(*data.features[subject], data, options)
    probe: Probe = data.shared[key]
    return probe


def _fit_probe(train: Tensor, test: Tensor, data: EvalData, options: ProbeOptions) -> Probe:
    fit, val = choice_rows(data, options)
    y, val_y = data.train_labels, (data.test_labels if data.choice.on_test else data.train_labels)[val]
    x, val_x = train.numpy(), (test if data.choice.on_test else train).numpy()[val]
    grid, strength = _choose(x[fit], y[fit], val_x, val_y, options)
    scaler = StandardScaler().fit(x[y >= 0])
    model = fit_logistic(strength, scaler.transform(x[y >= 0]), y[y >= 0], options.iterations)
    return Probe(scaler, model, len(data.classes), strength, grid)


def choice_rows(data: EvalData, options: ProbeOptions) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labelled rows to fit on and to choose by; at most `options.choice_images` of the first."""
    fit = data.choice.fit[data.train_labels[data.choice.fit] >= 0]
    labels = data.test_labels if data.choice.on_test else data.train_labels
    fit = np.sort(np.random.default_rng(data.seed).permutation(fit)[: options.choice_images])
    return fit, data.choice.val[labels[data.choice.val] >= 0]


def fit_logistic(strength: float, x: Features, y: Labels, iterations: int) -> LogisticRegression:
    """Multinomial logistic regression on standardised features; the same for any number of cores up to `ONE_THREAD`.

    Args:
        strength: inverse strength C of the L2 penalty.
        x: (N, D).
        y: (N,) class ids of two classes or more.
        iterations: most of the solver's.
    """
    small = x.size * len(np.unique(y)) <= ONE_THREAD
    with warnings.catch_warnings(), threadpool_limits(1 if small else None, user_api="blas"):
        # Weak penalties do not converge on separable data; the result tells the iterations of the one chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # As many classes as half of the images look like a regression to scikit-learn; here they are few shots.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return LogisticRegression(C=strength, max_iter=iterations).fit(x, y)


def _choose(
    x: Features, y: Labels, val_x: Features, val_y: Labels, options: ProbeOptions
) -> tuple[dict[str, float], float]:
    """Validation accuracy of every C, in percent, and the best one; of equals the strongest penalty."""
    if len(np.unique(y)) < 2 or not len(val_y):
        return {}, min(options.strengths, key=lambda c: abs(np.log(c)))  # too few images to choose on: about 1
    scaler = StandardScaler().fit(x)
    x, val_x = scaler.transform(x), scaler.transform(val_x)
    found: dict[float, float] = {}
    worse = 0
    for c in sorted(options.strengths):
        accuracy = 100 * float(fit_logistic(c, x, y, options.iterations).score(val_x, val_y))
        worse = 0 if accuracy >= max(found.values(), default=0.0) else worse + 1
        found[c] = accuracy
        if worse == options.patience:
            break
    return {f"{c:g}": value for c, value in found.items()}, max(found, key=found.__getitem__)
