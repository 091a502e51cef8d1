"""The main job on large images: one setting of the run, and every command cuts alike."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import tifffile
from click.testing import CliRunner
from PIL import Image
from skimage import data

import belvedere
from belvedere.cli import app
from belvedere.config import resolve
from belvedere.errors import UserError
from belvedere.images.cutting import Cutting
from belvedere.images.tiles import count_tiles
from belvedere.sklearn import EncoderTransformer
from newcomer import TINY
from tiny import read_metrics

TILE = 192
SETTINGS = [f"{key}={value}" for key, value in (TINY | {"images.tile": TILE, "train.batch": 16}).items()]


def command(*words: object) -> str:
    """What `belvedere WORDS` prints; it must succeed."""
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both halves of three large pictures, in class folders, in three formats; one lies on its side."""
    folder = tmp_path_factory.mktemp("large") / "slides"
    for name, picture in {"eye": data.retina(), "sky": data.hubble_deep_field()}.items():
        (folder / name).mkdir(parents=True)
        middle = picture.shape[1] // 2
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.ascontiguousarray(picture[:, :middle])).save(folder / name / "left.png")
        Image.fromarray(np.rot90(picture[:, middle:])).save(folder / name / "right.jpg", exif=exif)
    (folder / "tissue").mkdir()
    tissue = data.immunohistochemistry()
    tifffile.imwrite(folder / "tissue/left.tif", tissue[:, :256], tile=(64, 64), compression="zlib", photometric="rgb")
    np.save(folder / "tissue/right.npy", tissue[:, 256:])
    return folder


@pytest.mark.slow
def test_every_command_cuts_as_the_run_says(slides: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "vectors.npz"
    sizes = {"eye": (1411, 705), "sky": (872, 500), "tissue": (512, 256)}
    most = sum(2 * count_tiles(size, Cutting(TILE)) for size in sizes.values())
    told = command("check", slides, "--tile", TILE)
    command("pretrain", slides, "--recipe", "simclr", "--out", run, "--device", "cpu", *SETTINGS)
    with (run / "skipped.csv").open(newline="") as file:
        empty = list(csv.DictReader(file))
    assert 0 < len(empty) < 10  # the corners of the eye's pictures
    assert all(row["path"].startswith("eye/") and row["reason"].startswith("empty tile") for row in empty)
    assert f"{most - len(empty)} usable tiles of {TILE} px, {len(empty)} set aside" in told
    steps = len(read_metrics(run))
    command("pretrain", slides, "--out", run, "--resume", "--device", "cpu", "--epochs", 4)
    assert len(read_metrics(run)) > steps
    assert "eye/left.png#y0x" in (run / "report.html").read_text()

    command("embed", run, slides, "--out", out, "--device", "cpu")
    with np.load(out) as found:
        assert len(found["names"]) == most - len(empty) == len(found["features"])
        assert {name.partition("#")[0] for name in found["names"]} == {
            f"{folder}/{file}"
            for folder, files in {
                "eye": ("left.png", "right.jpg"),
                "sky": ("left.png", "right.jpg"),
                "tissue": ("left.tif", "right.npy"),
            }.items()
            for file in files
        }
        assert (found["labels"] == [{"e": 0, "s": 1, "t": 2}[name[0]] for name in found["names"]]).all()

    results = belvedere.evaluate(
        run, slides, protocols=["knn", "finetune"], device="cpu", floors=["pixels"], settings={"finetune.epochs": 1}
    )
    assert results[0].settings["split"].startswith("a tenth of the groups")
    assert results[0].settings["train"]["images"] + results[0].settings["test"]["images"] == most - len(empty)
    said = belvedere.predict(run / "classifier", slides / "sky", device="cpu")
    assert len(said.names) == 2 * count_tiles(sizes["sky"], Cutting(TILE))
    assert belvedere.analyze(run, device="cpu", images=16).is_file()
    command("views", slides, f"images.tile={TILE}", "views.size=32", "--out", tmp_path / "views.png")

    transformer = EncoderTransformer(run=run, device="cpu").fit([slides / "sky/left.png"])
    assert transformer.transform(data.retina()[None, 400:500, 400:500]).shape[0] == 1
    with pytest.raises(UserError, match="tiles of 192 px"):
        transformer.transform([slides / "sky/left.png"])


@pytest.mark.slow
def test_satellite_scenes_from_folder_to_report(tmp_path: Path) -> None:
    rng, run = np.random.default_rng(0), tmp_path / "run"
    (tmp_path / "scenes").mkdir()
    for i, picture in enumerate((data.hubble_deep_field(), data.retina())):
        six = np.concatenate([picture, picture[::-1, ::-1]], axis=2).astype(np.uint16) * 12
        six += rng.integers(0, 12, six.shape, np.uint16)  # what 8 bits would lose
        planes = np.moveaxis(six, -1, 0)
        tags = [(42113, "s", 0, "0", True)]
        tifffile.imwrite(
            tmp_path / f"scenes/{i}.tif",
            planes,
            planarconfig="separate",
            photometric="minisblack",
            tile=(128, 128),
            compression="zlib",
            extratags=tags,
            metadata=None,
        )
    command("pretrain", tmp_path / "scenes", "--recipe", "dino", "--out", run, "--device", "cpu", *SETTINGS)
    text = (run / "config.yaml").read_text()
    assert "images.tile: 192" in text
    assert len(belvedere.load(run).mean) == 6
    page = (run / "report.html").read_text()
    assert page.count("<img") >= 3
    found = belvedere.embed(run, tmp_path / "scenes", device="cpu")
    assert found.shape[0] > 60
    assert np.isfinite(found).all()


def test_the_setting_is_checked() -> None:
    for wrong in (-1, 31):
        with pytest.raises(UserError, match=r"images\.tile: must be 0 for whole images, or at least 32 pixels"):
            resolve("dino", {"images.tile": wrong})
    assert resolve("dino", {"images.tile": 512}).config.images.tile == 512
    assert resolve("dino", {}).config.images.tile == 0
