"""What the papers' metrics owe beside their goldens: limits, void and junk, empty objects, real photographs."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.metrics import label_propagation as video
from belvedere.evaluate.metrics.coco import NAMES, Objects, detection_precision
from belvedere.evaluate.metrics.copy_detection import Whitening, copy_average_precision, descriptors, similarities
from belvedere.evaluate.metrics.revisited import average_precision, precision_at, revisited
from belvedere.measure.encoder import Encoder

# --- revisited retrieval ----------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), images=st.integers(2, 30), junk=st.integers(1, 8))
def test_junk_may_stand_anywhere(seed: int, images: int, junk: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = rng.integers(3, size=images + junk)
    kinds[images:] = 3
    easy, hard, is_junk = ((kinds == kind)[None] for kind in (1, 2, 3))
    order = rng.permutation(images + junk)
    last = np.concatenate([order[order < images], order[order >= images]])
    for difficulty in ("easy", "medium", "hard"):
        found, moved = (revisited(x[None], easy, hard, is_junk, difficulty, [1, 5]) for x in (order, last))
        np.testing.assert_array_equal(found.average_precision, moved.average_precision)
        np.testing.assert_array_equal(found.precision, moved.precision)
        ap = found.average_precision[0]
        assert np.isnan(ap) or 0 < ap <= 1


def test_limits_of_a_ranking() -> None:
    assert average_precision(np.arange(4), 4) == 1
    assert average_precision(np.arange(2), 4) == 0.5  # two of the four were not found at all
    assert average_precision(np.array([1]), 1) == 0.25  # (0 / 1 + 1 / 2) / 2
    assert precision_at(np.array([0, 1]), 10) == 1  # asks no further than the last one
    assert precision_at(np.array([0, 3]), 2) == 0.5


def test_no_query_has_anything_to_find() -> None:
    none = np.zeros((2, 3), bool)
    found = revisited(np.array([[0, 1, 2], [2, 1, 0]]), none, none, none, "medium", [1, 5])
    assert np.isnan(found.mean_average_precision)
    assert np.isnan(found.mean_precision).tolist() == [True, True]


# --- video ------------------------------------------------------------------------------------------------------------

PATCH = 8


def pixel_patches(frame: np.ndarray) -> Tensor:
    """(3 * 64, h, w): the pixels of every patch, about their mean."""
    cells = F.unfold(torch.from_numpy(frame).permute(2, 0, 1)[None].float(), PATCH, stride=PATCH)[0]
    return (cells - cells.mean(0)).view(-1, frame.shape[0] // PATCH, frame.shape[1] // PATCH)


def test_an_object_is_followed_through_a_moving_photograph() -> None:
    """The camera moves by one patch a frame over the astronaut; the mask of the first frame moves with it."""
    photo = skimage.data.astronaut()
    y, x = np.mgrid[:512, :512]
    whole = (((y - 120) ** 2 + (x - 230) ** 2) < 60**2).astype(np.uint8)
    views = [np.s_[40:200, 140 + PATCH * t : 300 + PATCH * t] for t in range(6)]
    truth = np.stack([whole[view] for view in views])
    features = [pixel_patches(photo[view]) for view in views]
    labels = [video.patch_labels(mask, (20, 20), objects=1) for mask in truth]
    soft = list(video.propagate(iter(features), labels[0], context=3, kept=1))
    assert len(soft) == 5
    for t, (found, expected) in enumerate(zip(soft, labels[1:], strict=True), 1):
        assert torch.allclose(found.sum(0), torch.ones(20, 20), atol=1e-5)
        # All that the first frame showed; the camera moves on to t columns that it did not show.
        assert torch.equal(found.argmax(0)[:, : 20 - t], expected.argmax(0)[:, : 20 - t])
        in_first = video.to_mask(found, PATCH, (160, 160))[:, : 160 - PATCH * t] == 1
        assert video.region(in_first, truth[t, :, : 160 - PATCH * t] == 1) > 0.85
    # Who looks at one and the same place only, does not see anything move.
    stuck = list(video.propagate(features, labels[0], context=1, radius=0))
    assert torch.equal(stuck[-1].argmax(0), labels[0].argmax(0))


@pytest.mark.parametrize("class_token", [True, False])
def test_no_patch_is_lost_where_there_is_no_class_token(class_token: bool) -> None:
    shape = {"patch": 8, "width": 32, "depth": 1, "heads": 2, "class_token": class_token}
    backbone = build_backbone("vit_tiny", size=(32, 48), channels=3, seed=0, **shape)
    encoder = Encoder(backbone, (32, 48), [0.5] * 3, [0.25] * 3)
    images = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    changed = images.clone()
    changed[..., :8, :8] += 5  # the first patch, which the reference's code takes for a class token
    moved = (encoder.patches(changed) - encoder.patches(images)).norm(dim=1)[0]
    assert moved.shape == (4, 6)
    assert moved.argmax() == 0


def test_scores_at_their_limits() -> None:
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:30] = True
    nothing = np.zeros_like(mask)
    assert video.region(mask, mask) == video.boundary(mask, mask) == 1
    assert video.region(nothing, nothing) == video.boundary(nothing, nothing) == 1
    assert video.region(nothing, mask) == video.boundary(nothing, mask) == video.boundary(mask, nothing) == 0
    near, far = np.roll(mask, 1, 1), np.roll(mask, 5, 1)
    assert video.boundary(near, mask) == 1  # ceil(0.008 * 72.1) is one pixel
    assert 0 < video.boundary(far, mask) < 0.7


def test_void_pixels_are_not_scored() -> None:
    truth = np.zeros((3, 20, 20), np.uint8)
    truth[:, 5:15, 5:15] = 1
    found = truth.copy()
    found[:, :, 15:] = 1
    assert video.score(found, truth).mean < 1
    truth[:, :, 15:] = video.VOID
    assert video.score(found, truth).mean == 1
    with pytest.raises(ValueError, match="three frames"):
        video.score(found[:2], truth[:2])


def test_statistics_of_a_long_video() -> None:
    """The benchmark's own code counts frames in 8 bits and goes wrong from frame 256 on."""
    told = video.statistics(np.linspace(1, 0, 401))
    assert told.mean == pytest.approx(0.5)
    assert told.recall == pytest.approx(200 / 401)
    assert told.decay == pytest.approx(0.75)


