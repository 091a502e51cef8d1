"""A fine-tuned network as others use it: timm's own format, with the transform and the names of its classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, Field, FiniteFloat, PositiveFloat, StrictStr, model_validator
from torch import Tensor, nn

from belvedere.backbones.export import CONFIG
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.images.cutting import WHOLE, Cutting
from belvedere.images.decode import reason
from belvedere.measure.encoder import evaluating, preprocess


@dataclass(frozen=True)
class Classifier:
    """A network from normalised pixels to (N, K) logits, and everything that its answers depend on.

    Attributes:
        model: a plain module.
        size: (h, w) of the pixels it sees.
        mean, std: C numbers each, of pixels in [0, 1].
        classes: K names.
        cutting: what was made of the files that it was trained on, and is made of those that it answers for.
    """

    model: nn.Module
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: list[str]
    cutting: Cutting = WHOLE

    def probabilities(
        self, canvases: Canvases, device: torch.device | str = "cpu", batch: int = 256
    ) -> NDArray[np.float64]:
        """(N, K) softmax of all images; see `classify`."""
        return classify(self.model, self.preprocess, canvases, device, batch)

    def preprocess(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """The test transform that it was chosen and tested with; see `Encoder.preprocess`."""
        return preprocess(images, self.size, self.mean, self.std)


def classify(
    model: nn.Module,
    transform: Callable[[Tensor | list[Tensor]], Tensor],
    canvases: Canvases,
    device: torch.device | str = "cpu",
    batch: int = 256,
) -> NDArray[np.float64]:
    """(N, K) softmax of the logits of all images, in evaluation mode.

    Blocks are padded to one size, so that an answer does not depend on how many images stand beside it.
    """
    model = model.to(device)
    found = []
    with evaluating(model):
        for start in range(0, len(canvases), batch):
            index = np.arange(start, min(start + batch, len(canvases)))
            pixels = transform(canvases.batch(index)).to(device)
            padding = pixels.new_zeros(batch - len(index), *pixels.shape[1:])
            logits = model(torch.cat([pixels, padding]))[: len(index)]
            found.append(logits.double().softmax(1).cpu().numpy())
    return np.concatenate(found)


_Side = Annotated[int, Field(ge=1, le=2**13)]


class _Read(BaseModel):
    """How images are read, in timm's words."""

    input_size: tuple[_Side, _Side, _Side]
    mean: tuple[FiniteFloat, ...]
    std: tuple[PositiveFloat, ...]

    @model_validator(mode="after")
    def _of_all_channels(self) -> _Read:
        if not len(self.mean) == len(self.std) == self.input_size[0]:
            raise ValueError("one mean and one std for each channel")
        return self


class _Stored(BaseModel):
    """What a classifier's `config.json` must hold, which may be a stranger's."""

    label_names: list[StrictStr]
    pretrained_cfg: _Read


def load_classifier(folder: str | Path) -> Classifier:
    """The classifier of a folder that `belvedere evaluate --protocol finetune` wrote.

    Raises:
        UserError: when the folder is none, or its weights do not fit.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        stored, cutting = _Stored.model_validate(config), Cutting.read(config)
    except (OSError, ValueError, RecursionError, AttributeError):
        within = folder / "classifier"
        there = f"give {within}" if (within / CONFIG).is_file() else "belvedere evaluate --protocol finetune makes one"
        raise UserError(f"{folder}: is no classifier; {there}") from None
    try:
        model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        with torch.no_grad():
            given = model(torch.zeros(1, *stored.pretrained_cfg.input_size)).shape[1]
    except Exception as error:  # of the file, safetensors or timm
        raise UserError(f"{folder}: the classifier cannot be loaded ({reason(error)})") from error
    if len(stored.label_names) != given:
        raise UserError(f"{folder}: {CONFIG} names {len(stored.label_names)} classes, its weights have {given}")
    read = stored.pretrained_cfg
    return Classifier(model, read.input_size[1:], read.mean, read.std, stored.label_names, cutting)
