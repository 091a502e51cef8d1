"""The run's folder: one writer at a time, no foreign files, a log that never runs ahead of the checkpoint."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from belvedere.errors import UserError
from belvedere.pretrain.folder import RunFolder
from tiny import FORKS


def _hold(path: str, ready: Any) -> None:
    folder = RunFolder(Path(path))
    folder.open()
    ready.set()
    time.sleep(60)


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    """The lock goes with its process, also when that is killed."""
    ready = FORKS.Event()
    other = FORKS.Process(target=_hold, args=(str(tmp_path / "run"), ready))
    other.start()
    assert ready.wait(60)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(UserError, match=r"--out .*run: another process is writing to this run"):
        folder.open()
    other.kill()
    other.join()
    folder.open()
    folder.close()


def test_a_lock_given_back_can_be_taken(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.open()
    with pytest.raises(UserError, match="another process"):
        second.open()
    first.close()
    second.open()
    second.close()


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_was_begun_after_the_check_is_left_alone(tmp_path: Path, resume: bool) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.check(resume)
    other = RunFolder(tmp_path / "run")
    other.open()
    other.config.write_text("another run's")
    other.close()
    with pytest.raises(UserError, match=r"--out .*run: another process has begun a run here meanwhile"):
        folder.open()
    other.check(resume=True)
    other.open()  # the refused one holds no lock
    other.close()


def test_a_place_without_locks_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\), .* a file system with locks"):
        RunFolder(tmp_path / "run").open()


def test_leaving_deletes_the_lock_while_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that makes the lock's file anew before this one is gone keeps it."""
    folder, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    folder.open()
    close = folder.close
    monkeypatch.setattr(folder, "close", lambda: (other.open(), close()))
    folder.leave()
    assert [file.name for file in other.path.iterdir()] == [".lock"]
    with pytest.raises(UserError, match="another process is writing"):
        RunFolder(tmp_path / "run").open()
    other.leave()
    assert not other.path.exists()


def test_what_a_kill_left_of_a_checkpoint_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.pt.4711").write_bytes(b"half")
    (tmp_path / "checkpoint.pt").write_bytes(b"whole")
    folder = RunFolder(tmp_path)
    folder.open()
    folder.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "checkpoint.pt"]


def refused(path: Path, match: str, resume: bool = False) -> None:
    before = sorted(path.parent.rglob("*"))
    with pytest.raises(UserError, match=match) as refusal:
        RunFolder(path).check(resume)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert sorted(path.parent.rglob("*")) == before


def test_whose_folder_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run"
    RunFolder(path).check(resume=False)
    assert not path.exists()
    path.mkdir()
    RunFolder(path).check(resume=False)
    (path / ".lock").touch()  # of a run that was refused before it began
    RunFolder(path).check(resume=False)
    (path / "thesis.tex").touch()
    refused(path, "holds other files; choose an empty or a new folder")
    refused(path, "holds other files", resume=True)
    (path / "config.yaml").touch()
    refused(path, "holds a run; continue it with --resume, or choose another --out")
    RunFolder(path).check(resume=True)
    file = tmp_path / "file"
    file.touch()
    refused(file, "is a file")


def test_a_read_only_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write anywhere
    refused(tmp_path / "deep" / "run", "is read-only")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(Not a directory\)"):
        RunFolder(tmp_path / "file" / "run").open()


def entries(folder: RunFolder) -> list[str]:
    return [("look " if "look" in entry else "") + str(entry["step"]) for entry in folder.read_log()]


def fill(folder: RunFolder) -> None:
    folder.log({"step": 0, "look": {"knn": 1.0}})
    for step in range(4):
        folder.log({"step": step, "loss": float(step)})
        if step % 2:
            folder.log({"step": step + 1, "look": {"knn": 2.0}})


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (1, ["look 0", "0"]),
        (2, ["look 0", "0", "1", "look 2"]),
        (3, ["look 0", "0", "1", "look 2", "2"]),
        (4, ["look 0", "0", "1", "look 2", "2", "3", "look 4"]),
        (9, ["look 0", "0", "1", "look 2", "2", "3", "look 4"]),
    ],
)
def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path, step: int, kept: list[str]) -> None:
    folder = RunFolder(tmp_path)
    fill(folder)
    with folder.metrics.open("a") as file:
        file.write('{"step": 4, "lo')  # a kill cut this line short
    folder.cut_log(step)
    assert entries(folder) == kept
    assert folder.metrics.read_text().endswith("\n")
    folder.log({"step": step, "loss": 0.0})
    assert entries(folder) == [*kept, str(step)]


def test_steps_that_moved_nothing_are_counted_from_their_list(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.told_not_finite() == ""
    for step in (3, 5):
        folder.note_not_finite(step, ["a.png", "b,\n.png"])
    assert folder.told_not_finite() == "2 steps skipped, their images are in not_finite.csv."
    with folder.not_finite.open("a") as file:
        file.write("what,no,run\nwrites,\n6")  # and a row that a kill cut short
    assert folder.told_not_finite() == "2 steps skipped, their images are in not_finite.csv."
    folder.cut_log(4)
    assert folder.told_not_finite() == "1 step skipped, its images are in not_finite.csv."
    assert folder.not_finite.read_text().startswith("step,path\n3,a.png\n")


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"step": 0, "loss": float("nan"), "look": {"rank": float("inf"), "knn": 3.0}})
    assert list(folder.read_log()) == [{"step": 0, "loss": None, "look": {"rank": None, "knn": 3.0}}]


def test_no_log_is_an_empty_log(tmp_path: Path) -> None:
    assert list(RunFolder(tmp_path).read_log()) == []
