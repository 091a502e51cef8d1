"""A finished run as others use it: its configuration, its encoder, and images as that wants them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from belvedere import config as configuration
from belvedere.backbones.export import check_heads
from belvedere.config import Config, Resolved
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.cutting import WHOLE, Cutting
from belvedere.images.source import find_images
from belvedere.images.tiles import cut
from belvedere.measure.encoder import BORDER, Encoder
from belvedere.measure.readings import Reading
from belvedere.pretrain.compose import device_of, make_backbone, make_encoder


def load(run: str | Path, reading: Reading = "auto", device: str = "cpu") -> Encoder:
    """The encoder of a run: a plain `nn.Module` from normalised pixels to features, with its `preprocess`.

    Args:
        run: a run's folder.
        reading: which vector of an image, see `measure/readings.py`; auto takes the class token where there is one.

    Raises:
        UserError: when the run is not finished, or a single tensor does not match.
    """
    folder = Path(run)
    config = configuration_of(folder).config
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{folder}: has no model.safetensors yet; finish the run with --resume")
    backbone = make_backbone(config, 0.0)
    check_heads(folder, backbone.model_args.get("num_heads"))
    try:
        backbone.model.load_state_dict(load_file(weights))
    except Exception as error:
        # The first line of torch's error says only that there is one.
        why = next((line.strip() for line in str(error).splitlines()[1:]), str(error))
        raise UserError(f"{weights}: does not fit the run's config.yaml ({why})") from error
    encoder = make_encoder(config, backbone)
    mean, std = statistics_of(config)
    chosen = Encoder(backbone, encoder.size, mean, std, reading=reading)
    return chosen.to(device_of(device)).eval()


def configuration_of(run: Path) -> Resolved:
    """What a run was made with.

    Raises:
        UserError: when the folder is no run.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: is no run folder (it has no config.yaml)")
    return configuration.from_yaml(run / "config.yaml")


def canvases_for(
    encoders: Sequence[Encoder],
    data: Any,
    labels: str = "auto",
    enlarged: float = BORDER,
    cutting: Cutting = WHOLE,
) -> Canvases:
    """Canvases large enough for the test transform of every encoder, or for so many times its size.

    Args:
        cutting: the run's, of tiles, overlap and ink.
    """
    side = max(round(max(encoder.size) * enlarged) for encoder in encoders)
    return open_canvases(cut(find_images(data, labels=labels), cutting), side, channels=encoders[0].channels)


def statistics_of(config: Config) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that a settled run normalises with, one number a channel."""
    assert config.images.mean != "auto"
    assert config.images.std != "auto"
    return config.images.mean, config.images.std
