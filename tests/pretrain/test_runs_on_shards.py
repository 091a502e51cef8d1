"""Runs on tar shards: the same losses as on the folder that they hold, and none lost when a run is killed."""

from __future__ import annotations

import io
import json
import signal
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from runs import pretrain, resume, wait_until_training, without_times, write_photos

from belvedere.pretrain import checkpoint
from tiny import Command, losses_of, tiles

STEPS = 60
SHARDS = 5


def write_shards(photos: Path, folder: Path) -> str:
    """The photos in their order, eight a shard, as the pattern that names the shards."""
    folder.mkdir()
    files = sorted(photos.iterdir())
    each = len(files) // SHARDS
    for shard in range(SHARDS):
        with tarfile.open(folder / f"photos-{shard:03}.tar", "w") as tar:
            for file in files[shard * each : (shard + 1) * each]:
                tar.add(file, file.name)
    return f"{folder}/photos-{{000..{SHARDS - 1:03}}}.tar"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos")


def test_a_killed_run_on_shards_ends_as_one_on_the_folder(photos: Path, tmp_path: Path) -> None:
    """The kill comes in the middle of an epoch; the log and the model are those of an undisturbed run on the folder."""
    undisturbed = tmp_path / "undisturbed"
    command = pretrain(photos, undisturbed, train__steps=STEPS)
    assert command.wait() == 0, command.output
    shards = Path(write_shards(photos, tmp_path / "shards"))
    run = tmp_path / "run"
    command = pretrain(shards, run, train__steps=STEPS)
    wait_until_training(command, run, 10)
    command.process.kill()
    assert command.wait() == -signal.SIGKILL
    done = checkpoint.load(run / "checkpoint.pt")["step"]
    assert 0 < done < STEPS, "the kill came too late to mean anything"
    command = resume(shards, run)
    assert command.wait() == 0, command.output
    assert f"continues at step {done} of {STEPS}" in command.output
    assert losses_of(run) == losses_of(undisturbed)
    assert without_times(run) == without_times(undisturbed)
    assert (run / "model.safetensors").read_bytes() == (undisturbed / "model.safetensors").read_bytes()


def labelled_shards(folder: Path) -> Path:
    """Four classes of tiles in WebDataset's conventions, in shards for training and for testing."""
    folder.mkdir()
    pictures = tiles(96)
    for shard, rows in (("train-000", range(40)), ("train-001", range(40, 72)), ("test-000", range(72, 96))):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for i in rows:
                png = io.BytesIO()
                Image.fromarray(pictures[i]).save(png, "PNG")
                for ending, content in (("png", png.getvalue()), ("cls", b"%d" % (i % 4))):
                    info = tarfile.TarInfo(f"{i:05}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.mark.slow
def test_the_command_line_from_shards_to_a_score(tmp_path: Path) -> None:
    folder = labelled_shards(tmp_path / "set")
    run = tmp_path / "run"
    command = pretrain(Path(f"{folder}/train-*.tar"), run, train__steps=8)
    assert command.wait() == 0, command.output
    results = tmp_path / "results.json"

    def evaluate(*arguments: str) -> dict[str, dict[str, dict[str, float]]]:
        words = ["evaluate", str(run), *arguments, "--protocol", "knn", "--out", str(results)]
        command = Command(words, tmp_path / "said.txt", tmp_path / "cache")
        assert command.wait() == 0, command.output
        found: dict[str, dict[str, dict[str, float]]] = json.loads(results.read_text())["results"][0]["metrics"]
        return found

    named = evaluate(f"{folder}/train-{{000..001}}.tar", "--test", f"{folder}/test-000.tar")
    own = evaluate(str(folder))
    assert named == own  # the shards' names tell what is for testing
    assert named["majority"]["top1"]["value"] == 25
    assert named["run"]["top1"]["value"] > 60
