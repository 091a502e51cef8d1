"""`belvedere evaluate` in two processes, of `--devices 2` or torchrun: the numbers of one, bit for bit, once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from belvedere.distributed import has_parted, leads, part, world_size
from belvedere.pretrain.engine import make_fabric
from newcomer import finished_run
from processes import torchrun_environment
from tiny import FORKS, free_port, tiles

IMAGES = 1001


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `run`, and 1001 labelled tiles of four photographs in `tiles.npz`."""
    place = tmp_path_factory.mktemp("processes")
    finished_run(place)
    np.savez(place / "tiles.npz", images=tiles(IMAGES, (32, 32)), labels=np.arange(IMAGES) % 4)
    return place


def _part(rank: int, port: int, folder: str) -> None:
    """A process that torchrun started: with the other one, then on its own."""
    os.environ |= torchrun_environment(rank, port)
    together = make_fabric("cpu", "float32").world_size, world_size(), has_parted()
    part()
    alone = make_fabric("cpu", "float32").world_size, world_size(), has_parted()
    Path(folder, str(rank)).write_text(repr((together, alone, leads())))


def test_a_process_that_left_the_others_trains_alone(tmp_path: Path) -> None:
    arguments = free_port(), str(tmp_path)
    processes = [FORKS.Process(target=_part, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    told = [(tmp_path / str(rank)).read_text() for rank in range(2)]
    assert told == ["((2, 2, False), (1, 1, True), True)", "((2, 2, False), (1, 1, True), False)"]
    assert leads()
    assert not has_parted()


def evaluate(
    place: Path, run: str, *words: str, processes: int = 1, data: str = "tiles.npz"
) -> subprocess.CompletedProcess[str]:
    """`belvedere evaluate` on a copy of the run, with no feature kept from before; one thread a process."""
    shutil.copytree(place / "run", place / run)
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
    return subprocess.run(
        [sys.executable, *(torchrun if processes > 1 else []), "-m", "belvedere", "evaluate", run, data, *words],
        cwd=place,
        capture_output=True,
        text=True,
        env={**os.environ, "BELVEDERE_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )


def result(run: Path) -> dict[str, Any]:
    """The JSON of an evaluation without what clocks say."""
    found: dict[str, Any] = json.loads((run / "evaluation.json").read_text())
    del found["seconds"]
    return found


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(place: Path) -> None:
    words = ["--protocol", "knn,logistic,retrieval"]
    one = evaluate(place, "run1", *words)
    two = evaluate(place, "run2", *words, "--devices", "2")
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert result(place / "run1") == result(place / "run2")
    items = [np.load(place / run / "evaluation.npz") for run in ("run1", "run2")]
    assert items[0].files == items[1].files
    assert all(np.array_equal(items[0][name], items[1][name]) for name in items[0].files)
    # One process prints, and writes what one alone would write.
    assert two.stdout.replace("run2", "run1").splitlines() == one.stdout.splitlines()
    files = [
        sorted(str(file.relative_to(place / run)) for file in (place / run).rglob("*")) for run in ("run1", "run2")
    ]
    assert files[0] == files[1]
    features = [np.load(file) for run in ("run1", "run2") for file in sorted((place / run / "features").iterdir())]
    half = len(features) // 2
    assert half == 4  # the run and an untrained network, on training and on test images
    assert all(np.array_equal(a, b) for a, b in zip(features[:half], features[half:], strict=True))


@pytest.fixture(scope="module")
def scenes(place: Path) -> str:
    """Photographs of two classes in halves, each with a mask of its left and right."""
    for number, tile in enumerate(tiles(24, (32, 32))):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, 8 + number % 16 :] = 1
        for kind, pixels in (("images", tile), ("masks", mask)):
            file = place / "scenes" / kind / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(file)
    return "scenes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "words"),
    [("finetune", ["finetune.epochs=1"]), ("seg_knn", []), ("seg_fpn", ["seg_fpn.epochs=1"])],
)
def test_what_the_leader_does_alone_is_what_one_process_does(
    place: Path, scenes: str, protocol: str, words: list[str]
) -> None:
    """Training and maps of patches are not shared out; the second process has left by then."""
    data = "photos" if protocol == "finetune" else scenes
    one = evaluate(place, f"{protocol}1", "--protocol", protocol, *words, data=data)
    two = evaluate(place, f"{protocol}2", "--protocol", protocol, *words, "--devices", "2", data=data)
    assert one.returncode == 0, one.stderr
    assert two.returncode == 0, two.stderr
    assert result(place / f"{protocol}1") == result(place / f"{protocol}2")
    assert two.stdout.replace(f"{protocol}2", f"{protocol}1").splitlines() == one.stdout.splitlines()


@pytest.mark.slow
def test_a_mistake_is_told_and_nothing_hangs(place: Path) -> None:
    done = evaluate(place, "run3", "--protocol", "knn", "--labels", "none", processes=2)
    assert done.returncode != 0
    assert "belvedere: the training images have no labels, which evaluation needs" in done.stderr
    assert not (place / "run3" / "evaluation.json").exists()
