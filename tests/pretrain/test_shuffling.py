"""How well images are mixed, and shared out: the real data order against chance, and against a shuffle buffer.

The set stands for shards that were written class by class: 100 classes of 200 images, in 20 shards. Readers of streams
shuffle within a buffer of the usual 1,000 images; belvedere reads shards at random, so draws one permutation of all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from belvedere.pretrain.feed import Feed

CLASSES, EACH, SHARDS, BATCH, BUFFER = 100, 200, 20, 256, 1000
IMAGES = CLASSES * EACH
STEPS = IMAGES // BATCH
Order = NDArray[np.int64]


class Images:
    """Stands for canvases of which only the number matters."""

    def __len__(self) -> int:
        return IMAGES


def fed(epoch: int, rank: int = 0, world: int = 1) -> Order:
    """The images of an epoch as a rank's feed gives them."""
    feed = Feed(Images(), BATCH, seed=0, rank=rank, world=world, accumulate=2)
    steps = range(epoch * feed.steps_per_epoch, (epoch + 1) * feed.steps_per_epoch)
    return np.concatenate([part for step in steps for part in feed.micro_batches(step)])


def chance(epoch: int) -> Order:
    """A uniform permutation of another generator."""
    return np.random.default_rng(epoch).permutation(IMAGES)


def buffered(epoch: int) -> Order:
    """Shards in random order, and of their images a random one of the next 1,000."""
    random = np.random.default_rng(epoch)
    shards = np.arange(IMAGES).reshape(SHARDS, -1)[random.permutation(SHARDS)]
    buffer: list[int] = []
    found = []
    for image in shards.ravel().tolist():
        buffer.append(image)
        if len(buffer) == BUFFER:
            place = int(random.integers(BUFFER))
            buffer[place], buffer[-1] = buffer[-1], buffer[place]
            found.append(buffer.pop())
    return np.array([*found, *random.permutation(buffer)])


def neighbour_distance(order: Order) -> float:
    """Mean distance in the files of two images that follow each other, as a share of the set; 1/3 by chance."""
    return float(np.abs(np.diff(order)).mean() / IMAGES)


def classes_in_a_batch(order: Order) -> float:
    """Mean number of classes of a batch."""
    batches = order[: STEPS * BATCH].reshape(STEPS, BATCH) // EACH
    return float(np.mean([len(np.unique(batch)) for batch in batches]))


def shards_in_a_batch(order: Order) -> float:
    """Mean number of shards of a batch."""
    batches = order[: STEPS * BATCH].reshape(STEPS, BATCH) // (IMAGES // SHARDS)
    return float(np.mean([len(np.unique(batch)) for batch in batches]))


def correlation(first: Order, second: Order) -> float:
    """Rank correlation of the places that the images have in two orders."""
    count = min(len(first), len(second))
    return float(abs(spearmanr(first[:count], second[:count]).statistic))


@pytest.mark.parametrize("order", [fed, chance])
def test_the_order_is_one_permutation_of_all(order: Callable[[int], Order]) -> None:
    """Within four standard deviations of what is expected of a uniform permutation."""
    files = np.arange(IMAGES)
    epochs = [order(epoch) for epoch in range(3)]
    expected = CLASSES * (1 - (1 - BATCH / IMAGES) ** EACH)
    for number, found in enumerate(epochs):
        assert correlation(found, files) < 4 / np.sqrt(IMAGES)
        assert correlation(found, epochs[number - 1]) < 4 / np.sqrt(IMAGES)
        assert abs(neighbour_distance(found) - 1 / 3) < 4 / np.sqrt(18 * IMAGES)
        assert abs(classes_in_a_batch(found) - expected) < 1
        assert shards_in_a_batch(found) == SHARDS


def test_a_buffer_of_a_thousand_mixes_less() -> None:
    """The numbers of docs/large_data.md."""
    found, whole = buffered(0), fed(0)
    assert sorted(found.tolist()) == list(range(IMAGES))
    assert classes_in_a_batch(whole) == pytest.approx(92.4, abs=0.5)
    assert classes_in_a_batch(found) == pytest.approx(22, abs=1.5)
    assert shards_in_a_batch(found) == pytest.approx(6, abs=0.5)
    assert neighbour_distance(whole) == pytest.approx(1 / 3, abs=0.01)
    assert neighbour_distance(found) == pytest.approx(0.24, abs=0.03)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_share_an_epoch_without_doubles(world: int) -> None:
    shares = [fed(1, rank, world) for rank in range(world)]
    together = np.concatenate(shares)
    assert len(np.unique(together)) == len(together)
    np.testing.assert_array_equal(np.sort(together), np.sort(fed(1)))
    left_out = IMAGES - len(together)
    assert left_out == IMAGES % BATCH if 2 * (IMAGES % BATCH) < BATCH else left_out == 0
