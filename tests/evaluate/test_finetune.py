"""Fine-tuning: what is chosen and told, the classifier that it leaves, and what it refuses."""

from __future__ import annotations

import copy
import csv
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from belvedere.backbones.build import build_backbone
from belvedere.backbones.vit import Init
from belvedere.config import Config, resolve
from belvedere.errors import UserError
from belvedere.evaluate.classifier import load_classifier
from belvedere.evaluate.contract import Result
from belvedere.evaluate.protocols.finetune import Finetune, Options, _for_more, copy_of, derive_epochs
from belvedere.evaluate.suite import Given, evaluate_encoder, prepare
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.pretrain.method import Branch
from belvedere.report.protocols import draw_results
from belvedere.tasks.relations import places_of, relation_labels

Make = Callable[..., Canvases]
THREE = dict.fromkeys(("coffee", "retina", "rocket"), 12)

TIMM_ALONE = """
import sys
sys.modules["belvedere"] = None
import timm, torch
model = timm.create_model(f"local-dir:{sys.argv[1]}", pretrained=True).eval()
with torch.no_grad():
    torch.save((model(torch.load(sys.argv[2])), list(model.pretrained_cfg["label_names"])), sys.argv[3])
"""


def finetune(encoder: Encoder, train: Canvases, test: Canvases | None = None, **given: Any) -> Result:
    """Two epochs, unless something else is asked."""
    given["options"] = {"finetune": {"epochs": 2, "batch": 8, **given.get("options", {})}}
    (result,) = evaluate_encoder(encoder, Given(train, test, **given), ["finetune"])
    return result


