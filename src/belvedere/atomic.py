"""Files that survive a kill at any moment: written beside, flushed, then renamed over the old one."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path

from belvedere.errors import UserError

_HOST = socket.gethostname()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file beside `path`, then rename it: a reader sees the old content or the new, never a part.

    Raises:
        UserError: when the disk is full or the folder cannot be written; the old file stays.
    """
    beside = path.with_name(f".{path.name}.{_HOST}.{os.getpid()}")
    try:
        _clear_unfinished(path)
        write(beside)
        with open(beside, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:
        # Of a file system that is read-only this is an error too, and the one above tells more.
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({_reason(error)}); what was there before is kept") from error


def _clear_unfinished(path: Path) -> None:
    """Delete what processes of this machine that were killed had begun to write."""
    for left in path.parent.glob(f".{escape(path.name)}.{escape(_HOST)}.*"):
        try:
            os.kill(int(left.suffix[1:]), 0)
        except ProcessLookupError:
            left.unlink(missing_ok=True)
        except PermissionError:  # alive, and somebody else's
            continue


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all; what is no text in it, such as bytes of a file's name, becomes "?".

    Raises:
        UserError: as `write_atomically`.
    """
    write_atomically(path, lambda beside: _fill(beside, text.encode("utf-8", "replace")))


def _fill(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return "the disk is full" if error.errno == errno.ENOSPC else error.strerror
    if isinstance(error.__context__, OSError):  # torch wraps it in an error of its own, which says nothing
        return _reason(error.__context__)
    return str(error).splitlines()[0] if str(error) else type(error).__name__
