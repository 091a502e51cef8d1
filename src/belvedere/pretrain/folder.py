"""The run's folder: who may write in it, and its log, which is cut back to the checkpoint when a run is resumed."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from belvedere.atomic import write_atomically
from belvedere.errors import UserError

BEFORE_THE_RUN = ("skipped.csv", "views.png")
"""What is written before `config.yaml`, which makes a folder a run's."""


class RunFolder:
    """`runs/<name>/`: `config.yaml`, `checkpoint.pt`, `metrics.jsonl` and what is written at the end.

    A lock that ends with the process keeps two runs from writing into one folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._held_a_run: bool | None = None  # when it was checked

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint."""
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        """The log, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def not_finite(self) -> Path:
        """The images of steps whose loss or gradient was not finite, `step,path`; absent as long as there are none."""
        return self.path / "not_finite.csv"

    @property
    def policy(self) -> Path:
        """The learned view policy, for `views.exported`."""
        return self.path / "policy.json"

    def holds_a_run(self) -> bool:
        """Whether a run was started here."""
        return self.config.exists()

    def check(self, resume: bool) -> None:
        """Refuse a folder that another run or other files own, before anything is written.

        Raises:
            UserError: naming the folder and what to do.
        """
        self._held_a_run = self.holds_a_run()
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"--out {self.path}: is a file")
        if self._held_a_run and not resume:
            raise UserError(f"--out {self.path}: holds a run; continue it with --resume, or choose another --out")
        if self.path.is_dir() and not self._held_a_run and any(self._foreign()):
            raise UserError(f"--out {self.path}: holds other files; choose an empty or a new folder")
        parent = next(folder for folder in [self.path, *self.path.absolute().parents] if folder.exists())
        if not os.access(parent, os.W_OK):
            raise UserError(f"--out {self.path}: {parent} is read-only; choose another --out")

    def _foreign(self) -> Iterator[Path]:
        """What lies in the folder and is not of a run that was killed before it began; hidden files do not count."""
        own = BEFORE_THE_RUN if self._lock_file.exists() else ()
        return (entry for entry in self.path.iterdir() if not entry.name.startswith(".") and entry.name not in own)

    @property
    def _lock_file(self) -> Path:
        return self.path / ".lock"

    def open(self) -> None:
        """Make the folder and take its lock.

        Raises:
            UserError: when it cannot be made or locked, another process is writing here, or one has begun a run since
                the folder was checked: decoding the images may take hours.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self._lock_file, os.O_CREAT | os.O_RDWR, 0o644)
        except OSError as error:
            raise UserError(f"--out {self.path}: cannot be written ({error.strerror})") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(f"--out {self.path}: another process is writing to this run") from None
        except OSError as error:
            self.close()
            raise UserError(
                f"--out {self.path}: cannot be locked ({error.strerror}), so two runs could write into it; "
                "choose an --out on a file system with locks"
            ) from None
        if self._held_a_run is False and self.holds_a_run():
            self.close()
            raise UserError(
                f"--out {self.path}: another process has begun a run here meanwhile; "
                "continue it with --resume, or choose another --out"
            )
        for unfinished in self.path.glob(f".{self.checkpoint.name}.*"):  # of a process that died, on any machine
            unfinished.unlink()

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def leave(self) -> None:
        """Give the lock back and delete what is there of a run that has not begun."""
        # The lock's file goes while it is held: deleted later, it could be that of a process which came in between.
        for name in (*BEFORE_THE_RUN, self._lock_file.name):
            (self.path / name).unlink(missing_ok=True)
        self.close()
        with suppress(OSError):  # holds other files
            self.path.rmdir()

    def log(self, entry: dict[str, Any]) -> None:
        """Append one line to the log.

        Raises:
            UserError: when the disk is full.
        """
        clean = {key: _plain(value) for key, value in entry.items()}
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
        except OSError as error:
            raise UserError(f"{self.metrics}: cannot be written ({error.strerror})") from None

    def note_not_finite(self, step: int, names: Sequence[str]) -> None:
        """Append the images of a step that moved nothing.

        Raises:
            UserError: when the disk is full.
        """
        try:
            _write_images(self.not_finite, "a", [(step, name) for name in names])
        except OSError as error:
            raise UserError(f"{self.not_finite}: cannot be written ({error.strerror})") from None

    def told_not_finite(self) -> str:
        """How many steps moved nothing, also before the run was interrupted, in a sentence; empty when none did."""
        count = len({step for step, _ in self._read_not_finite()})
        who, whose = ("1 step", "its") if count == 1 else (f"{count:,} steps", "their")
        return f"{who} skipped, {whose} images are in {self.not_finite.name}." if count else ""

    def _read_not_finite(self) -> Iterator[tuple[int, str]]:
        """Step and image of every row of `not_finite.csv`; what no run writes is left out."""
        if not self.not_finite.is_file():
            return
        with self.not_finite.open(newline="", encoding="utf-8", errors="surrogateescape") as file, suppress(csv.Error):
            for row in csv.reader(file):
                with suppress(ValueError):  # the header, or other columns
                    step, name = row
                    yield int(step), name

    def read_log(self) -> Iterator[dict[str, Any]]:
        """All whole lines of the log, oldest first; one that a kill cut short, or that no run writes, is left out."""
        if not self.metrics.exists():
            return
        for line in self.metrics.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            step = entry.get("step") if isinstance(entry, dict) else None
            if isinstance(step, int) and 0 <= step < 2**53:  # what a float, and so a curve, can hold
                yield entry

    def cut_log(self, step: int) -> None:
        """Forget what was logged of steps that the checkpoint of `step` done steps does not hold."""
        kept = [json.dumps(entry) for entry in self.read_log() if _belongs(entry, step)]
        write_atomically(self.metrics, lambda beside: _write_lines(beside, kept))
        if self.not_finite.exists():
            images = [(number, name) for number, name in self._read_not_finite() if number < step]
            write_atomically(self.not_finite, lambda beside: _write_images(beside, "w", images))


def _belongs(entry: dict[str, Any], step: int) -> bool:
    # A look is taken after `step` steps, a step's own line carries its number from 0.
    return int(entry["step"]) < step or ("look" in entry and int(entry["step"]) == step)


def _write_images(path: Path, mode: Literal["a", "w"], images: Sequence[tuple[int, str]]) -> None:
    """Write (step, image) as rows of `not_finite.csv`, which begins with a header."""
    with path.open(mode, newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        if not file.tell():
            writer.writerow(("step", "path"))
        writer.writerows(images)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
