"""Triplets and their numbers."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import LARGEST
from belvedere.report.tasks.reconstruct import draw, masked_errors


def shown(canvases: Canvases, quality: float) -> dict[str, torch.Tensor]:
    """Right halves dropped; painted right but for a share of the contrast."""
    original = (torch.as_tensor(canvases.batch(np.arange(16))).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    mask = torch.zeros(16, 1, 32, 32)
    mask[..., 16:] = 1
    return {
        "original": original,
        "corrupted": original * (1 - mask),
        "reconstructed": quality * original,
        "mask": mask,
    }


def test_errors_are_of_the_corrupted_pixels(make_canvases: Callable[..., Canvases]) -> None:
    found = shown(make_canvases(), 0.75)
    errors = masked_errors(found)
    right = found["original"][..., 16:]
    torch.testing.assert_close(errors["network"], 0.25 * right.abs().mean((1, 2, 3)))
    torch.testing.assert_close(errors["copy"], right.abs().mean((1, 2, 3)))
    mean = found["original"].mean((2, 3), keepdim=True)
    torch.testing.assert_close(errors["mean"], (right - mean).abs().mean((1, 2, 3)))


@pytest.mark.parametrize(("quality", "verdict"), [(0.9, "better than both"), (-1.0, "no better")])
def test_the_picture_has_its_words_and_numbers(
    tmp_path: Path,
    make_canvases: Callable[..., Canvases],
    make_encoder: Callable[..., Encoder],
    quality: float,
    verdict: str,
) -> None:
    found = shown(make_canvases(), quality)
    (picture,) = draw(tmp_path, found, make_encoder())
    assert verdict in picture.caption
    assert "50 % of the pixels" in picture.alt
    assert (tmp_path / picture.file).stat().st_size <= LARGEST
    assert np.ptp(np.asarray(Image.open(tmp_path / picture.file).convert("RGB"))) > 100
    rows = list(csv.DictReader((tmp_path / picture.table).open()))
    assert len(rows) == 16
    assert [float(row["network"]) for row in rows] == pytest.approx(masked_errors(found)["network"].tolist(), rel=1e-4)
    assert {float(row["masked"]) for row in rows} == {0.5}
