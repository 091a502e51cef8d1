"""The data order: every image once an epoch, whatever the processes, the micro-batches and the point of resuming."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.feed import CPU, Copies, Feed, on_device
from tiny import tiny_canvases


class Images:
    """Stands for canvases of which only the number matters."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


@settings(max_examples=80)
@given(st.data())
def test_an_epoch_is_a_permutation_cut_into_batches(data: st.DataObject) -> None:
    world = data.draw(st.integers(1, 4), "world")
    batch = data.draw(st.integers(2 * world, 40), "batch")
    images = data.draw(st.integers(batch, 200), "images")
    accumulate = data.draw(st.integers(1, 5), "accumulate")
    seed = data.draw(st.integers(0, 5), "seed")
    whole = Feed(Images(images), batch, seed)
    ranks = [Feed(Images(images), batch, seed, rank, world, accumulate) for rank in range(world)]
    seen = []
    for step in range(whole.steps_per_epoch):
        index = whole.indices(step)
        shares = [feed.micro_batches(step) for feed in ranks]
        # Processes meet in every micro-batch: each has as many, and none is empty.
        assert len({len(share) for share in shares}) == 1
        assert all(len(part) for share in shares for part in share)
        sizes = [sum(len(part) for part in share) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.concatenate([part for share in shares for part in share]), index)
        seen += index.tolist()
    assert len(set(seen)) == len(seen)
    rest = images % batch
    left_out = rest if 2 * rest < batch else 0
    assert len(seen) == images - left_out


def test_epochs_and_seeds_differ() -> None:
    feed = Feed(Images(50), 10, seed=3)
    epochs = [np.concatenate([feed.indices(5 * epoch + step) for step in range(5)]).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other = Feed(Images(50), 10, seed=4)
    assert np.concatenate([other.indices(step) for step in range(5)]).tolist() != epochs[0]
    again = Feed(Images(50), 10, seed=3)
    assert again.indices(7).tolist() == feed.indices(7).tolist()


def test_images_left_out_come_in_other_epochs() -> None:
    feed = Feed(Images(43), 10, seed=0)
    assert feed.steps_per_epoch == 4
    seen = {int(i) for step in range(8 * 4) for i in feed.indices(step)}
    assert seen == set(range(43))


def test_a_set_that_fits_is_read_once_and_gives_the_same_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    canvases = tiny_canvases(23)
    expected = list(Feed(canvases, 8, seed=1).stream(0, 4))
    room = len(canvases) * canvases.pixels(0).size
    feed, read = Feed(canvases, 8, seed=1, room=room), list[int]()
    take = type(canvases).batch
    monkeypatch.setattr(sys.modules[Feed.__module__], "READ_AT_ONCE", 9)
    monkeypatch.setattr(type(canvases), "batch", lambda own, rows: (read.extend(list(rows)), take(own, rows))[1])
    for ((index, images),), ((other, same),) in zip(expected, feed.stream(0, 4), strict=True):
        assert index.tolist() == other.tolist()
        assert torch.equal(images, same)
    assert read == [*range(23)]
    assert on_device(canvases, CPU, room - 1) is None


def test_a_set_of_several_sizes_lies_there_padded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (24 + i, 40 - 3 * i, 3), np.uint8)).save(tmp_path / f"{i}.png")
    canvases = open_canvases(find_images(tmp_path), 24, progress=False)
    height, width = canvases.sizes.max(0)
    assert len({*map(tuple, canvases.sizes.tolist())}) > 2
    whole = on_device(canvases, CPU, 6 * height * width * 3)
    assert whole.shape == (6, height, width, 3)
    assert on_device(canvases, CPU, 6 * height * width * 3 - 1) is None
    for i, (h, w) in enumerate(canvases.sizes):
        assert np.array_equal(whole[i, :h, :w], canvases.pixels(i))
    ((_, images),) = next(Feed(canvases, 4, seed=0, room=10**9).stream(0, 1))
    assert images.shape == (4, height, width, 3)


class Told(Copies):
    """Copies nothing, but keeps what it was asked for, in order."""

    def __init__(self, device: torch.device) -> None:
        self.asked = list[Any]()
        MADE.append(self)

    def begin(self, images: Tensor) -> Tensor:
        self.asked.append(tuple(images.shape))
        return images

    def hand_over(self, batch: list[Tensor | list[Tensor]]) -> None:
        self.asked.append(len(batch))


MADE = list[Told]()


def test_for_cuda_a_batch_is_one_tensor_copied_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of several sizes are padded, since each copy of its own would make the processor wait."""
    monkeypatch.setattr(importlib.import_module("belvedere.pretrain.feed"), "Copies", Told)
    sizes = [(5, 9), (8, 4), (6, 6)]
    images = [torch.full((*size, 3), i + 1, dtype=torch.uint8) for i, size in enumerate(sizes)]
    canvases = Images(3)
    canvases.batch = lambda index: [images[i] for i in index]
    ((index, batch),), *others = Feed(canvases, 3, seed=0, device=torch.device("cuda")).stream(0, 3)
    # A batch is handed over before the next one is begun, for which it must not wait; the last one is read twice.
    assert MADE.pop().asked == [(3, 8, 9, 3), 1] * 3 + [(3, 8, 9, 3)]
    assert len(others) == 2
    for i, canvas in zip(index.tolist(), batch, strict=True):
        height, width = sizes[i]
        assert (canvas[:height, :width] == i + 1).all()
        assert canvas.sum() == 3 * height * width * (i + 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("room", [0, 10**9])
def test_on_cuda_the_same_images_come(room: int) -> None:
    canvases, device = tiny_canvases(23), torch.device("cuda", 0)
    expected = Feed(canvases, 8, seed=1).stream(0, 6)
    found = Feed(canvases, 8, seed=1, accumulate=2, device=device, room=room).stream(0, 6)
    for whole, parts in zip(expected, found, strict=True):
        assert {images.device for _, images in parts} == {device}
        assert torch.equal(torch.cat([images.cpu() for _, images in parts]), torch.cat([images for _, images in whole]))


@pytest.mark.parametrize("start", [0, 1, 5, 8])
def test_the_stream_from_any_step_is_the_same(start: int) -> None:
    """23 images are steps of 8, 8 and 7; the pixels are those of the images that were asked for."""
    canvases = tiny_canvases(23)
    feed = Feed(canvases, 8, seed=1)
    whole = list(feed.stream(0, 9))
    found = list(feed.stream(start, 9))
    assert [sum(len(index) for index, _ in micro) for micro in found] == [8, 8, 7, 8, 8, 7, 8, 8, 7][start:]
    for one, other in zip(found, whole[start:], strict=True):
        for (index, pixels), (same_index, same_pixels) in zip(one, other, strict=True):
            np.testing.assert_array_equal(index, same_index)
            assert torch.equal(pixels, same_pixels)
            for i, image in zip(index, pixels, strict=True):
                np.testing.assert_array_equal(image, canvases.pixels(int(i)))


def test_a_stream_of_no_steps_is_empty() -> None:
    assert list(Feed(tiny_canvases(23), 8, seed=1).stream(4, 4)) == []


def test_an_unreadable_cache_stops_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error on the reading thread reaches the loop."""
    feed = Feed(tiny_canvases(23), 8, seed=1)

    def fail(self: object, index: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(type(feed.canvases), "batch", fail)
    with pytest.raises(OSError, match="went away"):
        next(feed.stream(0, 3))
