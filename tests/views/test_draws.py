"""The counter-based generator: uniform, independent of batch and order, different purposes unrelated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from belvedere.views.draws import (
    integers,
    permutation,
    streams,
    substreams,
    uniform,
    uniform_many,
    unit,
    words,
)


def test_uniform_over_images_and_over_counters() -> None:
    by_image = uniform(0, 0, np.arange(20_000), "mask")
    by_counter = uniform(0, 0, [3], "mask", (20_000,))[0]
    by_epoch = np.array([uniform(0, epoch, [3], "mask")[0] for epoch in range(2_000)])
    by_seed = np.array([uniform(seed, 0, [3], "mask")[0] for seed in range(2_000)])
    for draws in (by_image, by_counter, by_epoch, by_seed):
        assert draws.dtype == np.float64
        assert (draws >= 0).all()
        assert (draws < 1).all()
        assert stats.kstest(draws, "uniform").pvalue > 1e-3


def test_a_draw_depends_on_its_own_key_only() -> None:
    index = np.array([7, 3, 10**12, 0])
    together = uniform(1, 2, index, "view/global_a", (5, 2))
    assert together.shape == (4, 5, 2)
    for row, image in zip(together, index, strict=True):
        assert np.array_equal(uniform(1, 2, [image], "view/global_a", (5, 2))[0], row)
    assert np.array_equal(uniform(1, 2, index, "view/global_a", (3,)), together.reshape(4, 10)[:, :3])
    several = uniform_many(1, 2, index, ["donor", "view/global_a"], 10)
    assert np.array_equal(several[1], together.reshape(4, 10))


@pytest.mark.parametrize(
    "other",
    [
        uniform(0, 0, np.arange(20_000), "b"),
        uniform(0, 1, np.arange(20_000), "a"),
        uniform(1, 0, np.arange(20_000), "a"),
        uniform(0, 0, np.arange(1, 20_001), "a"),
        uniform(0, 0, np.arange(20_000), "a", (2,))[:, 1],
    ],
    ids=["purpose", "epoch", "seed", "image", "counter"],
)
def test_different_keys_are_uncorrelated(other: np.ndarray) -> None:
    mine = uniform(0, 0, np.arange(20_000), "a")
    assert abs(np.corrcoef(mine, other)[0, 1]) < 4 / np.sqrt(20_000)
    table, *_ = np.histogram2d(mine, other, bins=10, range=[[0, 1], [0, 1]])
    assert stats.chisquare(table.ravel()).pvalue > 1e-4


def test_known_values_never_change() -> None:
    """Runs of an older version must resume on the same draws."""
    assert uniform(0, 0, [0, 1], "view/global_a").tolist() == [
        0.23866264376985324,
        0.008039609342152865,
    ]


def test_integers_are_uniform_and_bounded() -> None:
    draws = integers(0, 0, np.arange(24_000), "donor", 24)
    assert draws.min() == 0
    assert draws.max() == 23
    assert stats.chisquare(np.bincount(draws)).pvalue > 1e-3
    limits = np.arange(1, 101)
    assert (integers(0, 0, np.arange(100), "donor", limits) < limits).all()
    with pytest.raises(ValueError, match="at least 1"):
        integers(0, 0, [0], "donor", 0)


def test_permutation_is_one_and_changes_with_the_epoch() -> None:
    first, second = permutation(0, 0, 1000), permutation(0, 1, 1000)
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert abs(stats.spearmanr(first, second).statistic) < 0.13
    assert abs(stats.spearmanr(first, np.arange(1000)).statistic) < 0.13
    assert len(permutation(0, 0, 0)) == 0
    thirds = np.array([permutation(seed, 0, 3) for seed in range(3000)])
    assert stats.chisquare(np.unique(thirds @ [9, 3, 1], return_counts=True)[1]).pvalue > 1e-3


def test_streams_are_what_draws_are_made_of() -> None:
    keys = streams(0, 4, np.arange(20_000), ["view/global_a"])
    assert np.array_equal(unit(words(keys, 3)), uniform_many(0, 4, np.arange(20_000), ["view/global_a"], 3))
    assert np.array_equal(words(keys, 2, start=1), words(keys, 3)[..., 1:])
    mask, donor = (unit(words(substreams(keys, purpose), 1)).ravel() for purpose in ("mask", "donor"))
    for a, b in ((mask, donor), (mask, unit(words(keys, 1)).ravel())):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(20_000)
    assert stats.kstest(mask, "uniform").pvalue > 1e-3
