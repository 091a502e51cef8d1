"""SHERLOCK's pretraining on ordinary files of two formats: the loss falls below that of painting patches' means."""

from __future__ import annotations

import json
import py_compile
import shutil
import statistics
import sysconfig
from pathlib import Path

import pytest

import belvedere

FILES = 200
"""Of either format."""


@pytest.fixture
def formats(tmp_path: Path) -> Path:
    """Bytecode of the standard library, and the shared libraries that are installed."""
    paths = {name: Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    sources = [file for file in sorted(paths["stdlib"].rglob("*.py")) if file.stat().st_size > 3000]
    libraries = [f for f in sorted(paths["purelib"].rglob("*.so*")) if f.is_file() and 3e3 < f.stat().st_size < 3e6]
    for kind, files in (("bytecode", sources), ("library", libraries)):
        (tmp_path / "files" / kind).mkdir(parents=True)
        for i, file in enumerate(files[:: max(1, len(files) // FILES)][:FILES]):
            place = tmp_path / "files" / kind / str(i)
            if kind == "library":
                shutil.copy(file, place)
            else:
                py_compile.compile(str(file), cfile=str(place))
    return tmp_path / "files"


@pytest.mark.slow
def test_patches_of_bytes_are_painted_better_than_by_their_means(formats: Path, tmp_path: Path) -> None:
    settings = {
        "backbone.name": "vit_tiny",
        "backbone.patch": 8,
        "backbone.width": 96,
        "backbone.depth": 2,
        "task.mae.depth": 1,
        "views.size": 64,
        "train.batch": 32,
        "train.steps": 150,
    }
    run = belvedere.pretrain(f"bytes:{formats}", "sherlock", out=tmp_path / "run", device="cpu", settings=settings)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    # Pixels of a patch less their mean, over their deviation: who paints 0 has a loss of 1.
    assert statistics.mean(losses[:5]) > 1.2
    assert statistics.mean(losses[-15:]) < 0.98
