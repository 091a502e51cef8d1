"""Linear probes on random crops: the same probe as on cached features, but for what it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere.backbones.build import build_backbone
from belvedere.evaluate.contract import Result, Subject
from belvedere.evaluate.protocols._crops import CROP, Crops, crops_of
from belvedere.evaluate.protocols._heads import Draw, Heads, Recipe, trained
from belvedere.evaluate.protocols.linear import RECIPES
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.views.sample import sample_views

Make = Callable[..., Canvases]
FOUR = dict.fromkeys(("astronaut", "coffee", "retina", "rocket"), 10)
WHOLE = replace(CROP, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)


@pytest.fixture
def deep() -> Encoder:
    """A tiny vision transformer of four blocks, which has every reading."""
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=16, depth=4, heads=2, seed=3)
    return Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)


def crops(encoder: Encoder | None, images: Canvases, seed: int = 0, **slot: Any) -> Crops:
    """Of random crops, or as the slot is said to be."""
    made = crops_of(Subject("run", encoder), ("last4", "cls+gem"), images, "bicubic", seed, "cpu")
    return replace(made, slot=replace(made.slot, **slot))


def probe(encoder: Encoder, given: Given, **options: Any) -> Result:
    (result,) = evaluate_encoder(encoder, replace(given, options={"linear": options}), ["linear"])
    assert "error" not in result.settings, result.settings["error"]
    return result


def test_uncropped_views_have_the_cached_features(make_folder: Make, deep: Encoder) -> None:
    images = make_folder(FOUR)
    rows = np.array([3, 1, 39])
    whole: dict[str, Any] = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": 0.0}
    subject = Subject("run", deep)
    cached = torch.cat([subject.features(images, "last4"), subject.features(images, "cls+gem")], 1)
    torch.testing.assert_close(crops(deep, images, **whole)(5, rows), cached[rows], atol=1e-5, rtol=0)
    pixels = Subject("pixels", None).features(images)
    torch.testing.assert_close(crops(None, images, **whole)(5, rows), pixels[rows], atol=1e-5, rtol=0)


def test_without_augmentation_both_paths_train_the_same_heads(make_folder: Make, deep: Encoder) -> None:
    images = make_folder(FOUR)
    subject = Subject("run", deep)
    cached, labels = subject.features(images, "last4"), torch.from_numpy(images.labels)
    recipe = Recipe(("cls", "last4"), (0.05, 0.5), batch=16, epochs=4)
    columns = {"cls": slice(48, 64), "last4": slice(0, 64)}
    online = Crops(subject, ("last4",), images, WHOLE, 0, "cpu")

    def heads(draw: Draw | None) -> Heads:
        return list(trained(cached, labels, recipe.settings(), columns, recipe, 4, 1, draw))[-1][1]

    found = {
        name: heads(draw)
        for name, draw in {"cached": None, "online": online, "crops": replace(online, slot=CROP)}.items()
    }
    logits: dict[str, Tensor] = {name: one(cached) for name, one in found.items()}
    torch.testing.assert_close(logits["online"], logits["cached"], atol=1e-4, rtol=0)
    assert not torch.allclose(logits["crops"], logits["cached"], atol=1e-2)


def test_a_crop_is_the_images_own_in_its_epoch(make_folder: Make, deep: Encoder) -> None:
    images = make_folder(FOUR)
    some, all_images = crops(deep, images), np.arange(40)
    every = some(0, all_images)
    torch.testing.assert_close(some(0, np.array([7, 30])), every[[7, 30]], atol=1e-5, rtol=0)
    assert torch.equal(some(0, all_images), every)
    for other in (some(1, all_images), crops(deep, images, seed=1)(0, all_images)):
        # Some cut-outs are all dark, and so are their crops.
        assert torch.isclose(other, every, atol=1e-3).all(1).float().mean() < 0.2


def test_a_probe_on_crops_learns_and_depends_on_the_seed_alone(make_folder: Make, deep: Encoder) -> None:
    given = Given(make_folder(FOUR), make_folder(dict.fromkeys(FOUR, 6), "test", first=1), floors=("pixels",))
    options = {"augment": "crops", "rates": [0.1, 1.0], "readings": ["last4", "cls+gem"], "epochs": 10}
    first, again, other = (probe(deep, replace(given, seed=seed), **options) for seed in (0, 0, 1))
    assert (first.metrics, first.chosen) == (again.metrics, again.chosen)
    assert not np.array_equal(first.draws["run"]["confidence"], other.draws["run"]["confidence"])
    for name in ("run", "pixels"):
        assert first.metrics[name]["top1"].low > 25
    # 10 epochs of the 36 chosen on and of all 40 again.
    assert "760 forward passes of each network, beside the 64 of whole images" in first.settings["augment"]
    assert first.metrics["run"] != probe(deep, given, **{**options, "augment": "none"}).metrics["run"]


def test_papers_recipes_have_their_crops_under_the_papers_protocol(
    make_folder: Make, deep: Encoder, capsys: pytest.CaptureFixture[str]
) -> None:
    test = make_folder(dict.fromkeys(FOUR, 3), "test", first=1)
    given = Given(make_folder(FOUR), test, floors=())
    seen = {}
    for recipe, paper in (("mocov3", True), ("mocov3", False), ("scatsimclr", True), ("grid", True)):
        result = probe(deep, replace(given, paper=paper), recipe=recipe, epochs=3)
        seen[recipe, paper] = result.settings["augment"].split(":")[0]
        told = capsys.readouterr().out
        assert (f"linear: {result.settings['augment']}\n" == told) == (seen[recipe, paper] == "crops")
    assert seen == {
        ("mocov3", True): "crops",
        ("mocov3", False): "none",
        ("scatsimclr", True): "none",
        ("grid", True): "none",
    }
    assert (
        probe(deep, replace(given, paper=True), recipe="mocov3", epochs=3, augment="none")
        .settings["augment"]
        .startswith("none")
    )


def test_crops_are_mirrored_unless_the_run_never_did(make_folder: Make, deep: Encoder) -> None:
    images, rows = make_folder(FOUR), np.arange(40)
    either, never = (
        crops_of(Subject("run", deep), ("cls",), images, "bilinear", 0, "cpu", mirrored=mirrored)
        for mirrored in (True, False)
    )
    assert 10 < sum(sample_views([either.slot], rows, images.sizes, 0, 0).flip[0].tolist()) < 30
    assert not sample_views([never.slot], rows, images.sizes, 0, 0).flip.any()


def test_statistics_of_the_network_do_not_move(make_folder: Make) -> None:
    backbone = build_backbone("resnet18", size=(32, 32), channels=3, seed=0)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    before = encoder.fingerprint()
    given = Given(make_folder({"coffee": 6, "rocket": 6}), floors=())
    probe(encoder, given, augment="crops", rates=[0.1], epochs=1)
    assert encoder.fingerprint() == before


def test_maes_probe_normalises_by_the_batch_and_says_so(make_folder: Make, deep: Encoder) -> None:
    recipe = replace(RECIPES["mae"](deep.backbone), epochs=150)
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(6)[torch.arange(60) % 3]
    y, columns = torch.arange(60) % 3, {"cls": slice(None)}

    def logits(features: Tensor) -> Tensor:
        *_, (_, heads) = trained(features, y, recipe.settings(), columns, recipe, 3, 0)
        found: Tensor = heads(features)
        return found

    # Long enough for the running statistics to have forgotten where they started.
    torch.testing.assert_close(logits(x), logits(7 * x - 100), atol=1e-3, rtol=0)
    given = Given(make_folder({"coffee": 6, "rocket": 6}), floors=())
    assert probe(deep, given, recipe="mae", epochs=2).settings["probe"]["run"] == "bn-linear"
    # One image alone has no deviation; three in batches of two end with one.
    odd = replace(recipe, batch=2, epochs=2)
    assert list(trained(x[:3], y[:3], odd.settings(), columns, odd, 3, 0))[-1][1](x).isfinite().all()


def test_the_rate_warms_up_and_follows_its_cosine() -> None:
    recipe = Recipe(("cls",), (1.0,), batch=1, epochs=9, cosine="step", warmup=1 / 3)
    rates = [recipe.share_of_rate(epoch, 0, 1, 9) for epoch in range(9)]
    assert rates[:4] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert rates[3:] == pytest.approx([(1 + np.cos(np.pi * i / 6)) / 2 for i in range(6)])
