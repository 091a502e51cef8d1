"""Checkpoints: written whole or not at all, and refused in one line when they are not ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from belvedere.atomic import write_atomically
from belvedere.errors import UserError

FORMAT = 2
KINDS = {"step": int, "data": str, "trainer": dict}
"""What a run's checkpoint holds beside its own things, whatever it trains."""


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of plain numbers and tensors."""
    write_atomically(path, lambda beside: _save({"format": FORMAT, **state}, beside))


def _save(state: dict[str, Any], path: Path) -> None:
    # A Python file, since torch's own writer does not say that the disk is full.
    with path.open("wb") as file:
        torch.save(state, file)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it can run code.

    Raises:
        UserError: when it is missing, damaged, not a checkpoint of ours, or of another format version.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no checkpoint to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        raise UserError(f"{path}: is damaged and cannot be resumed from; start a new run with another --out") from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise UserError(f"{path}: is not a belvedere checkpoint")
    if state["format"] != FORMAT:
        raise UserError(
            f"{path}: has format version {state['format']}, this belvedere reads version {FORMAT}; "
            "resume it with the version that wrote it"
        )
    return state


def load_run(path: Path) -> dict[str, Any]:
    """Read the checkpoint of a run: what `KINDS` names is there and of its kind.

    Raises:
        UserError: as `load`, and when it is not as a run writes it.
    """
    state = load(path)
    wrong = [name for name, kind in KINDS.items() if not isinstance(state.get(name), kind)]
    if wrong or state["step"] < 0:
        why = f"its {(wrong or ['step'])[0]} is missing or not what a run writes"
        raise UserError(f"{path}: {why}, so it cannot be resumed from; start a new run with another --out")
    return state


@contextmanager
def fitting(path: Path, part: str) -> Iterator[None]:
    """Around code that takes up what a checkpoint holds of a run's `part`.

    Raises:
        UserError: when something in it is missing, of another kind, or does not match.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as error:
        lines = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise UserError(f"{path}: does not fit this run's {part} ({type(error).__name__}: {lines})") from error
