"""The linear probe: heads that learn as if alone, choices kept off the test images, papers' recipes, bad input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.protocols._heads import Recipe, Setting, trained
from belvedere.evaluate.protocols.linear import RECIPES
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder

Make = Callable[..., Canvases]
SIX = dict.fromkeys(("astronaut", "coffee", "rocket", "chelsea", "retina", "immunohistochemistry"), 10)
SHORT = {"linear": {"epochs": 8, "rates": [0.01, 0.1]}}
CLUSTERS = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + torch.eye(6)[torch.arange(60) % 3] * 3
LABELS = torch.arange(60) % 3
COLUMNS = {"a": slice(0, 4), "b": slice(2, 6)}


@pytest.fixture
def deep() -> Encoder:
    """A tiny vision transformer of four blocks, which has every reading."""
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=16, depth=4, heads=2, seed=3)
    return Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)


def weights(settings: list[Setting], recipe: Recipe, epochs: int) -> list[torch.Tensor]:
    """Of every head, after so many epochs."""
    steps = trained(CLUSTERS, LABELS, settings, COLUMNS, recipe, 3, seed=1)
    heads = next(heads for epoch, heads in steps if epoch == epochs)
    return [head.weight.detach().clone() for head in heads.heads]


@pytest.mark.parametrize("optimiser", ["sgd", "lars", "adam"])
def test_heads_side_by_side_learn_as_if_alone(optimiser: str) -> None:
    recipe = Recipe(("a", "b"), (0.05, 0.5), batch=16, epochs=3, optimiser=optimiser, normal=False)
    settings = recipe.settings()
    assert settings == [Setting("a", 0.05), Setting("a", 0.5), Setting("b", 0.05), Setting("b", 0.5)]
    together = weights(settings, recipe, 3)
    alone = weights(settings[:1], recipe, 3)
    # Draws of weights and order go to heads in turn, so only the first head has the same alone.
    assert not torch.equal(together[0], together[1])
    zero = replace(recipe, shuffled=False, batch=60)
    many, first = weights(settings, zero, 1), weights(settings[:1], zero, 1)
    torch.testing.assert_close(many[0], first[0], atol=1e-5, rtol=0)
    assert together[0].shape == alone[0].shape == (3, 4)


def test_a_head_is_torchs_linear_layer_under_torchs_sgd_and_cosine() -> None:
    recipe = Recipe(("a",), (2.0,), batch=32, epochs=4, shuffled=False)
    (found,) = weights(recipe.settings(), recipe, 4)
    layer = torch.nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.normal_(0, 0.01, generator=torch.Generator().manual_seed(1))
        layer.bias.zero_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=2.0 * 32 / 256, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 4)
    for _ in range(4):
        for rows in torch.arange(60).split(32):
            optimiser.zero_grad()
            F.cross_entropy(layer(CLUSTERS[rows, :4]), LABELS[rows]).backward()
            optimiser.step()
        schedule.step()
    torch.testing.assert_close(found, layer.weight.detach(), atol=1e-5, rtol=0)


def test_standardised_heads_do_not_care_for_scale_and_offset() -> None:
    recipe = Recipe(("a",), (0.1,), batch=60, epochs=20, standardised=True, shuffled=False)

    def logits(x: torch.Tensor) -> torch.Tensor:
        return list(trained(x, LABELS, recipe.settings(), COLUMNS, recipe, 3, 0))[-1][1](x)

    torch.testing.assert_close(logits(CLUSTERS), logits(7 * CLUSTERS - 100), atol=1e-3, rtol=0)


def test_every_subject_is_read_with_its_best_head(make_folder: Make, deep: Encoder) -> None:
    train, test = make_folder(SIX), make_folder(dict.fromkeys(SIX, 5), "test", first=1)
    (result,) = evaluate_encoder(deep, Given(train, test, options=SHORT), ["linear"])
    assert set(result.metrics) == {"run", "untrained", "pixels", "majority"}
    grid = result.chosen["accuracy"]["run"]
    assert len(grid) == 4 * 2
    assert result.chosen["on"] == "6 of 60 training images"
    best = result.chosen["setting"]["run"]
    assert grid[f"{best['reading']}, lr {best['rate']:.3g}"] == max(grid.values())
    assert result.settings["heads"]["run"]["readings"] == ["cls", "avg", "cls+avg", "last4"]
    assert result.settings["heads"]["pixels"]["readings"] == ["pixels"]
    for name in ("run", "pixels"):
        number, right = result.metrics[name]["top1"], result.items[name]["top1"]
        assert number.low <= number.value <= number.high
        assert number.value == pytest.approx(100 * right.mean())
    assert result.metrics["run"]["top1"].value > 100 / 6
    assert result.draws["run"]["confusion"].sum() == 30
    (again,) = evaluate_encoder(deep, Given(train, test, options=SHORT), ["linear"])
    assert (again.metrics, again.chosen) == (result.metrics, result.chosen)


def test_papers_choose_the_best_epoch_on_the_test_images(make_folder: Make, deep: Encoder) -> None:
    train, test = make_folder(SIX), make_folder(dict.fromkeys(SIX, 5), "test", first=1)
    given = Given(train, test, options={"linear": {"recipe": "mocov3", "epochs": 12}}, paper=True, floors=())
    (result,) = evaluate_encoder(deep, given, ["linear"])
    chosen = result.chosen["setting"]["run"]
    assert (chosen["reading"], chosen["rate"]) == ("cls", 3.0)
    assert 1 <= chosen["epochs"] <= 12
    assert "selected on test" in result.chosen["on"]
    (best,) = result.chosen["accuracy"]["run"].values()
    # The number read is the very one that the epoch was chosen by.
    assert result.metrics["run"]["top1"].value == pytest.approx(best, abs=1e-3)


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_every_recipe_runs_on_every_kind_of_backbone(make_folder: Make, deep: Encoder, recipe: str) -> None:
    train = make_folder({"coffee": 12, "rocket": 12})
    given = Given(train, options={"linear": {"recipe": recipe, "epochs": 2}})
    resnet = build_backbone("resnet18", size=(32, 32), channels=3, seed=0)
    for encoder in (deep, Encoder(resnet, (32, 32), [0.5] * 3, [0.25] * 3)):
        (result,) = evaluate_encoder(encoder, replace(given, floors=()), ["linear"])
        assert "error" not in result.settings
        assert 0 <= result.metrics["run"]["top1"].value <= 100


def test_recipes_are_the_papers() -> None:
    small = build_backbone("vit_small", size=(32, 32), channels=3, seed=0, patch=8)
    base = build_backbone("vit_base", size=(32, 32), channels=3, seed=0, patch=16, depth=4)
    resnet = build_backbone("resnet18", size=(32, 32), channels=3, seed=0)
    assert RECIPES["dino"](small).readings == ("last4",)
    assert RECIPES["dino"](base).readings == ("cls+avg",)
    assert RECIPES["dino"](resnet).readings == ("avg",)
    assert RECIPES["mocov3"](small).rates == (3.0,)
    assert RECIPES["mocov3"](resnet).rates == (0.1,)
    assert len(RECIPES["dinov2"](small).settings()) == 13 * 4
    assert RECIPES["dinov2"](small).length(1_281_167) == 10  # 12,500 steps of 1024 on ImageNet
    assert RECIPES["grid"](small).readings == ("cls", "avg", "cls+avg", "last4")


@pytest.mark.parametrize(
    "counts", [{"coffee": 2, "rocket": 1}, {"coffee": 1, "rocket": 1}, {"coffee": 3, "rocket": 1, "retina": 1}]
)
def test_tiny_sets_give_a_result(make_folder: Make, encoder: Encoder, counts: dict[str, int]) -> None:
    test = make_folder({"coffee": 2, "chelsea": 1}, "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(make_folder(counts), test, options=SHORT), ["linear"])
    assert "error" not in result.settings
    # An unknown class is never answered, so at most the two coffees can be right.
    assert 0 <= result.metrics["run"]["top1"].value <= 200 / 3 + 1e-6


def test_what_cannot_be_is_said_in_words(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 8, "rocket": 8})
    (result,) = evaluate_encoder(encoder, Given(train.subset(np.arange(8))), ["linear"])
    assert "all training images are of one class" in result.settings["error"]
    (result,) = evaluate_encoder(encoder, Given(train, options={"linear": {"readings": ["last4"]}}), ["linear"])
    assert "reading=last4" in result.settings["error"]
    with pytest.raises(UserError, match=r"linear\.recipe"):
        evaluate_encoder(encoder, Given(train, options={"linear": {"recipe": "moco"}}), ["linear"])


def test_a_head_that_diverges_is_never_chosen(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 20, "rocket": 20})
    given = Given(train, options={"linear": {"rates": [0.01, 1e38], "epochs": 20}}, floors=())
    (result,) = evaluate_encoder(encoder, given, ["linear"])
    assert result.chosen["setting"]["run"]["rate"] == 0.01
