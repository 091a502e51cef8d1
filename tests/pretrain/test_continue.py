"""Continuing from weights: a frozen trunk, slower lower layers, a guard, and the best weights as the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import belvedere
from belvedere.backbones.build import build_backbone
from belvedere.backbones.weights import read_weights
from belvedere.config import resolve
from belvedere.errors import UserError
from belvedere.images.canvases import open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.measure.floors import untrained
from belvedere.pretrain.checkpoint import load
from belvedere.pretrain.compose import slots_of
from belvedere.pretrain.guard import Guard
from belvedere.pretrain.loop import Loop
from belvedere.pretrain.optim import layer_scales
from belvedere.pretrain.trainer import TRUNK, Trainer
from belvedere.pretrain.watch import Watch
from newcomer import belvedere as command
from newcomer import photo_folder
from tiny import read_metrics, tiles, tiny_trainer, train

SETTINGS: dict[str, Any] = {
    "train.steps": 6,
    "train.batch": 16,
    "train.threads": 1,
    "train.precision": "float32",
    "views.size": 32,
    "views.locals": 2,
    "monitor.knn": 48,
    "monitor.probe": 16,
    "monitor.every": 1.0,
    "images.workers": 1,
}
NETWORK = {"backbone.name": "vit_tiny", "backbone.width": 64, "backbone.depth": 2}
WORDS = [f"{key}={value}" for key, value in SETTINGS.items()]


def shifted(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same places in other colours: channels turned round, brighter shadows."""
    return (255 * (images[..., ::-1] / 255) ** 0.6).astype(np.uint8)


def shifted_folder(folder: Path) -> Path:
    for number, tile in enumerate(shifted(tiles(48))):
        place = folder / ("cats" if number % 2 else "dogs")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on photographs."""
    place = tmp_path_factory.mktemp("first")
    return belvedere.pretrain(
        photo_folder(place / "photos"), "dino", out=place / "run", settings=SETTINGS | NETWORK, device="cpu"
    )


@pytest.fixture(scope="module")
def other_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shifted_folder(tmp_path_factory.mktemp("other") / "photos")


def continued(photos: Path, run: Path, out: Path, **more: Any) -> Path:
    settings = SETTINGS | {key.replace("__", "."): value for key, value in more.items()}
    return belvedere.pretrain(photos, "continue", init=run, out=out, settings=settings, device="cpu")


def looks(run: Path) -> list[dict[str, float]]:
    return [entry["look"] for entry in read_metrics(run) if "look" in entry]


def gallery_knn(encoder: Encoder, run: Path, photos: Path) -> float:
    """An encoder's k-NN on the images that the looks of a run read."""
    config = belvedere.config.from_yaml(run / "config.yaml").config
    canvases = open_canvases(find_images(photos), int(config.images.canvas), channels=3)
    return Watch.of(config, slots_of(config), canvases).knn(encoder, torch.device("cpu"))["knn"]


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in state.items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(x, two[name]) for name, x in one.items())


# --- the trunk and its layers -----------------------------------------------------------------------------------------


def trunk(trainer: Trainer, side: str = "student") -> dict[str, Tensor]:
    branch = trainer.parts.student if side == "student" else trainer.parts.teacher
    assert branch is not None
    return copied(branch.backbone.model.state_dict())


@pytest.mark.parametrize("name", ["vit_tiny", "resnet18"])
def test_only_heads_learn_at_first_and_then_all(name: str) -> None:
    """Neither gradient, decay, momentum nor batch statistics move a held trunk, the teacher's included."""
    shape = {"backbone__width": None, "backbone__depth": None, "backbone__heads": None} if name == "resnet18" else {}
    trainer, feed = tiny_trainer(
        "dino", backbone__name=name, train__freeze_trunk=0.5, train__steps=6, train__warmup=1, **shape
    )
    before, teacher = trunk(trainer), trunk(trainer, "teacher")
    heads = copied(trainer.parts.student.head.state_dict())
    train(trainer, feed, 0, 3)
    assert same(trunk(trainer), before)
    assert same(trunk(trainer, "teacher"), teacher)
    assert not same(trainer.parts.student.head.state_dict(), heads)
    train(trainer, feed, 3, 6)  # a ResNet's last norms start at 0 and hide what is below them from the first step
    moved = trunk(trainer)
    parameters = [n for n, p in trainer.parts.student.backbone.model.named_parameters() if p.requires_grad]
    assert [n for n in parameters if torch.equal(moved[n], before[n])] == []
    assert not same(trunk(trainer, "teacher"), teacher)


def test_resuming_across_the_end_of_the_freeze_changes_nothing() -> None:
    def fresh() -> Any:
        return tiny_trainer("dino", train__freeze_trunk=0.5, train__layer_decay=0.5, train__steps=6, train__warmup=1)

    whole, feed = fresh()
    losses = [report.loss for report in train(whole, feed, 0, 6)]
    for stop in (2, 3):
        first, _ = fresh()
        found = [report.loss for report in train(first, feed, 0, stop)]
        second, _ = fresh()
        second.load_state_dict(first.state_dict())
        assert found + [report.loss for report in train(second, feed, stop, 6)] == losses
        assert same(trunk(second), trunk(whole))