def test_what_is_found_chosen_and_told(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    train, test = make_folder(THREE), make_folder(dict.fromkeys(THREE, 5), "test", first=1)
    before = encoder.fingerprint()
    generator = torch.get_rng_state()
    result = finetune(encoder, train, test, folder=tmp_path / "run")
    assert "error" not in result.settings
    assert torch.equal(torch.get_rng_state(), generator)
    assert encoder.fingerprint() == before  # a copy was trained
    assert set(result.metrics) == {"run", "untrained", "majority"}
    assert set(result.metrics["run"]) == {"top1", "balanced"}
    for name in ("run", "untrained"):
        history = result.chosen["accuracy"][name]
        assert len(history) == 2
        assert result.chosen["epoch"][name] == 1 + history.index(max(history))
        assert result.items[name]["top1"].mean() * 100 == pytest.approx(result.metrics[name]["top1"].value)
    assert result.chosen["on"] == "4 of 36 training images, trained on the other 32"
    told = result.settings["recipe"]
    assert told["run"]["train.layer_decay"] == {"value": 0.75, "why": "recipe finetune"}
    assert told["untrained"]["train.layer_decay"]["value"] == 1.0
    assert "under 50 epochs" in told["run"]["objective.mixup"]["why"]
    assert told["run"]["train.steps"] == {"value": 8, "why": "2 epochs"}
    assert told["run"]["train.batch"] == {"value": 8, "why": "asked for"}
    assert "backbone.pos_embed" not in told["run"]  # it has its own
    assert result.settings["classifier"] == "classifier"
    json.dumps(result.to_json(), allow_nan=False)


def test_views_that_fit_the_images_and_classes_of_other_sizes(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder({"coffee": 16, "retina": 8, "rocket": 8})
    options = {"balanced": True, "policy": "random", "flip": 0.0, "epochs": 1}
    told = finetune(encoder, train, options=options, floors=()).settings["recipe"]["run"]
    weights = told["objective.class_weights"]["value"]
    assert weights[1] == weights[2] == pytest.approx(2 * weights[0], rel=0.2)
    assert (told["views.policy"]["value"], told["views.flip"]["value"]) == ("random", 0.0)


def test_where_classes_count_alike_the_epoch_is_chosen_by_them(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(THREE), make_folder({"coffee": 9, "retina": 3, "rocket": 2}, "test", first=1)
    for balanced, metric in ((True, "balanced"), (False, "top1")):
        options = {"balanced": balanced, "epochs": 2}
        result = finetune(encoder, train, test, options=options, floors=(), paper=True)
        # Chosen on the test images: the best epoch's score is the one that is reported.
        assert result.metrics["run"][metric].value == pytest.approx(max(result.chosen["accuracy"]["run"]))


def test_the_picture_tells_the_epochs(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    train, test = make_folder(THREE), make_folder(dict.fromkeys(THREE, 3), "test", first=1)
    given = Given(train, test, options={"finetune": {"epochs": 3, "batch": 8}})
    prepared = prepare(encoder, given, ["finetune"], "cpu", None)
    (result,) = results = prepared.run()
    draw_results(tmp_path, results, prepared.data)
    (picture,) = json.loads((tmp_path / "pictures.json").read_text())["finetune"]
    assert (tmp_path / picture["file"]).stat().st_size > 1000
    with (tmp_path / picture["table"]).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    chosen = {row["network"]: int(row["epoch"]) for row in rows if row["chosen"] == "1"}
    assert chosen == result.chosen["epoch"]
    assert "3 epochs" in picture["alt"]


def test_relations_are_learned_beside_the_classes(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    """RelViT's joint training (its spec 3.3): in a few epochs the relations are told better than a guess would be."""
    train, test = make_folder(THREE), make_folder(dict.fromkeys(THREE, 3), "test", first=1)
    options = {"finetune": {"epochs": 24, "batch": 8, "tasks": ["relations"], "lr": 1e-2, "layer_decay": 1.0}}
    prepared = prepare(encoder, Given(train, test, options=options, floors=()), ["finetune"], "cpu", None)
    (result,) = results = prepared.run()
    losses = result.chosen["task_losses"]["run"]
    assert set(losses) == {"relations.relation", "relations.absolute"}
    height, width = encoder.backbone.grid((32, 32))
    shares = np.bincount(relation_labels(places_of((height, width))).flatten().numpy()) / (height * width) ** 2
    guessed = {"relations.relation": -(shares * np.log(shares)).sum(), "relations.absolute": np.log(height * width)}
    for name, loss in losses.items():
        assert len(loss) == 24
        assert loss[-1] < 0.8 * guessed[name], (name, loss)
    draw_results(tmp_path, results, prepared.data)
    (picture,) = json.loads((tmp_path / "pictures.json").read_text())["finetune"]
    assert f"relations.absolute {losses['relations.absolute'][0]:.2f} to" in picture["caption"]


@pytest.mark.slow
def test_the_classifier_is_timms_and_ours(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    test = make_folder(dict.fromkeys(THREE, 5), "test", first=1)
    result = finetune(encoder, make_folder(THREE), test, folder=tmp_path / "run", floors=())
    loaded = load_classifier(tmp_path / "run" / "classifier")
    assert loaded.classes == sorted(THREE)
    assert (loaded.size, loaded.mean, loaded.std) == (encoder.size, encoder.mean, encoder.std)
    probabilities = loaded.probabilities(test)
    assert np.allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == result.draws["run"]["predictions"]).all()
    assert np.allclose(probabilities.max(1), result.draws["run"]["confidence"], atol=1e-5)
    torch.save(loaded.preprocess(test.batch(range(len(test)))), tmp_path / "pixels.pt")
    command = [str(tmp_path / name) for name in ("run/classifier", "pixels.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", TIMM_ALONE, *command], check=True)
    logits, names = torch.load(tmp_path / "logits.pt")
    assert names == loaded.classes
    assert np.allclose(logits.double().softmax(1).numpy(), probabilities, atol=1e-5)


def test_same_seed_same_numbers(make_folder: Make, encoder: Encoder) -> None:
    train = make_folder(THREE)
    found = [finetune(encoder, train, seed=seed, floors=()) for seed in (0, 0, 1)]
    told = [{**one.to_json(), "settings": {**one.settings, "seconds": 0}} for one in found]
    assert told[0] == told[1] != told[2]


@pytest.mark.parametrize(
    "options",
    [
        {"tasks": ["relations"]},
        {"mixup": 0.8, "cutmix": 1.0, "ema": 0.9},
        {"layer_decay": 0.5, "lr": 1e-3},
        {"erasing": 1.0},
    ],
    ids=["joint", "mixed", "decayed", "erased"],
)
def test_options_change_what_is_learned(make_folder: Make, encoder: Encoder, options: dict[str, Any]) -> None:
    train = make_folder(THREE)
    test = make_folder(dict.fromkeys(THREE, 3), "test", first=1)
    plain, other = (finetune(encoder, train, test, floors=(), options=given) for given in ({}, options))
    assert "error" not in other.settings
    assert not np.allclose(plain.draws["run"]["confidence"], other.draws["run"]["confidence"], atol=1e-6)
    if "tasks" in options:
        assert other.settings["recipe"]["run"]["tasks"]["value"] == ["relations"]


def test_layers_below_the_classifier_move_less(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    finetune(encoder, make_folder(THREE), floors=(), folder=tmp_path / "run", options={"layer_decay": 0.01})
    tuned = load_classifier(tmp_path / "run" / "classifier").model.state_dict()
    start = encoder.backbone.model.state_dict()

    def moved(name: str) -> float:
        return float((tuned[name] - start[name]).norm() / start[name].norm())

    assert moved("patch_embed.proj.weight") < moved("blocks.0.mlp.fc1.weight") < moved("blocks.1.mlp.fc1.weight")


@pytest.mark.parametrize("tasks", [[], ["relations"]], ids=["classes", "joint"])
@pytest.mark.parametrize("init", ["dino", "mocov3"])
def test_a_network_without_positions_is_tuned_with_them(
    make_folder: Make, tasks: list[str], init: Init, tmp_path: Path
) -> None:
    """RelViT reads no positions while it is pretrained, and trains fresh ones downstream (its spec 3.3)."""
    shape: dict[str, Any] = {"patch": 8, "width": 32, "depth": 2, "heads": 2, "init": init, "seed": 3}
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, pos_embed=False, **shape)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    before = encoder.fingerprint()
    options = {"epochs": 1, "tasks": tasks, "layer_decay": 1.0}
    result = finetune(encoder, make_folder(THREE), folder=tmp_path / "run", options=options)
    assert "error" not in result.settings
    told = result.settings["recipe"]
    assert set(told) == {"run", "untrained"}
    assert all(one["backbone.pos_embed"]["value"] for one in told.values())
    assert all("without" in one["backbone.pos_embed"]["why"] for one in told.values())
    assert encoder.fingerprint() == before
    tuned = load_classifier(tmp_path / "run" / "classifier").model
    fresh = copy_of(backbone, 0.1, 0, positions=True).model.get_parameter("pos_embed")
    assert fresh.requires_grad
    assert not torch.allclose(tuned.get_parameter("pos_embed"), fresh, atol=1e-5)


def test_a_copy_with_positions_is_the_network_but_for_them() -> None:
    shape: dict[str, Any] = {"patch": 8, "width": 32, "depth": 2, "heads": 2, "init": "mocov3"}
    without = build_backbone("vit_tiny", size=(32, 32), channels=3, pos_embed=False, seed=3, **shape).eval()
    copied = copy_of(without, 0.0, 0, positions=True).eval()
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(copied(pixels, pos_embed=False).cls, without(pixels).cls)
        assert not torch.allclose(copied(pixels).cls, without(pixels).cls, atol=1e-3)
    assert not copy_of(without, 0.0, 0).has_positions
    with_own = build_backbone("vit_tiny", size=(32, 32), channels=3, seed=3, **shape)
    kept = copy_of(with_own, 0.0, 0, positions=True).model.get_parameter("pos_embed")
    assert torch.equal(kept, with_own.model.get_parameter("pos_embed"))


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny"])
def test_other_networks_leave_a_classifier_too(make_folder: Make, name: str, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"width": 24, "depth": 7, "patch": 2} if name == "swin_tiny" else {}
    backbone = build_backbone(name, size=(32, 32), channels=3, seed=0, **shape)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    train, test = make_folder(dict.fromkeys(THREE, 6)), make_folder(dict.fromkeys(THREE, 2), "test", first=1)
    result = finetune(encoder, train, test, floors=(), folder=tmp_path / "run", options={"epochs": 1})
    assert "error" not in result.settings
    said = load_classifier(tmp_path / "run" / "classifier").probabilities(test)
    assert np.allclose(said.max(1), result.draws["run"]["confidence"], atol=1e-5)


def test_a_network_that_timm_has_not_is_tuned_but_not_kept(make_folder: Make, tmp_path: Path) -> None:
    pytest.importorskip("kymatio")
    backbone = build_backbone("scatnet8_l4_j2_norm", size=(32, 32), channels=3, seed=0)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)
    train = make_folder(dict.fromkeys(THREE, 5))
    result = finetune(encoder, train, floors=(), folder=tmp_path / "run", options={"epochs": 1})
    assert "no network that timm has" in result.settings["classifier"]
    assert "run" in result.metrics
    assert not (tmp_path / "run" / "classifier").exists()


@pytest.mark.parametrize(
    ("counts", "test"),
    [
        ({"coffee": 2, "rocket": 1}, {"coffee": 2, "rocket": 1}),
        ({"coffee": 5, "rocket": 1, "retina": 1}, {"coffee": 2, "rocket": 1}),  # retina is missing in test
        ({"coffee": 5, "rocket": 5}, {"coffee": 1, "chelsea": 1}),  # chelsea was never seen
    ],
)
def test_tiny_sets_give_a_result(
    make_folder: Make, encoder: Encoder, counts: dict[str, int], test: dict[str, int]
) -> None:
    result = finetune(encoder, make_folder(counts), make_folder(test, "test", first=1), floors=(), options={"batch": 2})
    assert "error" not in result.settings
    assert 0 <= result.metrics["run"]["top1"].value <= 100


def test_chosen_on_test_is_said(make_folder: Make, encoder: Encoder) -> None:
    test = make_folder(dict.fromkeys(THREE, 3), "test", first=1)
    result = finetune(encoder, make_folder(THREE), test, floors=(), paper=True)
    assert result.chosen["on"] == "the 9 test images (selected on test), trained on all 36"
    assert max(result.chosen["accuracy"]["run"]) == pytest.approx(result.metrics["run"]["top1"].value)


@pytest.mark.parametrize("paper", [False, True])
def test_the_chosen_epochs_are_trained_again_on_all_images(
    make_folder: Make, encoder: Encoder, monkeypatch: pytest.MonkeyPatch, paper: bool
) -> None:
    trained: list[tuple[int, int, int]] = []
    train = Finetune._train

    def noted(self: Finetune, encoder: Encoder, images: Canvases, config: Config, device: str, *rest: Any) -> Branch:
        trained.append((len(images), int(config.train.steps), rest[0]))
        return train(self, encoder, images, config, device, *rest)

    monkeypatch.setattr(Finetune, "_train", noted)
    test = make_folder(dict.fromkeys(THREE, 3), "test", first=1)
    result = finetune(encoder, make_folder(THREE), test, floors=(), paper=paper, options={"epochs": 3})
    # A last batch of four of eight images is one.
    expected = [(36, 15, 3)] if paper else [(32, 12, 3), (36, 15, result.chosen["epoch"]["run"])]
    assert trained == expected
    assert result.settings["refit"].startswith("none: all 36" if paper else "all 36 training images")


@pytest.mark.parametrize(("mirrored", "asked", "flip"), [(True, None, 0.5), (False, None, 0.0), (False, 0.3, 0.3)])
def test_what_was_never_mirrored_is_not_mirrored_now(
    mirrored: bool, asked: float | None, flip: float, make_folder: Make, encoder: Encoder
) -> None:
    """Bytes and handwriting have no mirror image."""
    given = Given(make_folder(THREE), mirrored=mirrored)
    data = prepare(encoder, given, ["finetune"], "cpu", None).data
    images = replace(data.train, labels=data.train_labels, classes=data.classes)
    config = Finetune(Options(flip=asked, batch=8))._settle(encoder, images, data, "cpu", False).config
    assert config.views.flip == flip


def test_fewer_epochs_are_the_beginning_of_more(make_folder: Make, encoder: Encoder) -> None:
    data = prepare(encoder, Given(make_folder(THREE)), ["finetune"], "cpu", None).data
    protocol = Finetune(Options(epochs=2, batch=8, ema=0.5))
    images = replace(data.train, labels=data.train_labels, classes=data.classes)
    config = protocol._settle(encoder, images, data, "cpu", False).config
    seen: list[dict[str, torch.Tensor]] = []

    def look(branch: Branch, _: dict[str, float]) -> None:
        seen.append(copy.deepcopy(branch.state_dict()))

    protocol._train(encoder, images, config, "cpu", 2, look)
    first = protocol._train(encoder, images, config, "cpu", 1, None).state_dict()
    assert len(seen) == 2
    assert all(torch.equal(first[name], seen[0][name]) for name in first)
    assert not all(torch.equal(first[name], seen[1][name]) for name in first)


def test_more_images_are_as_many_epochs_with_the_same_part_to_warm_up() -> None:
    config = resolve("finetune", {"train.batch": 10, "train.steps": 100, "train.warmup": 20}).config
    longer = _for_more(config, epochs=10, images=120).train
    assert (longer.steps, longer.warmup) == (120, 24)
    assert longer.model_copy(update={"steps": 100, "warmup": 20}) == config.train


def test_a_single_class_to_train_on_is_refused(make_folder: Make, encoder: Encoder) -> None:
    result = finetune(encoder, make_folder({"coffee": 1, "rocket": 1}), make_folder(THREE, "test"))
    assert result.settings["error"] == "finetune: the images to train on are of one class, a classifier needs two"


def test_an_option_that_is_none_is_refused(make_folder: Make, encoder: Encoder) -> None:
    with pytest.raises(UserError, match=r"finetune\.tasks"):
        finetune(encoder, make_folder(THREE), options={"tasks": ["rotation"]})


def test_a_batch_larger_than_the_images_is_refused(make_folder: Make, encoder: Encoder) -> None:
    result = finetune(encoder, make_folder(THREE), make_folder(THREE, "test"), options={"batch": 64})
    assert result.settings["error"] == "finetune.batch=64: larger than the 32 images to train on"


def test_another_number_of_heads_is_refused(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = type(encoder.backbone)
    right = encoder.backbone.settings
    monkeypatch.setattr(kind, "settings", property(lambda self: {**right, "heads": 4}))
    with pytest.raises(UserError, match="was trained with num_heads=2, and a copy to train would have 4"):
        copy_of(encoder.backbone, 0.1, 0)


def test_few_images_are_seen_more_often() -> None:
    assert derive_epochs(50_000, cpu=False)[0] == 100
    assert [derive_epochs(n, cpu=True)[0] for n in (50, 1_000, 50_000)] == [100, 40, 10]


@pytest.mark.slow
def test_cifar10(shared_data: Path, tmp_path: Path) -> None:
    """The smallest real use: 1,000 images, 3 epochs, a classifier that beats guessing."""
    for name in ("train20k", "test10k"):
        with tarfile.open(shared_data / f"cifar10_{name}.tar.gz") as archive:
            taken: Counter[str] = Counter()
            for member in archive:
                folder = str(Path(member.name).parent)
                if member.isfile() and taken[folder] < 100:
                    taken[folder] += 1
                    archive.extract(member, tmp_path, filter="data")
    train, test = (
        open_canvases(find_images(tmp_path / "cifar10" / part), 32, cache_dir=tmp_path, progress=False)
        for part in ("train", "test")
    )
    assert len(train) == len(test) == 1000
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=96, depth=4, init="mocov3", seed=0)
    encoder = Encoder(backbone, (32, 32), *train.statistics())
    result = finetune(encoder, train, test, floors=(), folder=tmp_path / "run", options={"epochs": 3, "batch": None})
    assert result.metrics["run"]["top1"].low > result.metrics["majority"]["top1"].value
    assert load_classifier(tmp_path / "run" / "classifier").classes[:2] == ["airplane", "automobile"]
