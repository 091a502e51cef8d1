"""`embed` gives every reading that evaluation knows, as evaluation reads it, from one list."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from click.testing import CliRunner

import belvedere
from belvedere.cli import app
from belvedere.measure.features import extract
from belvedere.measure.readings import Reading, possible_readings
from belvedere.opened import canvases_for
from newcomer import TINY, photo_folder

WIDTH = 32
WIDTHS = {"auto": 1, "cls": 1, "avg": 1, "cls+avg": 2, "last4": 4, "last4+avg": 5, "cls+gem": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photo_folder(tmp_path_factory.mktemp("readings") / "photos")


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    """A run of a network with four blocks, which has every reading."""
    settings = {**TINY, "backbone.width": WIDTH, "backbone.depth": 4, "train.steps": 2}
    return belvedere.pretrain(photos, "simclr", out=photos.parent / "run", device="cpu", settings=settings)


def test_every_reading_of_evaluation_can_be_embedded(run: Path, photos: Path) -> None:
    encoder = belvedere.load(run)
    assert {"auto", *possible_readings(encoder.backbone)} == set(get_args(Reading)) == set(WIDTHS)
    canvases = canvases_for([encoder], photos)
    for reading, parts in WIDTHS.items():
        found = belvedere.embed(run, photos, reading=reading, device="cpu")
        assert found.shape == (len(canvases), parts * WIDTH)
        assert np.array_equal(found, extract(encoder.reading_as(reading), canvases).numpy())


def test_the_command_line_offers_the_same(run: Path, photos: Path, tmp_path: Path) -> None:
    (option,) = (one for one in app.commands["embed"].params if one.name == "reading")
    assert tuple(option.type.to_info_dict()["choices"]) == get_args(Reading)
    words = ["embed", str(run), str(photos), "--reading", "last4", "--out", str(tmp_path / "x.npz")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert np.load(tmp_path / "x.npz")["features"].shape[1] == 4 * WIDTH
