"""Checkpoint files: whole or not there, and refused in one line when they are not ours."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from belvedere.errors import UserError
from belvedere.pretrain import checkpoint

STATE = {"step": 3, "trainer": {"weights": torch.arange(1000.0), "groups": [{"lr": 0.1}], "none": None}}


def refused(path: Path, match: str) -> str:
    with pytest.raises(UserError, match=match) as refusal:
        checkpoint.load(path)
    message = str(refusal.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    found = checkpoint.load(path)
    assert found["step"] == 3
    assert torch.equal(found["trainer"]["weights"], STATE["trainer"]["weights"])
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch itself runs out of space: the message names the file, and the old checkpoint stays."""
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"checkpoint\.pt: cannot be written \(the disk is full\)"):
        checkpoint.save(path, {**STATE, "step": 4})
    assert path.read_bytes() == before


def test_a_missing_folder_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        checkpoint.save(tmp_path / "gone" / "checkpoint.pt", STATE)


@pytest.mark.parametrize("kept", [0, 10, 2000])
def test_a_cut_file_is_damaged(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, STATE)
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, "is damaged and cannot be resumed from")


def test_what_is_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    refused(path, "there is no checkpoint to resume from")
    path.write_text("these are notes of mine\n")
    refused(path, "is damaged")
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, path)
    refused(path, "is not a belvedere checkpoint")
    torch.save([1, 2], path)
    refused(path, "is not a belvedere checkpoint")


def test_another_format_version(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    torch.save({**STATE, "format": checkpoint.FORMAT + 1}, path)
    assert f"reads version {checkpoint.FORMAT}" in refused(path, f"format version {checkpoint.FORMAT + 1}")


class Harmful:
    """Unpickling this makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    path, mark = tmp_path / "checkpoint.pt", tmp_path / "harmed"
    torch.save({**STATE, "format": checkpoint.FORMAT, "more": Harmful(mark)}, path)
    refused(path, "is damaged")
    path.write_bytes(pickle.dumps(Harmful(mark), protocol=2))
    refused(path, "is damaged")
    assert not mark.exists()
