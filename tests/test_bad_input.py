"""Bad input: one clear line, exit code 2, and nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from belvedere import UserError, api, embedding
from newcomer import WORDS, belvedere, finished_run, photo_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `photos` and a finished run `run` on them."""
    place = tmp_path_factory.mktemp("bad")
    finished_run(place)
    return place


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for the empty lock."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refused(place: Path, data: Path, *words: object, out: Path | None = None) -> str:
    """The one line with which `pretrain` refuses; it must leave `out` as it was."""
    out = out or place / "new"
    before = snapshot(out) if out.is_dir() else None
    told = belvedere(place, "pretrain", data, "--out", out, *WORDS, *words).refusal()
    assert (snapshot(out) if out.is_dir() else None) == before
    return told


# --- images -----------------------------------------------------------------------------------------------------------


def test_missing_folder(place: Path) -> None:
    told = refused(place, place / "nowhere")
    assert told == (
        f"{place / 'nowhere'}: no such file or folder; "
        "give a folder of images, a .txt list, a glob, .npy, .npz, .tar or .parquet"
    )


def test_empty_folder(place: Path, tmp_path: Path) -> None:
    assert refused(place, tmp_path).startswith(f"{tmp_path}: no images found; looked for .jpg")


def test_one_image(place: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "only.png")
    assert refused(place, tmp_path) == f"{tmp_path}: only 1 usable image; at least 2 are needed"
    assert "one single image; give the folder it lies in" in refused(place, tmp_path / "only.png")


def test_all_images_broken(place: Path, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_text("junk")
    told = refused(place, tmp_path)
    assert told == f"{tmp_path}: none of 4 sampled images can be read; 0.jpg: not an image in a known format"


def test_most_images_broken(place: Path, tmp_path: Path) -> None:
    photo_folder(tmp_path, 4)
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_text("junk")
    assert "6 of 10 images cannot be used: 6 x not an image in a known format" in refused(place, tmp_path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train.batch=49"], "train.batch=49: larger than the 48 images; make it smaller"),
        (
            ["views.size=128"],
            "views.size=128: more than twice the largest canvas (40 x 40 px); make views.size smaller",
        ),
        (["views.local_size=88"], "views.local_size=88: more than twice the largest canvas (37 x 37 px)"),
        (["images.canvas=12"], "views.size=32: more than twice the largest canvas (12 x 12 px)"),
        (["views.size=30"], "image size 30 x 30: backbone.patch 8 does not divide it"),
        (["backbone.heads=3"], "backbone.width 32: backbone.heads 3 does not divide it"),
        (["images.mean=[0.5,0.5]"], "images.mean: has length 2, but the images have 3 channels"),
        (["images.labels=nope.csv"], "labels: nope.csv cannot be read"),
        (["objective.temprature=3"], "unknown key 'objective.temprature': did you mean 'objective.temperature'?"),
        (["--backbone", "vit_smal"], "unknown backbone.name 'vit_smal': did you mean 'vit_small'?"),
        (["--backbone", "convnext_tiny"], "backbone.name 'convnext_tiny': only timm's"),
    ],
)
def test_settings_that_do_not_fit_the_images(place: Path, words: list[str], told: str) -> None:
    assert refused(place, place / "photos", *words).startswith(told)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none(place: Path) -> None:
    told = refused(place, place / "photos", "--device", "cuda")
    assert told == "--device cuda: not on this machine; use --device auto"


# --- the output folder ------------------------------------------------------------------------------------------------


def test_folder_of_another_run(place: Path) -> None:
    told = refused(place, place / "photos", out=place / "run")
    assert told == f"--out {place / 'run'}: holds a run; continue it with --resume, or choose another --out"


def test_folder_with_foreign_files(place: Path) -> None:
    told = refused(place, place / "photos", out=place / "photos")
    assert told == f"--out {place / 'photos'}: holds other files; choose an empty or a new folder"


