"""Probe, clusters, map and duplicates on real sets: CIFAR-10, and gray, unbalanced chest X-rays."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from belvedere.backbones.build import build_backbone
from belvedere.evaluate.splits import hold_out
from belvedere.evaluate.suite import Given, evaluate_encoder, prepare
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.measure.encoder import Encoder
from belvedere.report.protocols import draw_results

PROTOCOLS = ("linear", "cluster", "map", "duplicates")
OPTIONS = {"linear": {"epochs": 20}, "map": {"images": 300}, "cluster": {"restarts": 3}}


def open_set(path: Path, cache: Path) -> Canvases:
    return open_canvases(find_images(path), 32, cache_dir=cache, workers=1, progress=False)


def some(canvases: Canvases, images: int) -> Canvases:
    """A stratified part."""
    assert canvases.labels is not None
    return canvases.subset(hold_out(canvases.labels, 0, images / len(canvases))[1])


def network(channels: int, side: int) -> Encoder:
    backbone = build_backbone(
        "vit_tiny", size=(side, side), channels=channels, patch=4, width=48, depth=4, heads=3, seed=0
    )
    return Encoder(backbone, (side, side), [0.5] * channels, [0.25] * channels)


@pytest.mark.slow
def test_cifar10(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "cifar10_test10k.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    images = some(open_set(tmp_path / "cifar10" / "test", tmp_path), 1500)
    train, test = images.subset(np.arange(0, 1500, 2)), images.subset(np.arange(1, 1500, 2))
    given = Given(train, test, options=OPTIONS, floors=("pixels",))
    prepared = prepare(network(3, 32), given, PROTOCOLS, "cpu", None)
    results = {one.protocol: one for one in prepared.run()}
    assert not [one.settings["error"] for one in results.values() if "error" in one.settings]
    # The pixels alone are above chance in every one of them.
    assert results["linear"].metrics["pixels"]["top1"].low > 15
    assert results["cluster"].metrics["pixels"]["nmi"].low > 3
    assert results["map"].metrics["pixels"]["kept"].value > 20
    # The set holds no exact duplicate.
    assert results["duplicates"].metrics["pixels"]["duplicated"].value < 2
    assert results["duplicates"].metrics["pixels"]["suspected"].value < 20
    draw_results(tmp_path / "drawn", list(results.values()), prepared.data)
    assert {"linear_confusion.webp", "cluster.webp", "map.webp"} <= {p.name for p in (tmp_path / "drawn").iterdir()}


@pytest.mark.slow
def test_a_papers_probe_on_random_crops_of_cifar10(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "cifar10_test10k.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    images = some(open_set(tmp_path / "cifar10" / "test", tmp_path), 1000)
    train, test = images.subset(np.arange(0, 1000, 2)), images.subset(np.arange(1, 1000, 2))
    options = {"linear": {"recipe": "dino", "rates": [0.01, 0.1, 1.0], "epochs": 8}}
    given = Given(train, test, options=options, floors=("pixels",), paper=True)
    (result,) = evaluate_encoder(network(3, 32), given, ["linear"])
    assert "4,000 forward passes of each network" in result.settings["augment"]
    assert result.settings["heads"]["run"]["readings"] == ["last4"]
    assert len(result.chosen["accuracy"]["run"]) == 3
    for name in ("run", "pixels"):
        assert result.metrics[name]["top1"].low > 10
        assert result.metrics[name]["top1"].value == pytest.approx(max(result.chosen["accuracy"][name].values()))


@pytest.mark.slow
def test_finetuning_cifar10_by_the_papers_protocol(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "cifar10_test10k.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    images = some(open_set(tmp_path / "cifar10" / "test", tmp_path), 900)
    held = np.arange(900) % 3 == 0
    train, test = images.subset(np.flatnonzero(~held)), images.subset(np.flatnonzero(held))
    given = Given(train, test, options={"finetune": {"epochs": 5, "layer_decay": 1.0}}, floors=(), paper=True)
    (result,) = evaluate_encoder(network(3, 32), given, ["finetune"])
    assert result.settings["selected_on_test"]
    assert result.chosen["on"] == "the 300 test images (selected on test), trained on all 600"
    assert result.settings["refit"] == "none: all 600 training images were trained on"
    history = result.chosen["accuracy"]["run"]
    assert len(history) == 5
    assert result.metrics["run"]["top1"].value == pytest.approx(max(history))
    assert result.metrics["run"]["top1"].low > result.metrics["majority"]["top1"].value


@pytest.mark.slow
def test_gray_unbalanced_xrays(shared_data: Path, tmp_path: Path) -> None:
    with np.load(shared_data / "pneumoniamnist28.npz") as file:
        for split in ("train", "test"):
            np.savez(tmp_path / f"{split}.npz", images=file[f"{split}_images"], labels=file[f"{split}_labels"])
    train, test = (open_set(tmp_path / f"{split}.npz", tmp_path) for split in ("train", "test"))
    given = Given(train, test, options=OPTIONS, floors=("pixels",))
    results = {one.protocol: one for one in evaluate_encoder(network(1, 28), given, PROTOCOLS)}
    assert not [one.settings["error"] for one in results.values() if "error" in one.settings]
    assert results["linear"].metrics["pixels"]["balanced"].low > 70
    # 38 % and 62 % of the test images are not so unbalanced that F1 would stand beside it.
    assert "macro_f1" not in results["linear"].metrics["pixels"]
    assert results["linear"].metrics["pixels"]["balanced"].low > results["linear"].metrics["majority"]["balanced"].high
    assert results["cluster"].metrics["pixels"]["matched"].low > 75
    assert results["cluster"].chosen["k"]["run"] == 2
    assert 0 < results["duplicates"].settings["counts"]["groups"] < 20