def test_lower_layers_have_smaller_learning_rates() -> None:
    """As BEiT: a factor for every layer between a parameter and the heads; the final norm is of the last block."""
    trainer, feed = tiny_trainer("dino", train__layer_decay=0.5, train__steps=6, train__warmup=1, backbone__init="dino")
    train(trainer, feed, 0, 2)
    rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[id(p)] for name, p in trainer.parts.student.named_parameters() if id(p) in rates}
    rate = by_name["head.mlp.0.weight"]
    for name, factor in (
        ("norm.weight", 0.5),
        ("blocks.1.mlp.fc1.weight", 0.5),
        ("blocks.0.mlp.fc1.weight", 0.25),
        ("patch_embed.proj.weight", 0.125),
        ("cls_token", 0.125),
        ("pos_embed", 0.125),
    ):
        assert by_name[f"{TRUNK}{name}"] == pytest.approx(factor * rate)
    assert layer_scales(trainer.parts.student.backbone.model, 1.0) == {}
    resnet = layer_scales(build_backbone("resnet18", size=(32, 32), channels=3).model, 0.5)
    assert resnet["layer4.1.conv1.weight"] == 0.5
    assert resnet["conv1.weight"] == min(resnet.values()) == 0.5**9


# --- what weights decide ----------------------------------------------------------------------------------------------


def test_weights_bring_their_shape_and_their_pixels_along(first_run: Path, other_photos: Path) -> None:
    given = {"backbone.weights": str(first_run), "views.size": 48}
    shown = belvedere.api.show_recipe(resolve("continue", given), other_photos, device="cpu")
    origins = {line.partition(":")[0]: line for line in shown.splitlines()}
    for key in ("name", "patch", "width", "depth", "heads"):
        assert origins[f"backbone.{key}"].endswith(f"# from --init {first_run}")
    assert origins["backbone.width"].startswith("backbone.width: 64 ")
    assert origins["images.mean"].endswith(f"# from --init {first_run}")
    assert origins["backbone.weights"].endswith("weights; positions of 4 x 4 resampled to 6 x 6")


