"""Folder shift and corruption curves on real images, and on the sets users really have."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from belvedere.evaluate.corruptions import CORRUPTIONS, corrupted
from belvedere.evaluate.metrics.frechet import frechet_distance, total_variance
from belvedere.evaluate.protocols.corruption import Options
from belvedere.evaluate.suite import Given, evaluate_encoder, prepare
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.report.protocols.corruption import draw

Make = Callable[..., Canvases]
THREE = dict.fromkeys(("astronaut", "coffee", "retina"), 12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10_000), rows=st.integers(2, 30), dims=st.integers(1, 12))
def test_frechet_distance_is_that_of_gaussians(seed: int, rows: int, dims: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.standard_normal((rows, dims)), 2 * rng.standard_normal((rows + 3, dims)) + 1
    distance = frechet_distance(first, second)
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second)]
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    gap = first.mean(0) - second.mean(0)
    assert distance == pytest.approx(gap @ gap + sum(map(np.trace, covariances)) - 2 * root, rel=1e-5, abs=1e-5)
    assert distance == pytest.approx(frechet_distance(second, first))
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6 * max(1.0, total_variance(first)))
    assert frechet_distance(first, first + 3) == pytest.approx(9 * dims, abs=1e-5)
    turn = scipy.linalg.qr(rng.standard_normal((dims, dims)))[0]
    assert frechet_distance(first @ turn, second @ turn) == pytest.approx(distance, abs=1e-6)


def test_shift_is_far_to_other_things_and_near_to_the_same(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(THREE), make_folder(dict.fromkeys(THREE, 20), "test", first=1)
    same, far = make_folder(dict.fromkeys(THREE, 20), "same", first=2), make_folder({"immunohistochemistry": 50}, "far")
    (near,) = evaluate_encoder(encoder, Given(train, test, other=same), ["shift"])
    (away,) = evaluate_encoder(encoder, Given(train, test, other=far), ["shift"])
    for name in ("run", "untrained", "pixels"):
        assert near.metrics[name]["ratio"].value < away.metrics[name]["ratio"].low
        assert near.metrics[name]["ratio"].low < 1.1
        assert away.metrics[name]["frechet"].value > 1.2 * away.metrics[name]["frechet_within"].value
    # The same classes are there, so is the accuracy; the other folder is of one thing, which is no class.
    assert near.settings["shared_classes"] == ["astronaut", "coffee", "retina"]
    assert {"top1_here", "top1_there"} <= set(near.metrics["run"])
    assert near.metrics["run"]["top1_there"].low > 100 / 3
    assert away.settings["shared_classes"] == []
    assert "top1_there" not in away.metrics["run"]
    assert near.settings["images_a_side"] == 30
    assert "unequal" not in near.settings
    assert away.settings["images_a_side"] == 25
    assert away.settings["unequal"].startswith("60 test images and 50 others: 25 of each are compared")
    assert evaluate_encoder(encoder, Given(train, test, other=far), ["shift"])[0].metrics == away.metrics


def test_repeats_raise_a_frechet_distance_so_draws_have_none() -> None:
    rng = np.random.default_rng(0)
    sets = rng.standard_normal((2, 100, 40))
    repeats = [frechet_distance(*(one[rng.integers(100, size=100)] for one in sets)) for _ in range(20)]
    assert min(repeats) > 1.2 * frechet_distance(*sets)


def test_too_few_to_compare_is_said(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder({"coffee": 6}), make_folder({"coffee": 6}, "test", first=1)
    few = make_folder({"retina": 3}, "few")
    (result,) = evaluate_encoder(encoder, Given(train, test, other=few), ["shift"])
    assert result.settings["error"] == "shift: 6 test images and 3 others are too few to compare; give four"
    (result,) = evaluate_encoder(encoder, Given(train, test, other=make_folder({"retina": 4}, "four")), ["shift"])
    assert "error" not in result.settings


@pytest.mark.parametrize("name", list(CORRUPTIONS))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_corruptions_grow_with_their_strength(name: str, channels: int) -> None:
    photo = skimage.data.astronaut()[100:164, 100:180]
    image = np.concatenate([photo, photo[..., :1]], axis=2)[..., :channels]
    before = image.copy()
    shown = [CORRUPTIONS[name](image, strength, 0, 5) for strength in Options().strengths()[name]]
    away = [np.abs(one.astype(float) - image).mean() for one in shown]
    assert away == sorted(away)
    assert away[0] > 0.2  # of 255 levels: even the mildest blur of a small image is one
    assert all(one.shape == image.shape and one.dtype == np.uint8 for one in shown)
    assert (image == before).all()
    assert (CORRUPTIONS[name](image, Options().strengths()[name][2], 0, 5) == shown[2]).all()


def test_noise_is_of_the_strength_asked_and_another_in_every_image() -> None:
    gray = np.full((64, 64, 3), 128, np.uint8)
    noisy = [CORRUPTIONS["noise"](gray, 0.1, 0, i).astype(float) / 255 for i in (0, 1)]
    assert noisy[0].std() == pytest.approx(0.1, rel=0.03)
    assert noisy[0].mean() == pytest.approx(128 / 255, abs=0.003)
    assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.05


def test_corrupted_images_are_canvases_like_any(make_folder: Make, tmp_path: Path) -> None:
    canvases = make_folder({"coffee": 4}).subset([3, 1])
    worse = corrupted(canvases, "contrast", 0.1, 0, tmp_path)
    for i in range(2):
        assert (worse.pixels(i) == CORRUPTIONS["contrast"](canvases.pixels(i), 0.1, 0, i)).all()
    assert worse.fingerprint != canvases.fingerprint != corrupted(canvases, "blur", 0.1, 0, tmp_path).fingerprint
    assert worse.names == canvases.names


def test_corruption_curves_fall_and_are_drawn(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    train, test = make_folder(THREE), make_folder(THREE, "test", first=1)
    options = {"corruption": {"blur": [1, 6], "images": 24}}
    prepared = prepare(encoder, Given(train, test, options=options), ["corruption"], "cpu", None)
    (result,) = prepared.run()
    own = result.metrics["run"]
    assert own["clean"].value > own["mean"].value
    points = [own[f"noise{level}"].value for level in range(1, 6)]
    assert own["noise"].value == pytest.approx(np.mean(points))
    assert {"blur1", "blur2"} <= set(own)
    assert "blur3" not in own
    assert result.settings["images"] == 24
    assert result.settings["blur"] == [1.0, 6.0]
    assert set(result.metrics) == {"run", "untrained", "pixels", "majority"}
    for values in result.items.values():
        assert {len(one) for one in values.values()} == {24}
    (picture,) = draw(tmp_path, result, prepared.data)
    with Image.open(tmp_path / picture.file) as drawn:
        assert drawn.width > 1000
    rows = list(csv.DictReader((tmp_path / picture.table).open()))
    assert len(rows) == 4 * (3 + 6 + 6 + 6)
    told = next(row for row in rows if (row["encoder"], row["corruption"], row["level"]) == ("run", "jpeg", "5"))
    assert float(told["top1"]) == pytest.approx(own["jpeg5"].value, abs=0.01)
    assert told["strength"] == "7"
    assert f"Clean {own['clean'].value:.0f} %" in picture.alt


def test_corruption_of_tiny_sets(make_folder: Make, encoder: Encoder) -> None:
    test = make_folder({"coffee": 2, "chelsea": 1}, "test", first=1)
    train = make_folder({"coffee": 2, "rocket": 1})
    options = {"corruption": {name: [Options().strengths()[name][0]] for name in CORRUPTIONS}}
    (result,) = evaluate_encoder(encoder, Given(train, test, options=options), ["corruption"])
    assert "error" not in result.settings
    (result,) = evaluate_encoder(encoder, Given(train.subset([0, 1]), test), ["corruption"])
    assert result.settings["error"].startswith("corruption: all training images are of one class")


@pytest.mark.slow
def test_photographs_against_objects_on_a_turntable(shared_data: Path, tmp_path: Path, encoder: Encoder) -> None:
    """CIFAR-10 against itself and against COIL-20."""
    with (
        tarfile.open(shared_data / "cifar10_test10k.tar.gz") as cifar,
        tarfile.open(shared_data / "coil20_24views.tar") as coil,
    ):
        kept = [member for i, member in enumerate(cifar.getmembers()) if member.isfile() and i % 20 == 0]
        cifar.extractall(tmp_path / "photos", members=kept, filter="data")
        coil.extractall(tmp_path / "coil", filter="data")
    photos = open_canvases(
        find_images(tmp_path / "photos" / "cifar10" / "test"), 32, cache_dir=tmp_path, progress=False
    )
    objects = open_canvases(find_images(tmp_path / "coil"), 32, channels=3, cache_dir=tmp_path, progress=False)
    rows = np.random.default_rng(0).permutation(len(photos))
    train, test, more = (photos.subset(part) for part in np.split(rows, [240, 360]))
    found = {}
    for name, other in (("more photos", more), ("objects", objects)):
        results = evaluate_encoder(encoder, Given(train, test, other=other), ["ood", "shift"])
        found[name] = {**results[0].metrics["run"], **results[1].metrics["run"]}
    assert found["objects"]["frechet"].low > found["objects"]["frechet_within"].high
    assert found["more photos"]["frechet"].low < found["more photos"]["frechet_within"].high
    # An untrained network sees that they differ, not that they are foreign.
    objects_auroc = found["objects"]["mahalanobis_auroc"]
    assert objects_auroc.high < 50 or objects_auroc.low > 50
    assert found["more photos"]["mahalanobis_auroc"].low < 50 < found["more photos"]["mahalanobis_auroc"].high
    options = {"corruption": {name: [Options().strengths()[name][-1]] for name in CORRUPTIONS}}
    (curve,) = evaluate_encoder(encoder, Given(train, test, options=options), ["corruption"])
    assert curve.metrics["run"]["contrast1"].value < curve.metrics["run"]["clean"].value
