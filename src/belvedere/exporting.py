"""`belvedere export`: a run's encoder in the formats of other programs, with a model card beside it."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from belvedere.atomic import write_text
from belvedere.backbones.contract import Features
from belvedere.backbones.export import export_timm, save_backbone
from belvedere.errors import UserError
from belvedere.measure.encoder import Encoder
from belvedere.opened import load
from belvedere.pretrain.start import writing
from belvedere.report.card import model_card
from belvedere.report.record import read_record

Format = Literal["timm", "safetensors", "onnx"]
ONNX = "model.onnx"
TOLERANCE = 1e-4
"""Largest difference between features by onnxruntime and by torch, of the largest feature."""


def export(run: str | Path, out: str | Path, form: Format = "timm") -> Path:
    """Write a run's encoder as a folder with a model card, README.md; returns the folder.

    Args:
        form: "timm" for `timm.create_model("local-dir:FOLDER", pretrained=True)`; "safetensors" for the same files of
            any network, also one that timm does not have; "onnx" for `model.onnx`: normalised pixels to features, with
            the preprocessing described in its metadata.

    Raises:
        UserError: when the network cannot be written so, or an extra is missing.
    """
    encoder, folder = load(run), Path(out)
    if form == "onnx":
        _require_onnx()
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if form == "onnx":
            export_onnx(encoder, folder / ONNX)
        else:
            write = export_timm if form == "timm" else save_backbone
            write(encoder.backbone, folder, mean=encoder.mean, std=encoder.std)
        text = model_card(read_record(Path(run)), encoder, form)
        write_text(folder / "README.md", text)
    return folder


class _Features(nn.Module):
    """An encoder's forward without the guards of a live network, as a graph can hold it."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.backbone, self.reading = encoder.backbone, encoder.reading

    def forward(self, pixels: Tensor) -> Tensor:
        features: Features = self.backbone(pixels)
        if self.reading == "cls":
            return features.cls
        average = features.patches.mean(1)
        return average if self.reading == "avg" else torch.cat([features.cls, average], 1)


def export_onnx(encoder: Encoder, path: Path) -> None:
    """Write one ONNX file, input `pixels` (batch, C, h, w) and output `features` (batch, D), and compare it with torch.

    The batch is free; h and w are the encoder's. What has to be done to an image before is JSON in the metadata
    `preprocessing`.

    Raises:
        UserError: when an extra is missing, torch cannot express the network, or the file computes something else.
    """
    _require_onnx()
    if not encoder.backbone.in_timm:
        raise UserError(f"export onnx: {encoder.backbone.architecture} has a scattering transform, which ONNX has not")
    import onnx

    # Numbers of the size of normalised pixels; more than one, or the batch would be taken for a constant.
    example = torch.from_numpy(np.random.default_rng(0).standard_normal((3, encoder.channels, *encoder.size)))
    example = example.to(torch.float32)
    model = _Features(encoder).cpu().eval()
    unfinished = path.with_name(f".{path.name}.part")
    try:
        # Of a copy, since tracing leaves placeholders in what a module caches.
        program = _traced(copy.deepcopy(model), example[:2])
        described = onnx.load_from_string(program)
        onnx.helper.set_model_props(described, {"preprocessing": json.dumps(_preprocessing(encoder))})
        onnx.save(described, unfinished)
        _check(unfinished, model, example)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _traced(model: nn.Module, example: Tensor) -> bytes:
    """The network as serialised ONNX.

    Raises:
        UserError: when torch has no ONNX for something in it.
    """
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's notes on its own exporter say nothing to a user
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["pixels"],
                output_names=["features"],
                # torch 2.6 refuses a number of images without a bound.
                dynamic_shapes={"pixels": {0: torch.export.Dim("batch", max=2**31 - 1)}},
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # of the exporter, which raises whatever it likes
        why = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise UserError(f"export onnx: torch cannot write this network ({why})") from error
    finally:
        log.setLevel(level)
    assert program is not None
    serialised: bytes = program.model_proto.SerializeToString()
    return serialised


def _check(path: Path, model: nn.Module, example: Tensor) -> None:
    """Compare onnxruntime with torch, for several images and for one.

    Raises:
        UserError: when features differ.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for pixels in (example, example[:1]):
        with torch.no_grad():
            wanted = model(pixels).numpy()
        try:
            (found,) = session.run(["features"], {"pixels": pixels.numpy()})
        except Exception as error:  # of onnxruntime, which has no class of its own for all of them
            why = str(error).splitlines()[0]
            raise UserError(f"export onnx: onnxruntime cannot run what torch wrote ({why})") from error
        gap = float(np.abs(found - wanted).max() / np.abs(wanted).max())
        if not gap <= TOLERANCE:
            raise UserError(f"export onnx: onnxruntime's features differ from torch's by {gap:.2g} of the largest")


def _preprocessing(encoder: Encoder) -> dict[str, object]:
    """What has to be done to 8-bit images for `pixels`; see `Encoder.preprocess`."""
    names = ("size", "mean", "std", "transform", "reading")
    described = encoder.describe()
    return {"channels": encoder.channels, **{name: described[name] for name in names}, "scale": "value / 255"}


def _require_onnx() -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(name) is None:
            raise UserError(f'export onnx: {name} is missing; it is an extra: pip install "belvedere[onnx]"')