@pytest.mark.parametrize(
    ("recipe", "settings", "message"),
    [
        ("dino", {"backbone.width": 32}, r"backbone\.width=32 \(command line\): the weights of --init .* have 64"),
        ("dino", {"backbone.name": "vit_small"}, r"backbone\.name=vit_small .* have vit_tiny_patch16_224"),
        ("dino", {"backbone.patch": 4}, r"backbone\.patch=4 .* have 8"),
        ("dino", {"backbone.depth": 3}, r"backbone\.depth=3 .* have 2"),
        ("dino", {"backbone.heads": 2}, r"backbone\.heads=2 .* have 1"),
        ("dino", {"backbone.init": "dino"}, r"backbone\.init=dino .* have mocov3"),
        ("simclr_resnet", {}, r"backbone\.name=resnet50 \(recipe simclr_resnet\): .* have vit_tiny_patch16_224"),
    ],
)
def test_settings_that_contradict_the_weights_are_refused(
    recipe: str, settings: dict[str, Any], message: str, first_run: Path, other_photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        belvedere.pretrain(other_photos, recipe, init=str(first_run), out=tmp_path / "run", settings=settings)
    assert not (tmp_path / "run").exists()


def test_protection_without_weights_is_refused(other_photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.freeze_trunk \(recipe continue\): .* give them with --init"):
        belvedere.pretrain(other_photos, "continue", out=tmp_path / "run")
    with pytest.raises(UserError, match=r"health\.stop_below_start \(command line\)"):
        belvedere.pretrain(other_photos, "dino", out=tmp_path / "run", settings={"health.stop_below_start": True})


# --- the guard --------------------------------------------------------------------------------------------------------


def test_the_guard_keeps_the_best_and_ends_below_the_start() -> None:
    """A fall within the interval of 100 images (9.8 points at 50 %) is chance; a tie keeps the older weights."""
    guard, seeds = Guard(100), (1, 2, 3, 4, 5)
    networks = [
        build_backbone("vit_tiny", size=(16, 16), channels=3, patch=8, width=32, depth=1, seed=n) for n in seeds
    ]
    told = [
        guard.look(n, knn, 50.0, networks[n].model.state_dict()) for n, knn in enumerate((50.0, 60.0, 60.0, 40.5, 39.9))
    ]
    assert told[:4] == ["", "", "", ""]
    assert told[4].startswith("k-NN fell to 39.9 %, below the 50.0 % of the starting weights")
    assert guard.best is not None
    assert (guard.best["step"], guard.best["knn"]) == (1, 60.0)
    assert same(guard.best["weights"], networks[1].model.state_dict())


def test_continuing_starts_at_the_weights_and_keeps_the_best(
    first_run: Path, other_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The floors say what they say: the start is the given weights, untrained is a fresh network of their shape."""
    run = continued(other_photos, first_run, tmp_path / "run", train__freeze_trunk=0.5)
    found = looks(run)
    first, best = found[0], max(found, key=lambda look: look["knn"])
    assert first["knn_start"] == first["knn"]
    assert "knn_start" not in found[-1]
    weights = read_weights(str(first_run))
    assert found[1]["knn"] == first["knn"]  # the trunk was held
    exported = load_file(run / "model.safetensors")
    assert same(exported, weights.state) == (best["step"] in (0, 3))
    encoder = belvedere.load(run)
    seed = belvedere.config.from_yaml(run / "config.yaml").config.train.seed
    fresh = untrained(Encoder(encoder.backbone, encoder.size, encoder.mean, encoder.std), seed)
    assert first["knn_untrained"] == gallery_knn(fresh, run, other_photos)
    said = capsys.readouterr().out
    assert f"untrained {first['knn_untrained']:.1f}, start {first['knn_start']:.1f}" in said
    assert f"best:   k-NN {best['knn']:.1f} % after {int(best['step'])} steps" in said
    page = (run / "report.html").read_text()
    assert f"starting weights {first['knn_start']:.1f} %" in page


def test_a_run_that_destroys_its_weights_ends_and_exports_the_best(
    first_run: Path, other_photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absurd = {"train__lr": 5.0, "train__freeze_trunk": 0.0, "train__warmup": 0, "objective__momentum": 0.0}
    run = continued(other_photos, first_run, tmp_path / "run", train__steps=60, **absurd)
    found = looks(run)
    reason = read_metrics(run)[-1]["ended"]
    assert reason.startswith(f"k-NN fell to {found[-1]['knn']:.1f} %, below the {found[0]['knn']:.1f} %")
    assert found[-1]["step"] < 60
    best = max(found, key=lambda look: look["knn"])
    assert f"k-NN {best['knn']:.1f} % after {int(best['step'])} steps; these" in capsys.readouterr().out
    kept = load(run / "checkpoint.pt")["best"]
    assert kept["step"] == best["step"]
    assert same(load_file(run / "model.safetensors"), kept["weights"])


@pytest.mark.slow
def test_an_interrupted_run_needs_no_weights_again_and_ends_alike(
    first_run: Path, other_photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the freeze and after it; the file of the weights is gone by then."""
    source = tmp_path / "start"
    source.mkdir()
    for name in ("config.yaml", "config.json", "model.safetensors"):
        (source / name).write_bytes((first_run / name).read_bytes())
    whole = continued(other_photos, source, tmp_path / "whole", train__freeze_trunk=0.5)
    for stop in (2, 4):
        parts = tmp_path / f"stopped-{stop}"
        with monkeypatch.context() as patch:
            decide = Loop._decide

            def stopped(loop: Loop, signals: list[int], stop: int = stop, decide: Any = decide) -> None:
                decide(loop, signals)
                if sum("loss" in entry for entry in loop.folder.read_log()) == stop:
                    loop.reason = "the test stops it"

            patch.setattr(Loop, "_decide", stopped)
            continued(other_photos, source, parts, train__freeze_trunk=0.5)
        hidden = source.rename(tmp_path / "hidden")
        belvedere.pretrain(other_photos, "continue", out=parts, resume=True, device="cpu")
        hidden.rename(source)
        assert looks(parts) == looks(whole)
        assert same(load_file(parts / "model.safetensors"), load_file(whole / "model.safetensors"))


def test_without_labels_the_guard_is_off_and_says_so(
    first_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images.npy"
    np.save(images, shifted(tiles(48)))
    run = continued(images, first_run, tmp_path / "run")
    assert capsys.readouterr().out.count("health.stop_below_start is off") == 1
    assert load(run / "checkpoint.pt")["best"] is None


@pytest.mark.slow
def test_a_run_continues_on_shifted_photographs(other_photos: Path, tmp_path: Path) -> None:
    """The whole way through the command line, the report included."""
    first = command(
        tmp_path, "pretrain", photo_folder(tmp_path / "photos"), "--out", tmp_path / "one", *WORDS, "backbone.width=64"
    )
    assert first.code == 0, first.text
    again = ("pretrain", other_photos, "--recipe", "continue", "--out", tmp_path / "two", *WORDS)
    assert "give them with --init" in command(tmp_path, *again).refusal()
    second = command(tmp_path, *again, "--init", tmp_path / "one")
    assert second.code == 0, second.text
    assert f"from --init {tmp_path / 'one'}" in second.text
    found = looks(tmp_path / "two")
    assert found[0]["knn"] == found[0]["knn_start"]
    later = max(look["knn"] for look in found[1:])
    assert later >= found[0]["knn_start"]
    exported = gallery_knn(belvedere.load(tmp_path / "two"), tmp_path / "two", other_photos)
    assert exported == max(later, found[0]["knn"])
    extended = command(tmp_path, "pretrain", other_photos, "--out", tmp_path / "two", "--resume", "train.steps=8")
    assert extended.code == 0, extended.text
