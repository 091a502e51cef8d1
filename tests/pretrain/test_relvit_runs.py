"""RelViT's three ways: pretraining without positions, fine-tuning that adds them, and joint training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import belvedere
from belvedere.backbones.pos_embed import sincos_positions
from belvedere.backbones.weights import read_weights
from belvedere.config import from_yaml, resolve
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.pretrain.compose import facts_of, make_trainer, settle
from belvedere.pretrain.engine import make_fabric
from belvedere.pretrain.initial import start_from
from belvedere.pretrain.trainer import Trainer
from newcomer import belvedere as command
from newcomer import photo_folder
from tiny import read_metrics

SETTINGS: dict[str, Any] = {
    "train.steps": 4,
    "train.batch": 16,
    "train.threads": 1,
    "train.precision": "float32",
    "views.size": 32,
    "monitor.knn": 48,
    "monitor.probe": 16,
    "images.workers": 1,
}
NETWORK = {"backbone.name": "vit_tiny", "backbone.width": 64, "backbone.depth": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("relvit") / "photos")


@pytest.fixture(scope="module")
def canvases(photos: Path) -> Canvases:
    return open_canvases(find_images(photos), 40, progress=False)


@pytest.fixture(scope="module")
def pretrained(photos: Path) -> Path:
    """A finished run without positions."""
    return belvedere.pretrain(photos, "relvit", out=photos.parent / "run", settings=SETTINGS | NETWORK, device="cpu")


def start(recipe: str, run: Path, canvases: Canvases, **more: Any) -> tuple[Trainer, str]:
    """A trainer at step 0 that starts from a run, and where its `backbone.init` came from."""
    given = SETTINGS | {"backbone.weights": str(run)} | {key.replace("__", "."): value for key, value in more.items()}
    resolved, weights = start_from(resolve(recipe, given))
    settled, _ = settle(resolved, facts_of(canvases, "cpu"))
    trainer = make_trainer(settled.config, canvases, make_fabric("cpu", "float32"), weights)
    return trainer, settled.origin["backbone.init"]


def test_a_run_without_positions_is_exported_without(pretrained: Path) -> None:
    state = load_file(pretrained / "model.safetensors")
    assert "pos_embed" not in state
    weights = read_weights(str(pretrained))
    assert not weights.has_positions
    assert weights.state.keys() == state.keys()
    names = [entry for entry in read_metrics(pretrained) if "task/relations.relation" in entry]
    assert names


@pytest.mark.parametrize("recipe", ["supervised", "relvit_joint", "simclr"])
def test_fine_tuning_adds_positions_to_every_tensor_of_the_run(
    recipe: str, pretrained: Path, canvases: Canvases
) -> None:
    trainer, origin = start(recipe, pretrained, canvases)
    backbone = trainer.parts.student.backbone
    found = dict(backbone.model.state_dict())
    positions = found.pop("pos_embed")
    expected = load_file(pretrained / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    # Small and trained, as a transformer's positions begin: what is above them has not seen any yet.
    assert positions.std().item() == pytest.approx(0.02, rel=0.1)
    assert backbone.model.get_parameter("pos_embed").requires_grad
    assert origin.startswith("fresh positions")


def test_a_user_s_own_law_of_positions_is_kept(pretrained: Path, canvases: Canvases) -> None:
    trainer, origin = start("supervised", pretrained, canvases, backbone__init="mocov3")
    backbone = trainer.parts.student.backbone
    positions = backbone.model.get_parameter("pos_embed")
    assert not positions.requires_grad
    assert torch.equal(positions[:, 1:], sincos_positions((4, 4), 64))
    assert origin != "fresh positions"


def test_pretraining_continues_without_positions(pretrained: Path, canvases: Canvases) -> None:
    trainer, _ = start("relvit", pretrained, canvases)
    model = trainer.parts.student.backbone.model
    assert not trainer.parts.student.backbone.has_positions
    expected = load_file(pretrained / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], x) for name, x in expected.items())


def test_positions_are_not_dropped(photos: Path, canvases: Canvases, tmp_path: Path) -> None:
    run = belvedere.pretrain(photos, "supervised", out=tmp_path / "run", settings=SETTINGS | NETWORK, device="cpu")
    with pytest.raises(UserError, match=r"backbone\.pos_embed=False \(recipe relvit\): .* were trained with position"):
        start("relvit", run, canvases)


def test_a_run_without_class_token_can_be_continued(photos: Path, canvases: Canvases, tmp_path: Path) -> None:
    settings = SETTINGS | NETWORK | {"backbone.class_token": False}
    run = belvedere.pretrain(photos, "relvit", out=tmp_path / "run", settings=settings, device="cpu")
    trainer, _ = start("supervised", run, canvases)
    assert not trainer.parts.student.backbone.has_class_token
    with pytest.raises(UserError, match=r"backbone\.class_token=True .* have False"):
        start("supervised", run, canvases, backbone__class_token=True)


@pytest.mark.slow
def test_pretrain_fine_tune_and_joint_through_the_command_line(tmp_path: Path) -> None:
    """On tiles of two classes of photographs; every run ends with a model, a report and an evaluation."""
    photos = photo_folder(tmp_path / "photos", count=96)
    settings = SETTINGS | {"train.steps": 40}
    words = [f"{key}={value}" for key, value in settings.items()]
    network = [f"{key}={value}" for key, value in NETWORK.items()]

    first = command(tmp_path, "pretrain", photos, "--recipe", "relvit", "--out", tmp_path / "one", *words, *network)
    assert first.code == 0, first.text
    tuned = ("pretrain", photos, "--recipe", "supervised", "--out", tmp_path / "two", *words)
    second = command(tmp_path, *tuned, "--init", tmp_path / "one")
    assert second.code == 0, second.text
    told = [line for line in second.text.splitlines() if "position" in line]
    assert len([line for line in told if "fresh position embeddings are added" in line]) == 1
    joint = ("pretrain", photos, "--recipe", "relvit_joint", "--out", tmp_path / "three", *words, *network)
    third = command(tmp_path, *joint)
    assert third.code == 0, third.text

    for run, positions in (("one", False), ("two", True), ("three", True)):
        state = load_file(tmp_path / run / "model.safetensors")
        assert ("pos_embed" in state) is positions
        assert from_yaml(tmp_path / run / "config.yaml").config.backbone.pos_embed is positions
        page = (tmp_path / run / "report.html").read_text()
        assert ("Relations of patches" in page) is (run != "two")
        evaluated = command(tmp_path, "evaluate", tmp_path / run, photos)
        assert evaluated.code == 0, evaluated.text
        assert "knn" in evaluated.text
    for run in ("two", "three"):
        accuracy = [entry["accuracy"] for entry in read_metrics(tmp_path / run) if "accuracy" in entry]
        assert accuracy[-1] > 0.8
    extended = command(tmp_path, "pretrain", photos, "--out", tmp_path / "three", "--resume", "train.steps=44")
    assert extended.code == 0, extended.text
    no_labels = command(
        tmp_path, "pretrain", photos, "--recipe", "supervised", "--out", tmp_path / "four", "images.labels=none", *words
    )
    assert "learns from labels, and the images have no labels" in no_labels.refusal()
