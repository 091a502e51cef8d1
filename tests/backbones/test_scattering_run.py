"""A whole run of ScatSimCLR with the jigsaw: everything after it works without timm, and timm is refused in words."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import belvedere
from belvedere import api
from belvedere.errors import UserError
from belvedere.images.source import find_images
from tiny import MACHINE, tiles

NETWORK = {"backbone.name": "scatnet8_l2_j3", "views.size": 32, "task.jigsaw.hidden": 32, "objective.hidden": 64}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scatter") / "run"
    settings = {**NETWORK, **MACHINE, "tasks": ["jigsaw"], "train.batch": 8, "train.steps": 2, "monitor.probe": 16}
    return api.pretrain(tiles(24, (32, 32)), "scatsimclr", out=out, device="cpu", settings=settings)


def test_the_run_is_finished_and_loads(run: Path) -> None:
    assert json.loads((run / "config.json").read_text())["architecture"] == "scatnet8_l2_j3"
    encoder = belvedere.load(run)
    images = torch.from_numpy(tiles(3, (32, 32)))
    assert encoder(encoder.preprocess(images)).shape == (3, 2048)
    found = api.embed(run, tiles(5, (32, 32)), device="cpu")
    assert found.shape == (5, 2048)
    assert np.isfinite(found).all()


def test_the_report_shows_coefficients_and_boards_and_why_there_is_no_attention(run: Path) -> None:
    pictures = {one["name"]: one for one in json.loads((run / "pictures" / "pictures.json").read_text())["pictures"]}
    for name in ("scattering", "jigsaw", "neighbours", "pca"):
        assert (run / "pictures" / pictures[name]["file"]).stat().st_size > 1000
    assert "scatnet8_l2_j3 has no attention" in pictures["attention"]["skipped"]
    page = api.report(run).read_text()
    assert "belvedere.load" in page
    assert "timm alone" not in page


def test_timm_is_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="export timm: scatnet8_l2_j3 is no network that timm has"):
        api.export(run, tmp_path / "timm")


@pytest.mark.slow
def test_it_is_measured_beside_its_floors(run: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    from PIL import Image

    for i, image in enumerate(tiles(40, (32, 32))):
        Image.fromarray(image).save(tmp_path / "ab"[i % 2] / f"{i}.png")
    assert find_images(str(tmp_path)).labels is not None
    [result] = api.evaluate(run, str(tmp_path), protocols=["knn"], out=tmp_path / "numbers.json", device="cpu")
    assert "error" not in result.settings


@pytest.mark.slow
def test_a_run_goes_on_from_its_weights(run: Path, tmp_path: Path) -> None:
    settings = {**NETWORK, **MACHINE, "tasks": [], "train.batch": 8, "train.steps": 1, "monitor.probe": 16}
    del settings["task.jigsaw.hidden"]
    settings |= {"backbone.name": "auto", "train.lr": 1e-12}
    api.pretrain(tiles(16, (32, 32)), "simclr", out=tmp_path / "on", init=str(run), device="cpu", settings=settings)
    old, new = (belvedere.load(folder).backbone for folder in (run, tmp_path / "on"))
    for name, p in old.named_parameters():
        torch.testing.assert_close(dict(new.named_parameters())[name], p, atol=1e-6, rtol=0)
    with pytest.raises(UserError, match="the first layer of a scattering network cannot be adapted"):
        api.pretrain(
            tiles(16, (32, 32), 1),
            "simclr",
            out=tmp_path / "gray",
            init=str(run),
            device="cpu",
            settings={**settings, "images.channels": 1},
        )
