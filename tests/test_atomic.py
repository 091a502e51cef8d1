"""Files that are whole or not there."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from belvedere.atomic import write_atomically, write_text
from belvedere.errors import UserError


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"), "failed writing"),
    ],
)
def test_a_failing_writer_leaves_the_old_file(tmp_path: Path, error: Exception, words: str) -> None:
    path = tmp_path / "kept.txt"
    path.write_text("before")

    def write(beside: Path) -> None:
        beside.write_bytes(b"half")
        raise error

    with pytest.raises(UserError, match=words) as refusal:
        write_atomically(path, write)
    assert str(path) in str(refusal.value)
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == ["kept.txt"]


def test_what_a_killed_process_began_to_write_goes_with_the_next_write(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = socket.gethostname()
    left = tmp_path / f".results[1].json.{host}.{dead.pid}"
    others = tmp_path / f".results[1].json.{host}.{os.getppid()}", tmp_path / f".other.json.{host}.{dead.pid}"
    for path in (left, *others):
        path.write_text("half")
    write_text(tmp_path / "results[1].json", "whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "results[1].json", *others])


def test_a_place_that_turned_read_only_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There deleting what is not there is an error of its own, which must not hide why nothing was written."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for method in ("write_bytes", "unlink"):
        monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(UserError, match=r"page\.html: cannot be written \(Read-only file system\)"):
        write_text(tmp_path / "page.html", "whole")