def test_out_is_a_file_or_below_one(place: Path) -> None:
    file = place / "file"
    file.write_text("")
    assert refused(place, place / "photos", out=file) == f"--out {file}: is a file"
    assert refused(place, place / "photos", out=file / "run").startswith(f"--out {file / 'run'}: ")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory of its own; skips where mounting is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_read_only_output(place: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=10m") as disk:
        shutil.copytree(place / "run", disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        told = refused(place, place / "photos", out=disk / "new")
        assert told == f"--out {disk / 'new'}: {disk} is read-only; choose another --out"
        why = "cannot be written (Read-only file system)"
        embedded = belvedere(place, "embed", place / "run", place / "photos", "--out", disk / "x.npz")
        assert embedded.refusal() == f"{disk / 'x.npz'}: {why}; what was there before is kept"
        exported = belvedere(place, "export", place / "run", "--out", disk / "model")
        assert exported.refusal() == f"{disk / 'model'}: {why}"
        reported = belvedere(place, "report", disk / "run")
        assert reported.refusal() == f"{disk / 'run' / 'report.html'}: {why}; what was there before is kept"
        evaluated = belvedere(place, "evaluate", disk / "run", place / "photos", "--protocol", "knn")
        assert evaluated.refusal() == f"{disk / 'run'}: cannot be written; name a file elsewhere with --out"
        elsewhere = ["--protocol", "knn", "--out", tmp_path / "x.json"]
        evaluated = belvedere(place, "evaluate", disk / "run", place / "photos", *elsewhere)
        assert evaluated.code == 0, evaluated.text
        assert f"{disk / 'run'} cannot be written, so features are not kept there" in evaluated.text
        assert (tmp_path / "x.json").is_file()


def test_evaluate_on_a_full_disk(place: Path, tmp_path: Path) -> None:
    """Neither the cache of features nor the results can be written."""
    with mounted(tmp_path / "disk", "size=10m") as disk:
        run = shutil.copytree(place / "run", disk / "run")
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        evaluated = belvedere(place, "evaluate", run, place / "photos", "--protocol", "knn")
        file = run / "evaluation.npz"
        assert evaluated.refusal() == f"{file}: cannot be written (the disk is full); what was there before is kept"
        assert list((run / "features").iterdir()) == []


def test_a_full_disk_under_the_cache(place: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=100k") as disk:
        (place / "cache").rename(place / "cache_before")
        (place / "cache").symlink_to(disk)
        try:
            told = refused(place, place / "photos")
        finally:
            (place / "cache").unlink()
            (place / "cache_before").rename(place / "cache")
        assert "the canvas cache cannot be written to" in told
        assert "(No space left on device); free some space" in told
        assert [file for file in disk.rglob("*") if file.is_file() and file.stat().st_size] == []


def test_a_full_disk_before_training_leaves_no_folder(place: Path, tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=64k") as disk:
        told = refused(place, place / "photos", out=disk / "run")
        assert told == f"{disk / 'run'}: cannot be written (the disk is full)"
        assert list(disk.iterdir()) == []


def test_a_full_disk_while_training_keeps_what_can_be_continued(place: Path, tmp_path: Path) -> None:
    views = (place / "run" / "views.png").stat().st_size
    with mounted(tmp_path / "disk", f"size={views // 1024 + 200}k") as disk:
        said = belvedere(place, "pretrain", place / "photos", "--out", disk / "run", *WORDS)
        lines = said.text.strip().splitlines()
        assert said.code == 2, said.text
        assert lines[-1] == (
            f"belvedere: {disk / 'run' / 'checkpoint.pt'}: cannot be written (the disk is full); "
            "what was there before is kept"
        )
        assert "Traceback" not in said.text
        assert not list((disk / "run").glob("*checkpoint*"))
        shutil.copytree(disk / "run", tmp_path / "saved")
    again = belvedere(place, "pretrain", place / "photos", "--out", tmp_path / "saved", "--resume")
    assert again.code == 0, again.text
    assert (tmp_path / "saved" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_file_that_may_not_grow_is_told_without_a_mount(place: Path, tmp_path: Path) -> None:
    """The same as a full disk where no disk can be mounted: files may have 40 KiB."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_960, 40_960))

    words = [
        sys.executable,
        "-m",
        "belvedere",
        "pretrain",
        str(place / "photos"),
        "--out",
        str(tmp_path / "run"),
        *WORDS,
    ]
    environment = {**os.environ, "BELVEDERE_CACHE": str(place / "cache")}
    done = subprocess.run(words, preexec_fn=limit, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip() == f"belvedere: {tmp_path / 'run'}: cannot be written (File too large)"
    assert not (tmp_path / "run").exists()


# --- resuming and reading runs ----------------------------------------------------------------------------------------


@pytest.fixture
def copied(place: Path, tmp_path: Path) -> Path:
    """A copy of the run to spoil."""
    return Path(shutil.copytree(place / "run", tmp_path / "copied"))


def test_corrupted_checkpoint(place: Path, copied: Path) -> None:
    whole = (copied / "checkpoint.pt").read_bytes()
    (copied / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    told = refused(place, place / "photos", "--resume", out=copied)
    assert told.startswith(f"{copied / 'checkpoint.pt'}: is damaged and cannot be resumed from")


def test_checkpoint_of_another_format_version(place: Path, copied: Path) -> None:
    torch.save({"format": 99}, copied / "checkpoint.pt")
    told = refused(place, place / "photos", "--resume", out=copied)
    assert told.startswith(f"{copied / 'checkpoint.pt'}: has format version 99, this belvedere reads version ")


@pytest.mark.parametrize("missing", [("data",), ("trainer",), ("step", "data", "monitor", "latest", "trainer")])
def test_checkpoint_without_some_of_it(place: Path, copied: Path, missing: tuple[str, ...]) -> None:
    state = torch.load(copied / "checkpoint.pt")
    torch.save({name: x for name, x in state.items() if name not in missing}, copied / "checkpoint.pt")
    told = belvedere(place, "pretrain", place / "photos", "--out", copied, "--resume").refusal()
    assert told.startswith(f"{copied / 'checkpoint.pt'}: its {missing[0]} is missing or not what a run writes")


def test_checkpoint_with_renamed_tensors(place: Path, copied: Path) -> None:
    state = torch.load(copied / "checkpoint.pt")
    method = state["trainer"]["method"]
    state["trainer"]["method"] = {name.replace("patch_embed", "patches"): x for name, x in method.items()}
    torch.save(state, copied / "checkpoint.pt")
    before = {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()}
    told = belvedere(place, "pretrain", place / "photos", "--out", copied, "--resume").refusal()
    assert told.startswith(f"{copied / 'checkpoint.pt'}: does not fit this run's network (")
    assert "patch_embed" in told
    assert {file: file.read_bytes() for file in copied.rglob("*") if file.is_file()} == before


def test_checkpoint_of_another_architecture(place: Path, copied: Path) -> None:
    text = (copied / "config.yaml").read_text()
    (copied / "config.yaml").write_text(text.replace("backbone.width: 32", "backbone.width: 48"))
    told = belvedere(place, "pretrain", place / "photos", "--out", copied, "--resume").refusal()
    assert told.startswith(f"{copied / 'checkpoint.pt'}: does not fit this run's network (")
    embedded = belvedere(place, "embed", copied, place / "photos", "--out", copied / "x.npz").refusal()
    assert embedded.startswith(
        f"{copied / 'model.safetensors'}: does not fit the run's config.yaml (size mismatch for "
    )


@pytest.mark.parametrize("count", [4, 12, 47, 96])
def test_resuming_on_other_images(place: Path, tmp_path: Path, count: int) -> None:
    told = refused(place, photo_folder(tmp_path / "others", count), "--resume", out=place / "run")
    assert told.startswith(f"{place / 'run'}: was trained on other images than these")


@pytest.mark.parametrize("text", ["a: [", "train.batch: !!int ''"])
def test_damaged_configuration(place: Path, copied: Path, text: str) -> None:
    (copied / "config.yaml").write_text(text)
    for command in (
        ["report", copied],
        ["embed", copied, place / "photos", "--out", copied / "x.csv"],
        ["pretrain", place / "photos", "--out", copied, "--resume"],
    ):
        told = belvedere(place, *command).refusal()
        assert told.startswith(f"{copied / 'config.yaml'}: cannot be read as YAML")


def test_an_unfinished_run_has_no_model(place: Path, copied: Path) -> None:
    (copied / "model.safetensors").unlink()
    told = belvedere(place, "embed", copied, place / "photos", "--out", copied / "x.csv").refusal()
    assert told == f"{copied}: has no model.safetensors yet; finish the run with --resume"
    assert not (copied / "x.csv").exists()


def test_evaluate_without_labels(place: Path) -> None:
    told = belvedere(
        place, "evaluate", place / "run", place / "photos", "--labels", "none", "--protocol", "knn"
    ).refusal()
    assert told.startswith("the training images have no labels, which evaluation needs")
    told = belvedere(place, "evaluate", place / "run", place / "photos", "--labels", "nope.csv").refusal()
    assert told.startswith("labels: nope.csv cannot be read")


def test_images_of_other_channels(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "five.npz"
    np.savez(file, images=np.zeros((20, 40, 40, 5), np.uint8), labels=np.arange(20) % 2)
    told = belvedere(place, "evaluate", place / "run", file).refusal()
    assert told == f"{file}: channels=3, but its images have 5; only 1 and 3 can be converted"


def test_parquet_without_pyarrow(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        api.embed(place / "run", place / "photos", out=tmp_path / "x.parquet")
    assert str(error.value) == (
        f'--out {tmp_path / "x.parquet"}: .parquet needs an extra: pip install "belvedere[parquet]"'
    )
    with pytest.raises(UserError, match=r"the ending must be \.npz, \.parquet or \.csv"):
        api.embed(place / "run", place / "photos", out=tmp_path / "x.txt")
