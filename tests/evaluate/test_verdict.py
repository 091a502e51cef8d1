"""The sentences that compare a run with its rivals."""

from __future__ import annotations

import numpy as np
import pytest

from belvedere.evaluate.contract import Number, Result
from belvedere.evaluate.intervals import mean_percent, paired_difference, resample
from belvedere.evaluate.verdict import verdicts


def result(**rights: np.ndarray) -> Result:
    return Result("knn", {}, {}, {}, items={name: {"top1": right} for name, right in rights.items()})


def test_a_gain_a_loss_and_a_tie() -> None:
    rng = np.random.default_rng(0)
    run = (rng.random(1000) < 0.5).astype(float)
    worse = run * (rng.random(1000) < 0.6)
    better = np.maximum(run, rng.random(1000) < 0.3)
    twin = run.copy()
    twin[:2] = 1 - run[:2]
    (sentence,) = verdicts([result(run=run, untrained=worse, imagenet=better, twin=twin)], seed=0)
    gain, loss = 100 * (run - worse).mean(), 100 * (better - run).mean()
    assert f"gains {gain:.1f} ± " in sentence
    assert "points over the untrained network" in sentence
    assert f"; the run is {loss:.1f} ± " in sentence
    assert "points behind imagenet; the run cannot be told apart from twin (" in sentence
    assert verdicts([result(run=run)], seed=0) == []


def test_three_gains_are_a_list() -> None:
    ones, zeros = np.ones(100), np.zeros(100)
    (sentence,) = verdicts([result(run=ones, a=zeros, b=zeros, pixels=zeros)], seed=0)
    assert sentence.endswith(
        "gains 100.0 ± 0.0 points over a, 100.0 ± 0.0 points over b and 100.0 ± 0.0 points over raw pixels."
    )


def test_ties_alone_say_who_is_meant_and_which_way_they_lean() -> None:
    run = np.tile([1.0, 0.0], 50)
    ahead, behind = run.copy(), run.copy()
    ahead[1], behind[0] = 1, 0
    (sentence,) = verdicts([result(run=run, untrained=behind, pixels=ahead)], seed=0)
    assert sentence == (
        "In k-NN, the run cannot be told apart from the untrained network (+1.0 ± 1.5) and raw pixels (-1.0 ± 1.5)."
    )


def test_what_is_hard_for_both_does_not_widen_the_difference() -> None:
    rng = np.random.default_rng(1)
    easy = (rng.random(500) < 0.5).astype(float)
    first, second = easy.copy(), easy.copy()
    second[np.flatnonzero(easy)[:20]] = 0
    counts = resample(500, 0)
    paired: Number = paired_difference(first, second, counts)
    assert paired.value == pytest.approx(4)
    alone = mean_percent(first, counts)
    assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert 0 < paired.low < 4 < paired.high