def test_a_label_that_is_everywhere_wins_where_there_is_no_other() -> None:
    assert (video.to_mask(torch.stack([torch.ones(4, 4), torch.zeros(4, 4)]), 8, (30, 30)) == 0).all()


# --- copies -----------------------------------------------------------------------------------------------------------


def test_edited_photographs_find_their_originals() -> None:
    photos = [skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea(), skimage.data.rocket()]
    images = torch.stack([torch.from_numpy(photo[:256, :256].copy()) for photo in photos])
    edited = (images.float() * 0.8 + 20).byte()
    backbone = build_backbone("vit_tiny", size=(64, 64), channels=3, patch=8, width=32, depth=2, heads=2, seed=3)
    encoder = Encoder(backbone, (64, 64), [0.5] * 3, [0.25] * 3)
    database, queries = (
        descriptors(encoder(x), encoder.patches(x).flatten(2).transpose(1, 2))
        for x in (encoder.preprocess(images), encoder.preprocess(edited))
    )
    assert database.shape == (4, 64)
    assert copy_average_precision(queries, database, np.arange(4)).tolist() == [1, 1, 1, 1]
    assert copy_average_precision(queries, database, np.array([1, 0, 3, 2]), top=1).tolist() == [0, 0, 0, 0]


def test_whitening_makes_what_it_learned_on_uncorrelated() -> None:
    drawn = torch.randn(206, 6, generator=torch.Generator().manual_seed(0))
    x = drawn[:200] @ drawn[200:] + 3
    whiten = Whitening.learn(x)
    white = whiten(x + whiten.mean)
    torch.testing.assert_close(white.T @ white / len(x), torch.eye(6), atol=1e-3, rtol=0)
    flat = Whitening.learn(torch.cat([x, x[:, :1]], 1))
    assert similarities(*([flat(torch.cat([x, x[:, :1]], 1))] * 2)).isfinite().all()


# --- boxes and masks --------------------------------------------------------------------------------------------------


@pytest.fixture
def scene() -> Callable[..., Objects]:
    """Two objects in an image of 100 x 120, with masks; `score` makes them detections."""

    def make(score: float | None = None, shift: int = 0) -> Objects:
        boxes = torch.tensor([[10.0 + shift, 10, 20, 20], [60 + shift, 20, 40, 50]])
        masks = torch.zeros(2, 100, 120, dtype=torch.bool)
        for mask, (x, y, w, h) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y : y + h, x : x + w] = True
        return Objects(boxes, torch.tensor([1, 2]), None if score is None else torch.full((2,), score), masks)

    return make


@pytest.mark.parametrize("masks", [False, True])
def test_what_is_found_exactly_scores_one(scene: Callable[..., Objects], masks: bool) -> None:
    exact = detection_precision([scene(0.9)], [scene()], masks=masks)
    assert list(exact) == list(NAMES)
    assert exact["ap"] == exact["ap_small"] == exact["ap_medium"] == pytest.approx(1)
    assert np.isnan(exact["ap_large"])  # there is none
    off = detection_precision([scene(0.9, shift=4)], [scene()], masks=masks)
    assert off["ap50"] == pytest.approx(1)
    assert 0 < off["ap"] < 1


@pytest.mark.parametrize("masks", [False, True])
def test_an_image_without_objects_counts(scene: Callable[..., Objects], masks: bool) -> None:
    """Surer finds in an empty image halve the precision; finding nothing at all is worth nothing."""
    boxes, classes, none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 100, 120) > 0
    empty, nothing = Objects(boxes, classes, masks=none), Objects(boxes, classes, torch.zeros(0), none)
    found = detection_precision([scene(0.5), scene(0.9)], [scene(), empty], masks=masks)
    assert found["ap"] == pytest.approx(0.5)
    assert detection_precision([nothing], [scene()], masks=masks)["ap"] == 0


def test_a_crowd_is_neither_found_nor_missed(scene: Callable[..., Objects]) -> None:
    truth = scene()
    crowd = Objects(truth.boxes, truth.classes, crowd=torch.tensor([False, True]))
    found = scene(0.9)
    one = Objects(found.boxes[:1], found.classes[:1], found.scores[:1] if found.scores is not None else None)
    assert detection_precision([one], [crowd])["ap"] == pytest.approx(1)
    assert detection_precision([one], [truth])["ap"] == pytest.approx(0.5)


def test_a_missing_extra_says_which(scene: Callable[..., Objects], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.detection", None)
    with pytest.raises(UserError, match=r'needs an extra: pip install "belvedere\[detection\]"'):
        detection_precision([scene(0.9)], [scene()])
