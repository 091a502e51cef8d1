"""The picture of scattering coefficients: its files, and energies that follow the direction of stripes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.measure.encoder import Encoder
from belvedere.report.scattering import degrees, draw_scattering


def encoder_of(name: str, **options: int) -> Encoder:
    backbone = build_backbone(name, size=(32, 32), channels=1, seed=0, **options)
    return Encoder(backbone, (32, 32), [0.5], [0.25])


def test_stripes_have_their_direction(tmp_path: Path) -> None:
    wave = torch.sin(torch.arange(32) * 1.6).expand(32, 32)
    pixels = torch.stack([wave, wave.T]).unsqueeze(1)
    picture = draw_scattering(tmp_path, encoder_of("scatnet8_l4_j2"), pixels, ["upright", "flat"])
    assert Image.open(tmp_path / picture.file).size[0] > 500
    rows = list(csv.DictReader((tmp_path / picture.table).open()))
    assert len(rows) == 2 * 2 * 4
    strongest = {
        name: max((row for row in rows if row["image"] == name), key=lambda row: float(row["energy"]))
        for name in ("upright", "flat")
    }
    angles = [float(strongest[name]["angle_degrees"]) for name in ("upright", "flat")]
    assert abs(angles[0] - angles[1]) == 90
    assert "25 fixed maps" in picture.caption


def test_other_networks_have_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no scattering coefficients"):
        draw_scattering(tmp_path, encoder_of("vit_tiny", patch=8, width=32, depth=1), torch.zeros(1, 1, 32, 32), ["x"])


@pytest.mark.parametrize("angles", [4, 8])
def test_directions_are_those_in_which_an_image_changes(angles: int) -> None:
    """Waves along each direction, clockwise from the right, answer at the wavelet that is called so."""
    size = 32
    network = build_backbone(f"scatnet8_l{angles}", size=(size, size), channels=1)
    y, x = np.mgrid[:size, :size]
    for index in range(angles):
        turn = np.deg2rad(degrees(index, angles))
        wave = np.sin(2 * np.pi * 0.17 * (x * np.cos(turn) + y * np.sin(turn)))
        coefficients = network.coefficients(torch.from_numpy(wave[None, None]).float())
        first = coefficients[0, 0, 1 : 1 + 2 * angles].unflatten(0, (2, angles)).square().sum((0, 2, 3))
        assert int(first.argmax()) == index
