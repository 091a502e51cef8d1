"""Segmentation by nearest patches and by a linear layer, on collages of real photographs and on CamVid."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.compare import compare_runs
from belvedere.evaluate.protocols.seg_linear import covariance, fit_layer
from belvedere.evaluate.records import write_results
from belvedere.evaluate.segmentation import Areas
from belvedere.evaluate.suite import Given, evaluate_encoder, suitable
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.masks import IGNORE, Masks, find_masks
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder

Collage = Callable[..., tuple[Canvases, Masks]]
PROTOCOLS = ("seg_knn", "seg_linear")
NAMES = ("cup", "eye", "cat")


@pytest.fixture
def collage(tmp_path: Path) -> Collage:
    """Images of 48 x 64 px made of strips of three photographs, each a class, with a border that is left out."""

    def make(count: int, name: str = "train", classes: tuple[int, ...] = (0, 1, 2)) -> tuple[Canvases, Masks]:
        photos = [skimage.data.coffee(), skimage.data.retina()[300:900, 300:900], skimage.data.chelsea()]
        root = tmp_path / name
        for folder in ("images", "masks"):
            (root / folder).mkdir(parents=True)
        (root / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
        rng = np.random.default_rng(len(name))
        for i in range(count):
            image, mask = np.zeros((48, 64, 3), np.uint8), np.full((48, 64), IGNORE, np.uint8)
            for strip, label in enumerate(rng.permutation(classes)):
                columns = slice(64 * strip // len(classes), 64 * (strip + 1) // len(classes))
                photo = photos[label]
                y, x = rng.integers(0, photo.shape[0] - 48), rng.integers(0, photo.shape[1] - 64)
                image[:, columns] = photo[y : y + 48, x : x + 64][:, columns]
                mask[2:, columns] = label
            Image.fromarray(image).save(root / "images" / f"{i:03}.png")
            Image.fromarray(mask).save(root / "masks" / f"{i:03}.png")
        canvases = open_canvases(find_images(root / "images"), 64, cache_dir=tmp_path, workers=1, progress=False)
        return canvases, find_masks(root, canvases.names, canvases.original)

    return make


def run(encoder: Encoder, train: tuple[Canvases, Masks], test: tuple[Canvases, Masks], **more: Any) -> list[Any]:
    given_ = Given(train[0], test[0], train_masks=train[1], test_masks=test[1], **more)
    return evaluate_encoder(encoder, given_, PROTOCOLS)


def test_numbers_floors_and_what_was_chosen(collage: Collage, encoder: Encoder) -> None:
    for result, choosing in zip(run(encoder, collage(24), collage(10, "test")), ("k", "decay"), strict=True):
        assert "error" not in result.settings
        assert set(result.metrics) == {"run", "untrained", "pixels", "majority"}
        for subject, metrics in result.metrics.items():
            assert set(metrics) == {"miou", "macc", "aacc", "image_acc"}
            assert all(0 <= n.low <= n.value <= n.high <= 100 for n in metrics.values())
            # No pixel of these images is labelled in one and not in another, so both means agree.
            assert metrics["image_acc"].value == pytest.approx(metrics["aacc"].value)
            assert 100 * result.items[subject]["image_acc"].mean() == pytest.approx(metrics["image_acc"].value)
        assert result.metrics["run"]["miou"].low > result.metrics["majority"]["miou"].high
        assert result.metrics["majority"]["miou"].value < 100 / 3
        assert result.chosen["on"] == "2 of 24 training images"
        scores = result.chosen["miou"]["run"]
        assert scores[f"{result.chosen[choosing]['run']:g}"] == max(scores.values())
        by_class = result.settings["class_iou"]["run"]
        assert list(by_class) == list(NAMES)
        assert np.mean([row[0] for row in by_class.values()]) == pytest.approx(result.metrics["run"]["miou"].value)
        assert result.settings["patches"]["run"]["first_test_image"] == [64, 88]


def test_settings_are_chosen_on_whole_groups(collage: Collage, encoder: Encoder) -> None:
    """A frame of a clip is almost the next one: chosen on single frames, the fewest neighbours win."""
    canvases, masks = collage(24)
    clips = replace(canvases, groups=[f"clip{i // 8}" for i in range(24)])
    for result in run(encoder, (clips, masks), collage(4, "test"), floors=()):
        assert "error" not in result.settings, result.settings
        assert result.chosen["on"] == "8 of 24 training images, whole groups"
    (carved,) = evaluate_encoder(encoder, Given(clips, train_masks=masks, floors=()), ["seg_knn"])
    assert carved.settings["split"].startswith("a tenth of the groups, 8 of 24,")
    assert carved.settings["test"]["masks"] != carved.settings["train"]["masks"]


def test_masks_are_part_of_what_was_measured(collage: Collage, encoder: Encoder, tmp_path: Path) -> None:
    train, (canvases, masks) = collage(8), collage(3, "test")
    before = masks.fingerprint()
    assert replace(masks, classes=["a", *masks.classes[1:]]).fingerprint() != before
    assert masks.subset([0, 1]).fingerprint() != before
    for name in ("one", "same", "other"):
        if name == "other":
            Image.fromarray(np.zeros((48, 64), np.uint8)).save(masks.files[1])
            assert masks.fingerprint() != before
        write_results(run(encoder, train, (canvases, masks), floors=()), tmp_path / name / "evaluation.json")
    assert compare_runs([tmp_path / "one", tmp_path / "same"]).notices == []
    with pytest.raises(UserError, match=r"^other: was evaluated with other masks of the test images than one; "):
        compare_runs([tmp_path / "one", tmp_path / "other"])


def test_scored_on_test_with_what_is_drawn(collage: Collage, encoder: Encoder) -> None:
    test = collage(4, "test")
    for result in run(encoder, collage(12), test, floors=()):
        drawn = result.draws["run"]
        assert drawn["rows"] == [0, 1, 2, 3]
        areas = Areas.stack([Areas.of(p, test[1][i], 3) for i, p in enumerate(drawn["predictions"])])
        assert float(areas.total().scores()["miou"]) == pytest.approx(result.metrics["run"]["miou"].value)
        assert "draws" not in result.to_json()


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("seg_linear", {"decays": [0.0]}, r"seg_linear\.decays: must be a list in which each is greater than 0"),
        ("seg_knn", {"ks": [0]}, r"seg_knn\.ks: must be a list in which each is at least 1"),
        ("seg_knn", {"k": 3}, r"unknown key 'seg_knn\.k': did you mean 'seg_knn\.ks'"),
    ],
)
def test_options_that_make_no_sense(
    collage: Collage, encoder: Encoder, name: str, option: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run(encoder, collage(2), collage(2, "test"), options={name: option})


def test_memory_is_bounded_and_the_seed_decides(collage: Collage, encoder: Encoder) -> None:
    train, test = collage(12), collage(3, "test")
    options = {name: {"patches": 60} for name in PROTOCOLS}
    first, again, other = (run(encoder, train, test, floors=(), options=options, seed=seed) for seed in (0, 0, 1))
    for a, b, c in zip(first, again, other, strict=True):
        assert a.settings["patches"]["run"]["learned_from"] == 60
        assert a.metrics == b.metrics
        assert a.chosen == b.chosen
        assert a.metrics != c.metrics


def test_sets_users_really_have(collage: Collage, encoder: Encoder) -> None:
    two, only = collage(2, "lone"), collage(2, "only", classes=(0, 1))
    for result in run(encoder, (two[0].subset([0]), two[1].subset([0])), only):
        assert "only one labelled image to split" in result.settings["error"]
    # A class that no test image has, then one that no training image has.
    for train, test in ((collage(3, "a"), collage(2, "b", (0, 1))), (collage(3, "c", (0, 1)), collage(2, "d"))):
        for result in run(encoder, train, test):
            assert "error" not in result.settings
            assert 0 <= result.metrics["run"]["miou"].value <= 100
    assert result.settings["class_iou"]["run"]["cat"] == [0, 0, 0]


def test_nothing_labelled_and_other_classes_are_said_in_words(collage: Collage, encoder: Encoder) -> None:
    train, blank = collage(3), collage(2, "test")
    for file in blank[1].files:
        Image.fromarray(np.full((48, 64), IGNORE, np.uint8)).save(file)
    for result in run(encoder, train, blank):
        assert "not a single pixel of the test masks is labelled" in result.settings["error"]
    for result in run(encoder, blank, train):
        assert "not a single pixel of the training masks is labelled" in result.settings["error"]
    for result in evaluate_encoder(encoder, Given(train[0], blank[0], train_masks=train[1]), [*PROTOCOLS, "attention"]):
        assert result.settings["error"].startswith("the test images have no masks: put them into images/")
    other = Masks(train[1].files, ["a", "b", "c"])
    for result in run(encoder, train, (train[0], other)):
        assert "other classes: 'cup' and 'a'" in result.settings["error"]


def test_a_test_set_is_held_out_and_chosen_without_being_asked(collage: Collage, encoder: Encoder) -> None:
    canvases, masks = collage(20)
    given_ = Given(canvases, train_masks=masks, floors=())
    assert suitable(given_) == ["seg_knn"]
    (result,) = evaluate_encoder(encoder, given_, ["seg_knn"])
    assert "2 of 20, was held out" in result.settings["split"]
    paper = Given(canvases, canvases, train_masks=masks, test_masks=masks, floors=(), paper=True)
    (result,) = evaluate_encoder(encoder, paper, ["seg_knn"])
    assert result.chosen["on"] == "the 20 test images (selected on test)"
    assert result.metrics["run"]["miou"].value == pytest.approx(max(result.chosen["miou"]["run"].values()))


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet18", {}), ("swin_tiny", {"patch": 2, "width": 16, "depth": 7, "size": (24, 24)})]
)
def test_networks_without_tokens_of_one_size(collage: Collage, name: str, shape: dict[str, Any]) -> None:
    """Maps of a stride that does not divide the image: frames are whole cells of the last map."""
    backbone = build_backbone(name, **{"size": (32, 32), "channels": 3, "seed": 0, **shape})
    network = Encoder(backbone, backbone.size, [0.5] * 3, [0.25] * 3)
    for result in run(network, collage(6), collage(2, "test"), floors=()):
        assert "error" not in result.settings
        assert set(result.metrics) == {"run", "majority"}
        assert result.draws["run"]["predictions"][0].shape == (48, 64)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), decay=st.sampled_from([1e-3, 1e-1]))
def test_the_layer_is_at_the_minimum(seed: int, decay: float) -> None:
    """The gradient of torch vanishes there, and a soft target counts as much as it sums to."""
    generator = torch.Generator().manual_seed(seed)
    x, shares = torch.randn(60, 4, generator=generator), torch.rand(60, 3, generator=generator)
    layer = fit_layer(x, shares, covariance(x), decay, torch.zeros(5, 3), 200).requires_grad_()
    log_p = (x @ layer[:-1] + layer[-1]).log_softmax(1)
    loss = -(shares * log_p).sum() / shares.sum() + decay / 2 * layer[:-1].square().sum()
    (gradient,) = torch.autograd.grad(loss, layer)
    assert gradient.abs().max() < 1e-3


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), images=st.integers(1, 5))
def test_areas_of_draws_are_those_of_the_images_drawn(seed: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (images, 6, 5))
    guesses = rng.integers(0, 3, masks.shape).astype(np.uint8)
    areas = Areas.stack([Areas.of(guess, mask, 3) for guess, mask in zip(guesses, masks, strict=True)])
    counts = rng.integers(0, 3, (4, images)).astype(np.uint8)
    drawn = areas.drawn(counts)
    for row, count in enumerate(counts):
        chosen = np.repeat(np.arange(images), count)
        joined = Areas.of(guesses[chosen].reshape(-1, 5), masks[chosen].reshape(-1, 5), 3)
        np.testing.assert_array_equal(drawn.right[row], joined.right)
        np.testing.assert_allclose(drawn.iou()[row], joined.iou())
        np.testing.assert_allclose(drawn.scores()["aacc"][row], joined.scores()["aacc"])


@pytest.mark.slow
def test_camvid(shared_data: Path, encoder: Encoder, tmp_path: Path) -> None:
    """Street scenes as they come out of their archive: 11 classes, void left out, the class list above the splits.

    An untrained network tells sky from road by colour: both protocols must beat the commonest class clearly.
    """
    with tarfile.open(shared_data / "camvid_trainval.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    parts = []
    for split, count in (("train", 60), ("val", 20)):
        root = tmp_path / "camvid" / split
        canvases = open_canvases(find_images(root / "images"), 64, cache_dir=tmp_path, workers=1, progress=False)
        masks = find_masks(root, canvases.names, canvases.original)
        assert len(masks.classes) == 11
        parts.append((canvases.subset(np.arange(count)), masks.subset(np.arange(count))))
    for result in run(encoder, *parts, floors=("pixels",), options={"seg_knn": {"patches": 4000}}):
        assert "error" not in result.settings
        assert result.metrics["run"]["miou"].low > result.metrics["majority"]["miou"].high
        assert result.metrics["run"]["aacc"].value > 50
        assert result.settings["class_iou"]["run"]["road"][0] > 50
