"""What leaves a run for others: predictions of a classifier, and the encoder as timm, safetensors and ONNX."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

import belvedere
from belvedere import exporting
from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.exporting import export_onnx
from belvedere.measure.encoder import Encoder, Reading
from newcomer import TINY, photo_folder
from tiny import tiles
from twist import every_twist


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("leaving") / "photos")


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    """A run that was evaluated by fine-tuning, and so has a classifier."""
    run = belvedere.pretrain(photos, "dino", out=photos.parent / "run", device="cpu", settings=TINY)
    belvedere.evaluate(
        run, photos, protocols=["finetune", "knn"], device="cpu", floors=["untrained"], settings={"finetune.epochs": 1}
    )
    return run


def command(*words: object) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "belvedere", *map(str, words)], capture_output=True, text=True)
    return done.returncode, done.stderr.strip()


# --- predictions ------------------------------------------------------------------------------------------------------


def test_predictions_of_a_folder(run: Path, photos: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    (new / "broken.png").write_bytes(b"no image")
    originals = sorted(photos.rglob("*.png"))[:3] or sorted(photos.rglob("*.jpg"))[:3]
    for place, original in enumerate(originals):
        (new / f"{place}{original.suffix}").write_bytes(original.read_bytes())
    out = tmp_path / "deep" / "x.csv"
    found = belvedere.predict(run / "classifier", new, out=out, top=2, device="cpu")
    assert found.probabilities.shape == (3, len(found.classes))
    assert [name for name, _ in found.skipped] == ["broken.png"]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "class", "probability", "class_2", "probability_2"]
    assert [row["path"] for row in rows] == found.names
    for row, shares in zip(rows, found.probabilities, strict=True):
        assert row["class"] == found.classes[shares.argmax()]
        assert float(row["probability"]) == pytest.approx(shares.max(), abs=1e-5)
        assert float(row["probability"]) >= float(row["probability_2"])
    assert "broken.png" in (tmp_path / "deep" / "x.skipped.csv").read_text()
    assert found.best(1)[0][0][0] == rows[0]["class"]


def test_one_image_is_enough(run: Path) -> None:
    one = belvedere.predict(run / "classifier", tiles(1), device="cpu")
    many = belvedere.predict(run / "classifier", tiles(5), device="cpu")
    assert np.allclose(one.probabilities[0], many.probabilities[0], atol=1e-6)


def test_a_strangers_classifier_is_read_or_refused(run: Path, tmp_path: Path) -> None:
    """Whatever stands in the place of what is read from `config.json`."""
    there = shutil.copytree(run / "classifier", tmp_path / "classifier")
    whole = json.loads((there / "config.json").read_text())
    read = {name: whole.pop(name) for name in ("label_names", "cutting")}
    read["pretrained_cfg"] = {name: whole["pretrained_cfg"].pop(name) for name in ("input_size", "mean", "std")}
    refused = 0
    for twist in every_twist(read):
        if isinstance(twist.get("pretrained_cfg"), dict):
            twist = {**twist, "pretrained_cfg": {**whole["pretrained_cfg"], **twist["pretrained_cfg"]}}
        (there / "config.json").write_text(json.dumps({**whole, **twist}))
        try:
            belvedere.predict(there, tiles(1), device="cpu")
        except UserError:
            refused += 1
    assert refused > 50


def test_what_is_no_classifier_is_refused(run: Path, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{run}: is no classifier; give {run / 'classifier'}$"):
        belvedere.predict(run, photos, device="cpu")
    with pytest.raises(UserError, match=r"is no classifier; belvedere evaluate --protocol finetune makes one$"):
        belvedere.predict(tmp_path, photos, device="cpu")
    broken = tmp_path / "classifier"
    broken.mkdir()
    (broken / "config.json").write_bytes((run / "classifier" / "config.json").read_bytes())
    (broken / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="cannot be loaded"):
        belvedere.predict(broken, photos, device="cpu")
    with pytest.raises(UserError, match=r"the ending must be \.csv"):
        belvedere.predict(run / "classifier", photos, out=tmp_path / "x.txt")


@pytest.mark.slow
def test_the_command_line(run: Path, photos: Path, tmp_path: Path) -> None:
    assert command("predict", run / "classifier", photos, "--out", tmp_path / "x.csv", "--device", "cpu")[0] == 0
    assert (tmp_path / "x.csv").is_file()
    refused = command("predict", tmp_path, photos, "--out", tmp_path / "x.csv")
    assert refused[0] == 2
    assert len(refused[1].splitlines()) == 1
    assert command("predict", run, photos, "--out", "x.txt") == (2, "belvedere: --out x.txt: the ending must be .csv")
    assert command("export", run, "--out", tmp_path / "st", "--format", "safetensors")[0] == 0


# --- exports ----------------------------------------------------------------------------------------------------------


def test_the_exported_network_gives_the_same_features(run: Path, tmp_path: Path) -> None:
    encoder = belvedere.load(run)
    pixels = encoder.preprocess(torch.from_numpy(tiles(4)))
    for form in ("timm", "safetensors"):
        folder = belvedere.export(run, tmp_path / form, form)
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            assert torch.allclose(model(pixels), encoder(pixels), atol=1e-5)
        assert load_file(folder / "model.safetensors").keys() == encoder.backbone.model.state_dict().keys()


def test_the_card_tells_what_the_run_knows(run: Path, tmp_path: Path) -> None:
    card = (belvedere.export(run, tmp_path / "out") / "README.md").read_text()
    results = json.loads((run / "evaluation.json").read_text())["results"]
    top1 = {one["protocol"]: one["metrics"]["run"]["top1"] for one in results}
    for number in top1.values():
        assert f"{number['value']:.1f} [{number['low']:.1f}, {number['high']:.1f}]" in card
    assert "| untrained |" in card
    assert "| majority |" in card
    config = belvedere.load(run).describe()
    assert ", ".join(f"{x:.4f}" for x in config["mean"]) in card
    assert "says nothing of a licence" in card
    assert str(run.parent) not in card  # paths of the author's machine stay there


def test_a_run_without_evaluation_says_so(run: Path, tmp_path: Path) -> None:
    moved = run / "evaluation.json"
    kept = moved.read_bytes()
    moved.unlink()
    try:
        card = (belvedere.export(run, tmp_path / "out") / "README.md").read_text()
    finally:
        moved.write_bytes(kept)
    assert "Not evaluated" in card


SHAPES: dict[str, tuple[str, tuple[int, int], int, dict[str, Any], Reading]] = {
    "class-token": ("vit_tiny", (32, 32), 3, {"patch": 8, "width": 32, "depth": 2}, "cls"),
    "both": ("vit_tiny", (32, 32), 3, {"patch": 8, "width": 32, "depth": 2}, "cls+avg"),
    "grey-rectangle": ("vit_tiny", (32, 72), 1, {"patch": 8, "width": 32, "depth": 2, "class_token": False}, "avg"),
    "resnet": ("resnet18", (32, 32), 3, {}, "auto"),
    "swin": ("swin_tiny", (32, 32), 3, {"patch": 2, "width": 24, "depth": 7}, "auto"),
}
OLDEST_FOR_BATCHNORM = TorchVersion("2.8")


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_onnx_computes_what_torch_computes(shape: str, tmp_path: Path) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    if shape == "resnet" and torch.__version__ < OLDEST_FOR_BATCHNORM:
        pytest.skip(f"torch before {OLDEST_FOR_BATCHNORM} writes no BatchNorm as ONNX")
    name, size, channels, settings, reading = SHAPES[shape]
    backbone = build_backbone(name, size=size, channels=channels, seed=0, **settings)
    encoder = Encoder(backbone, size, [0.5] * channels, [0.25] * channels, reading).eval()
    export_onnx(encoder, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        pixels = encoder.preprocess(torch.from_numpy(tiles(count, size, channels)))
        (found,) = session.run(["features"], {"pixels": pixels.numpy()})
        wanted = encoder(pixels).numpy()
        assert found.shape == wanted.shape
        assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()
    (entry,) = onnx.load(tmp_path / "model.onnx").metadata_props
    described = json.loads(entry.value)
    assert described["size"] == list(size)
    assert described["mean"] == [0.5] * channels


def test_a_file_that_computes_something_else_is_not_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, seed=0, patch=16, width=16, depth=1, heads=1)
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3).eval()
    traced = exporting._traced

    def wrong(model: torch.nn.Module, example: torch.Tensor) -> bytes:
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.5)
        return traced(model, example)

    monkeypatch.setattr(exporting, "_traced", wrong)
    with pytest.raises(UserError, match="features differ from torch's by"):
        export_onnx(encoder, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(UserError, match=r'onnxscript is missing; it is an extra: pip install "belvedere\[onnx\]"'):
        belvedere.export(run, tmp_path / "out", "onnx")


def test_a_scattering_network_has_no_onnx(tmp_path: Path) -> None:
    pytest.importorskip("kymatio")
    pytest.importorskip("onnxscript")
    backbone = build_backbone("scatnet8_l4_j2_norm", size=(32, 32), channels=3, seed=0)
    with pytest.raises(UserError, match="has a scattering transform"):
        export_onnx(Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3), tmp_path / "model.onnx")


def test_a_run_s_weights_of_other_heads_are_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "run"
    other.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(run / name, other)
    text = (run / "config.yaml").read_text()
    heads = [line for line in text.splitlines() if line.startswith("backbone.heads:")]
    assert heads
    lines = [line if line not in heads else "backbone.heads: 4" for line in text.splitlines()]
    (other / "config.yaml").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"attention heads \(config\.json\), its configuration 4"):
        belvedere.load(other)
