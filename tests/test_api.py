"""The Python interface: the same names as the command line, on folders, arrays and data sets."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import Dataset

import belvedere
from belvedere import config
from newcomer import TINY, photo_folder
from shapes import draw_shapes
from tiny import tiles


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 photographs in two class folders, and a broken one."""
    folder = photo_folder(tmp_path_factory.mktemp("api") / "photos")
    (folder / "cats" / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path) -> Path:
    """A finished run on the photographs."""
    return belvedere.pretrain(photos, "dino", out=photos.parent / "run", device="cpu", settings=TINY)


class Tiles(Dataset[tuple[Image.Image, int]]):
    """A map-style torch data set."""

    classes = ("even", "odd")

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(tiles(24)[index]), index % 2


@pytest.mark.parametrize(
    ("given", "code", "found"),
    [
        ({}, "import belvedere", "passive"),
        ({"OMP_WAIT_POLICY": "active"}, "import belvedere", "active"),
        # Too late for this process: what is not obeyed is not written either.
        ({}, "import sys; sys.modules['torch'] = sys; import belvedere", "None"),
    ],
)
def test_idle_threads_do_not_spin_unless_the_user_says_so(given: dict[str, str], code: str, found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | given
    code += "; import os; print(os.environ.get('OMP_WAIT_POLICY'))"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found


def test_all_names_of_the_package_work() -> None:
    for name in belvedere.__all__:
        assert getattr(belvedere, name) is not None
    with pytest.raises(AttributeError, match="nosuch"):
        _ = belvedere.nosuch


def test_pretrain_leaves_the_generators_and_warnings_alone(photos: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), list(warnings.filters)
    belvedere.pretrain(photos, "simclr", out=tmp_path / "run", device="cpu", settings={**TINY, "views.locals": 0})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert list(warnings.filters) == before[2]


DATA = {
    "colour": lambda: tiles(24),
    "gray": lambda: tiles(24)[..., 0],
    "five channels": lambda: tiles(24, channels=5),
    "data set": Tiles,
}


@pytest.mark.parametrize(("kind", "channels"), list(zip(DATA, (3, 1, 5, 3), strict=True)))
def test_pretrain_on_arrays_and_data_sets(kind: str, channels: int, tmp_path: Path) -> None:
    data = DATA[kind]()
    folder = belvedere.pretrain(data, out=tmp_path / "run", device="cpu", settings=TINY)
    assert config.from_yaml(folder / "config.yaml").config.images.channels == channels
    assert belvedere.load(folder).channels == channels
    assert belvedere.embed(folder, data, device="cpu").shape == (24, 32)


def test_short_names_are_the_flags_of_the_command_line(photos: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in TINY.items() if key not in ("train.steps", "views.locals")}
    folder = belvedere.pretrain(
        photos, epochs=0.5, objective="simclr", backbone="vit_small", out=tmp_path / "run", settings=settings
    )
    stored = config.from_yaml(folder / "config.yaml")
    assert stored.config.objective.name == "simclr"
    assert stored.config.backbone.name == "vit_small"
    assert stored.config.train.steps == 3
    assert stored.origin["train.epochs"] == "command line"
    with pytest.raises(belvedere.UserError, match=r"pretrain\(epoch=...\): did you mean 'epochs'\?"):
        belvedere.pretrain(photos, epoch=3)


def test_the_runs_folder_has_a_name_of_its_own(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = belvedere.pretrain(photos, settings={**TINY, "train.steps": 1})
    second = belvedere.pretrain(photos, settings={**TINY, "train.steps": 1})
    assert (first, second) == (Path("runs/photos-simclr"), Path("runs/photos-simclr-2"))


def test_the_file_of_a_run_is_a_recipe_that_makes_it_again(photos: Path, run: Path, tmp_path: Path) -> None:
    again = belvedere.pretrain(photos, run / "config.yaml", out=tmp_path / "again", device="cpu")
    stored = config.from_yaml(run / "config.yaml").config
    assert config.from_yaml(again / "config.yaml").config == stored
    assert (again / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()


def test_load_gives_the_features_of_timms_own_model(run: Path) -> None:
    encoder = belvedere.load(run)
    assert isinstance(encoder, torch.nn.Module)
    assert not encoder.training
    model = timm.create_model(f"local-dir:{run}", pretrained=True).eval()
    pixels = encoder.preprocess(torch.from_numpy(tiles(8)))
    assert pixels.shape == (8, 3, 32, 32)
    with torch.no_grad():
        ours, theirs = encoder(pixels), model(pixels)
    assert ours.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("reading", "width"), [("cls", 32), ("avg", 32), ("cls+avg", 64)])
def test_load_reads_tokens_as_asked(run: Path, reading: Any, width: int) -> None:
    assert belvedere.load(run, reading=reading).dim == width


def test_embed_writes_names_labels_and_skipped(photos: Path, run: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    features = belvedere.embed(run, photos, out=tmp_path / "x.npz", device="cpu")
    assert features.shape == (48, 32)
    assert features.dtype == np.float32
    stored = np.load(tmp_path / "x.npz")
    names = sorted(str(file.relative_to(photos)) for file in photos.rglob("*.png") if file.stem != "broken")
    assert np.array_equal(stored["features"], features)
    assert stored["names"].tolist() == names
    assert [stored["classes"][label] for label in stored["labels"]] == [name.split("/")[0] for name in names]
    assert stored["skipped"].tolist() == ["cats/broken.png"]

    belvedere.embed(run, photos, out=tmp_path / "x.csv", device="cpu")
    with (tmp_path / "x.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == names
    assert [row["label"] for row in rows] == [name.split("/")[0] for name in names]
    assert np.array_equal(np.array([[row[f"f{i}"] for i in range(32)] for row in rows], np.float32), features)
    assert (tmp_path / "x.skipped.csv").read_text().splitlines()[1].startswith("cats/broken.png,")

    belvedere.embed(run, photos, out=tmp_path / "x.parquet", device="cpu")
    table = parquet.read_table(tmp_path / "x.parquet").to_pydict()
    assert table["path"] == names
    assert table["label"] == [name.split("/")[0] for name in names]
    assert np.array_equal(np.array(table["features"], np.float32), features)


def test_embed_does_not_depend_on_labels_or_order(photos: Path, run: Path) -> None:
    listed = photos.parent / "list.txt"
    names = sorted(str(file) for file in photos.rglob("*.png") if file.stem != "broken")
    listed.write_text("\n".join(reversed(names)))
    np.testing.assert_allclose(
        belvedere.embed(run, listed, device="cpu")[::-1], belvedere.embed(run, photos, device="cpu"), atol=1e-5
    )


def test_evaluate_returns_what_it_writes(photos: Path, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub" / "numbers.json"
    result, probe = belvedere.evaluate(run, photos, out=out, device="cpu")
    assert (result.protocol, probe.protocol) == ("knn", "logistic")
    assert {"run", "pixels", "untrained", "majority"} <= result.metrics.keys()
    assert (tmp_path / "sub" / "numbers.json").is_file()
    (apart,) = belvedere.evaluate(run, photos, test=photos, protocols=["knn"], out=tmp_path / "b.json", device="cpu")
    assert apart.settings["split"] == "the test images given"
    assert apart.metrics["pixels"]["top1"].value == 100.0  # every test image is a training image here
    with pytest.raises(
        belvedere.UserError, match=rf"^--out .*: its pictures go into {photos}, which holds other files; "
    ):
        belvedere.evaluate(run, photos, out=f"{photos}.json", device="cpu")


def test_evaluate_reads_masks_and_their_splits(run: Path, tmp_path: Path) -> None:
    """ADE20K's folders: annotations beside images, training and validation in both, id 0 for unlabelled."""
    for number, tile in enumerate(tiles(12)):
        split = "validation" if number % 4 == 3 else "training"
        for folder, picture in (("images", tile), ("annotations", 1 + (tile[..., 0] > 99).astype(np.uint8))):
            (tmp_path / "set" / folder / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(tmp_path / "set" / folder / split / f"{number}.png")
    reduced = {"masks.reduce_zero_label": True}
    out = tmp_path / "numbers.json"
    (result,) = belvedere.evaluate(run, tmp_path / "set", out=out, device="cpu", settings=reduced)
    assert result.protocol == "seg_knn"
    assert (result.settings["train"]["images"], result.settings["test"]["images"]) == (9, 3)
    assert list(result.settings["class_iou"]["run"]) == ["0", "1"]
    assert (tmp_path / "numbers" / "seg_knn.webp").is_file()
    assert result.chosen["on"] == "1 of 9 training images"
    rows = [f"{'validation' if i % 4 == 3 else 'training'}/{i}.png,clip{i // 4}" for i in range(12)]
    clips = tmp_path / "clips.csv"
    clips.write_text("\n".join(["path,group", *rows]))
    (result,) = belvedere.evaluate(
        run, tmp_path / "set", labels=str(clips), out=tmp_path / "clips.json", device="cpu", settings=reduced
    )
    assert result.chosen["on"] == "3 of 9 training images, whole groups"
    with pytest.raises(
        belvedere.UserError, match=r"unknown key 'masks\.reduce': did you mean 'masks\.reduce_zero_label'"
    ):
        belvedere.evaluate(run, tmp_path / "set", out=out, device="cpu", settings={"masks.reduce": True})
    Image.fromarray(tiles(1)[0, :9, :9, 0]).save(tmp_path / "set" / "annotations" / "training" / "0.png")
    with pytest.raises(belvedere.UserError, match=r"0\.png: is 9 x 9, its image 40 x 40"):
        belvedere.evaluate(run, tmp_path / "set", out=out, device="cpu")


def test_evaluate_says_which_protocol_failed(
    photos: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from belvedere.evaluate.protocols.knn import Knn

    def fail(*_: Any) -> None:
        raise ArithmeticError("no such luck")

    monkeypatch.setattr(Knn, "run", fail)
    with pytest.raises(belvedere.UserError, match=r"failed: knn \(ArithmeticError: no such luck\)"):
        belvedere.evaluate(run, photos, out=tmp_path / "numbers.json", device="cpu")


def test_export_opens_where_belvedere_cannot_be_imported(run: Path, tmp_path: Path) -> None:
    folder = belvedere.export(run, tmp_path / "exported")
    encoder = belvedere.load(run)
    pixels = encoder.preprocess(torch.from_numpy(tiles(4)))
    np.save(tmp_path / "pixels.npy", pixels.numpy())
    code = (
        "import sys, numpy, torch, timm; sys.modules['belvedere'] = None\n"
        "model = timm.create_model(f'local-dir:{sys.argv[1]}', pretrained=True).eval()\n"
        "with torch.no_grad(): numpy.save(sys.argv[3], model(torch.from_numpy(numpy.load(sys.argv[2]))).numpy())"
    )
    files = [str(folder), str(tmp_path / "pixels.npy"), str(tmp_path / "features.npy")]
    subprocess.run([sys.executable, "-c", code, *files], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "features.npy"), encoder(pixels).numpy(), rtol=0, atol=1e-5)


def test_report_and_check(photos: Path, run: Path) -> None:
    (run / "report.html").unlink()
    assert belvedere.report(run) == run / "report.html"
    assert (run / "report.html").is_file()
    found = belvedere.check(photos)
    assert found.count == 48
    assert [item.name for item in found.skipped] == ["cats/broken.png"]
    assert found.classes == {"cats": 24, "dogs": 24}


@pytest.mark.slow
def test_a_run_of_a_users_own_objective_is_read_without_its_file(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "own_simclr.py"
    file.write_text("from belvedere.objectives.simclr import SimClr\nclass Mine(SimClr):\n    pass\n")
    code = (
        "import belvedere, json, sys\n"
        "belvedere.pretrain(sys.argv[1], 'simclr', objective='own_simclr', plugin=[sys.argv[2]], out=sys.argv[3], "
        "device='cpu', settings=json.loads(sys.argv[4]))"
    )
    words = json.dumps({**TINY, "views.locals": 0})
    subprocess.run([sys.executable, "-c", code, str(photos), str(file), str(tmp_path / "run"), words], check=True)
    file.unlink()
    assert belvedere.embed(tmp_path / "run", photos, device="cpu").shape == (48, 32)
    assert belvedere.report(tmp_path / "run").is_file()


def test_given_weights_stand_beside_the_run(photos: Path, run: Path, tmp_path: Path) -> None:
    """Themselves exported and read again they give the same numbers; another size is another encoder."""
    exported = belvedere.export(run, tmp_path / "exported")
    baselines = [f"same=timm:local-dir:{exported}", f"again={run}", f"large=timm:local-dir:{exported}@64"]
    (result,) = belvedere.evaluate(
        run, photos, protocols=["knn"], baselines=baselines, out=tmp_path / "b.json", device="cpu"
    )
    assert {"run", "same", "again", "large", "pixels"} <= result.metrics.keys()
    assert result.metrics["same"]["top1"] == result.metrics["run"]["top1"] == result.metrics["again"]["top1"]
    assert result.settings["baselines"]["large"]["size"] == [64, 64]
    for word, said in (("timm:nope", "--baseline timm:nope"), ("x=timm:vit_tiny@big", "after @ is a size")):
        with pytest.raises(belvedere.UserError, match=said):
            belvedere.evaluate(run, photos, protocols=["knn"], baselines=[word], device="cpu")


def test_coco_s_images_without_objects_are_left_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its test images have no file of annotations: they are neither trained on nor the test."""
    root = draw_shapes(tmp_path / "coco", 6, 3)
    shutil.copytree(root / "images" / "train", root / "images" / "test2017")
    (result,) = belvedere.evaluate(
        run, root, protocols=["duplicates"], paper_protocol=True, floors=(), out=tmp_path / "d.json", device="cpu"
    )
    assert (result.settings["train"]["images"], result.settings["test"]["images"]) == (6, 3)
    told = capsys.readouterr().out
    assert "6 images of images/test2017 are left out: there is no annotations/instances_test2017.json" in told
    # Nothing was chosen, so nothing was chosen on the test images.
    assert "selected on the test images" not in told


def test_papers_choose_on_the_test_images(photos: Path, run: Path, tmp_path: Path) -> None:
    (result,) = belvedere.evaluate(
        run, photos, protocols=["knn"], paper_protocol=True, out=tmp_path / "p.json", device="cpu"
    )
    assert "selected on test" in result.chosen["on"]
    k, grid = result.chosen["k"]["run"], result.chosen["accuracy"]["run"]
    assert result.metrics["run"]["top1"].value == pytest.approx(grid[str(k)])
    assert result.settings["selected_on_test"]
