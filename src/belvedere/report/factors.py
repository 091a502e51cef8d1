"""What makes a pair of views hard, and how far the record alone foretells the choice (spec view_policies 5, V6 and V7).

Models learn on one draw of views and are judged on another, so that they cannot know a pair by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.inspection import permutation_importance

from belvedere.report.charts import Bar
from belvedere.report.selection import Replay

REPEATS = 10
# Small trees and small steps: there are a few hundred images to learn on.
_CAREFUL = {"learning_rate": 0.03, "max_iter": 200, "max_leaf_nodes": 8}


@dataclass(frozen=True)
class Importance:
    """How much of the spread of losses within an image a model explains on unseen draws, and by which factors.

    Attributes:
        explained: R^2 on the held-out draw; 0 is no better than the mean, 1 is all.
        factors: by how much R^2 falls when a factor's values are shuffled, largest first, with 95 % intervals.
    """

    explained: float
    factors: list[Bar]


@dataclass(frozen=True)
class Predictability:
    """Shares of images whose chosen pair is foretold on an unseen draw.

    Attributes:
        model: by boosted trees that know every fact of the record.
        least_overlap: by the rule "the pair with the smallest IoU".
        chance: by guessing.
        images: on how many.
    """

    model: float
    least_overlap: float
    chance: float
    images: int


def importance(known: Replay, held_out: Replay, seed: int = 0) -> Importance:
    """Permutation importance of the pair's facts for its log-loss, all relative to the mean of its image.

    What is decided is which pair of an image is hardest, so how hard the image is as a whole is taken out. Losses that
    can be negative (SimSiam's) are taken as they are.
    """
    names = varying(known)
    if not names:
        return Importance(0.0, [])
    model = HistGradientBoostingRegressor(random_state=seed, **_CAREFUL).fit(
        _facts(known, names), _relative_loss(known)
    )
    test, truth = _facts(held_out, names), _relative_loss(held_out)
    found = permutation_importance(model, test, truth, n_repeats=REPEATS, random_state=seed, scoring="r2")
    errors = 1.96 * found.importances_std / np.sqrt(REPEATS)
    factors = [Bar(name, float(x), float(e)) for name, x, e in zip(names, found.importances_mean, errors, strict=True)]
    return Importance(float(model.score(test, truth)), sorted(factors, key=lambda bar: -bar.value))


def predictability(known: Replay, held_out: Replay, seed: int = 0) -> Predictability:
    """How often boosted trees on the facts of all pairs of an image, and their ranks, name the chosen pair."""
    names, pairs = varying(known), len(known.pairs)
    truth = held_out.chosen
    guessed = torch.zeros_like(truth)
    if names:
        model = HistGradientBoostingClassifier(random_state=seed, **_CAREFUL).fit(
            _with_ranks(known, names), _is_chosen(known)
        )
        likely = model.predict_proba(_with_ranks(held_out, names))[:, 1]
        guessed = torch.from_numpy(likely.reshape(-1, pairs).argmax(1))
    least = held_out.facts["iou"].argmin(0)
    return Predictability(
        float((guessed == truth).float().mean()), float((least == truth).float().mean()), 1 / pairs, len(truth)
    )


def varying(replay: Replay) -> list[str]:
    """The facts that tell any two pairs apart: a recipe without blur has no difference in blur."""
    return [name for name, fact in replay.facts.items() if float(fact.max() - fact.min()) > 0]


def _facts(replay: Replay, names: list[str]) -> NDArray[np.float32]:
    """(N * P, F), image after image: each fact above its mean over the image's pairs."""
    found = [(replay.facts[name] - replay.facts[name].mean(0)).T.flatten() for name in names]
    table: NDArray[np.float32] = torch.stack(found, 1).float().numpy()
    return table


def _with_ranks(replay: Replay, names: list[str]) -> NDArray[np.float32]:
    """The facts and each one's rank among the pairs of its image: choices are made within an image."""
    ranks = torch.stack([replay.facts[name].argsort(0).argsort(0).T.flatten() for name in names], 1)
    return np.concatenate([_facts(replay, names), ranks.float().numpy()], 1)


def _relative_loss(replay: Replay) -> NDArray[np.float32]:
    losses = replay.scores.float()
    losses = losses.log() if bool((losses > 0).all()) else losses
    relative: NDArray[np.float32] = (losses - losses.mean(0)).T.flatten().numpy()
    return relative


def _is_chosen(replay: Replay) -> NDArray[np.int64]:
    chosen: NDArray[np.int64] = torch.nn.functional.one_hot(replay.chosen, len(replay.pairs)).flatten().numpy()
    return chosen
