"""Stratified parts and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, f1_score, precision_score

from belvedere.errors import UserError
from belvedere.evaluate.intervals import (
    balanced_accuracy,
    balanced_of_draws,
    f1_scores,
    mean_of_draws,
    resample,
    share_right,
)
from belvedere.evaluate.protocols.knn import usable_ks
from belvedere.evaluate.scores import classification, unbalanced
from belvedere.evaluate.splits import hold_out


@given(sizes=st.lists(st.integers(1, 80), min_size=1, max_size=8), seed=st.integers(0, 50))
def test_hold_out_is_a_stratified_partition(sizes: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    if len(labels) < 2:
        with pytest.raises(UserError, match="only one labelled image"):
            hold_out(labels, seed)
        return
    first, second = hold_out(labels, seed)
    assert sorted([*first, *second]) == list(range(len(labels)))
    assert len(second) == max(1, round(len(labels) / 10))
    if min(sizes) >= 10:  # a class of fewer has no whole image to give
        for label, size in enumerate(sizes):
            assert abs((labels[second] == label).sum() - size / 10) < 2
    again = hold_out(labels, seed)
    assert np.array_equal(again[1], second)


def test_a_class_of_one_image_stays_in_training() -> None:
    first, second = hold_out(np.array([0] * 30 + [1]), 0)
    assert 30 in first
    assert len(second) == 3


def test_hold_out_by_seed_and_group() -> None:
    labels = np.zeros(200, np.int64)
    assert not np.array_equal(hold_out(labels, 0)[1], hold_out(labels, 1)[1])
    groups = [f"patient {i // 10}" for i in range(200)]
    first, second = hold_out(labels, 0, groups=groups)
    assert len(second) == 20
    assert not {groups[i] for i in first} & {groups[i] for i in second}
    with pytest.raises(UserError, match="only one group"):
        hold_out(labels, 0, groups=["one"] * 200)


def test_small_set_rule() -> None:
    assert usable_ks((10, 20, 100, 200), 2000) == (10, 20, 100, 200)
    assert usable_ks((200, 10, 20, 100), 999) == (10, 20, 100)
    assert usable_ks((10, 20), 49) == (9,)
    assert usable_ks((10, 20), 2) == (1,)


def test_interval_is_that_of_the_binomial() -> None:
    right = np.arange(400) < 300
    number = share_right(right, resample(400, seed=0))
    half = 100 * 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert number.value == 75
    assert number.low == pytest.approx(75 - half, abs=0.6)
    assert number.high == pytest.approx(75 + half, abs=0.6)


def test_balanced_accuracy_is_sklearns_in_every_draw() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice([0, 2, 3], 60, p=[0.8, 0.15, 0.05]), rng.integers(0, 4, 60)
    counts = resample(60, seed=1, draws=50)
    number = balanced_accuracy(truth, predicted, counts)
    rows = [np.repeat(np.arange(60), row) for row in counts]
    drawn = [100 * np.mean([(predicted[r][truth[r] == c] == c).mean() for c in np.unique(truth[r])]) for r in rows]
    assert number.low == pytest.approx(np.percentile(drawn, 2.5))
    assert number.high == pytest.approx(np.percentile(drawn, 97.5))
    seen = predicted != 1  # sklearn warns about predicted classes that never occur
    kept = balanced_accuracy(truth[seen], predicted[seen], resample(int(seen.sum()), seed=1, draws=50))
    assert kept.value == pytest.approx(100 * balanced_accuracy_score(truth[seen], predicted[seen]))


def test_one_test_image() -> None:
    number = share_right(np.array([True]), resample(1, seed=0))
    assert (number.low, number.value, number.high) == (100, 100, 100)


def test_f1_and_precision_are_sklearns_in_every_draw() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.choice([0, 2, 3], 60, p=[0.8, 0.15, 0.05]), rng.integers(0, 4, 60)
    counts = resample(60, seed=1, draws=50)
    rows = [np.repeat(np.arange(60), row) for row in counts]
    sklearns = (f1_score, "macro"), (f1_score, "weighted"), (precision_score, "macro")
    for number, (score, average) in zip(f1_scores(truth, predicted, counts), sklearns, strict=True):
        drawn = [
            100 * score(truth[r], predicted[r], labels=np.unique(truth[r]), average=average, zero_division=0)
            for r in rows
        ]
        told = score(truth, predicted, labels=np.unique(truth), average=average, zero_division=0)
        assert number.value == pytest.approx(100 * told)
        assert number.low == pytest.approx(np.percentile(drawn, 2.5))
        assert number.high == pytest.approx(np.percentile(drawn, 97.5))


def test_small_classes_are_seen_where_classes_are_unbalanced() -> None:
    truth = np.array([0] * 90 + [2] * 10)
    counts = resample(100, 0)
    always = classification(np.zeros((100, 1), np.int64), truth, 3, counts)
    assert always["top1"].value == 90
    assert always["balanced"].value == 50
    assert always["macro_f1"].value == pytest.approx(100 * (2 * 90 / (90 + 100)) / 2)
    # All small ones found, but named four times too often: balanced accuracy hardly tells.
    often = np.where((truth == 2) | (np.arange(100) < 30), 2, 0)
    found = classification(often[:, None], truth, 3, counts)
    assert found["balanced"].value > 80
    assert found["macro_f1"].value < 65
    assert not unbalanced(np.array([0, 0, 0, 2, 2]))
    assert unbalanced(np.array([0, 0, 2]))
    assert set(classification(truth[::2, None], truth[::2] * 0, 3, counts[:, ::2])) == {"top1", "balanced"}


def test_balanced_accuracy_over_draws_of_labels() -> None:
    rng = np.random.default_rng(0)
    truth = rng.choice([0, 1], 80, p=[0.8, 0.2])
    right = rng.random((5, 80)) < np.where(truth == 0, 0.9, 0.3)
    counts = resample(80, 0)
    found = balanced_of_draws(right, truth, counts, 0)
    by_hand = [np.mean([one[truth == c].mean() for c in (0, 1)]) for one in right]
    assert found.value == pytest.approx(100 * np.mean(by_hand))
    assert found.low < found.value < found.high < mean_of_draws(right, counts, 0).value
    # Of classes of one size it is plain accuracy.
    even = np.arange(80) % 2
    assert balanced_of_draws(right, even, counts, 0).value == pytest.approx(mean_of_draws(right, counts, 0).value)
