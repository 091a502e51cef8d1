"""Where labels come from: the folders that images lie in, or a CSV file."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from belvedere.errors import UserError

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
"""Folder names that mean a split of the data, never a class."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labels:
    """Labels int64 [N] with -1 = unlabelled (or None), the names of the classes they index, and their origin."""

    values: NDArray[np.int64] | None
    classes: list[str]
    origin: str
    splits: list[str] | None = None
    groups: list[str] | None = None

    @classmethod
    def none(cls) -> Labels:
        """No labels at all."""
        return cls(None, [], "none")


def encode(values: Sequence[str | int | float]) -> tuple[NDArray[np.int64], list[str]]:
    """Number the distinct values from 0, sorted (numbers by value); "" and -1 mean unlabelled."""
    texts = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values]
    classes = sorted({text for text in texts if text not in ("", "-1")})
    if all(text.isdecimal() for text in classes):
        classes.sort(key=int)
    number = {text: i for i, text in enumerate(classes)}
    return np.array([number.get(text, -1) for text in texts], np.int64), classes


def from_folders(names: Sequence[str], described: str, required: bool) -> Labels:
    """Take sub-folders for classes: the first level, or the second where the first is train/val/test.

    Without `required`, folders name classes only if there are at least two and every image lies in one. With it, images
    outside any folder are unlabelled.

    Raises:
        UserError: `required`, and there is no sub-folder.
    """
    parts = [PurePosixPath(name).parts for name in names]
    splits = None
    if all(len(part) > 1 and part[0].lower() in SPLITS for part in parts):
        splits = [part[0] for part in parts]
        parts = [part[1:] for part in parts]
    folders = [part[0] if len(part) > 1 and part[0] != "/" else "" for part in parts]
    distinct = set(folders) - {""}
    if required and not distinct:
        raise UserError(f"{described}: labels=folder, but no image lies in a sub-folder; use labels=none or a CSV file")
    if not required and ("" in folders or len(distinct) < 2):
        return Labels(None, [], "none", splits)
    values, classes = encode(folders)
    return Labels(values, classes, f"{'second' if splits else 'first'} folder level", splits)


def from_csv(path: Path, names: Sequence[str], described: str) -> Labels:
    """Read labels from a CSV file with the columns path, label and perhaps split and group (UTF-8, header required).

    Images that the file does not name are unlabelled; names in it that are no image are counted in one warning.

    Raises:
        UserError: no such file, no such columns, a path named twice, or no path in common with the images.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            table = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"labels: {path} cannot be read ({error}); give auto, folder, none or a CSV file") from error
    if not {"path", "label"} <= columns:
        raise UserError(f"{path}: needs a header with the columns path and label, has {', '.join(sorted(columns))}")
    rows: dict[str, dict[str, str]] = {}
    for row in table:
        name = PurePosixPath(row["path"] or "").as_posix()
        if name in rows:
            raise UserError(f"{path}: {name} is named twice; keep one row per image")
        rows[name] = row
    strange = sorted(rows.keys() - set(names))
    if len(strange) == len(rows):
        raise UserError(f"{path}: none of its {len(rows)} paths is an image of {described}; the first is {names[0]}")
    if strange:
        _log.warning(
            "%s: %d of its %d paths are no image of %s, the first is %s",
            *(path, len(strange), len(rows), described, strange[0]),
        )

    def column(key: str) -> list[str]:
        return [(rows.get(name, {}).get(key) or "").strip() for name in names]

    values, classes = encode(column("label"))
    return Labels(
        values,
        classes,
        path.name,
        splits=column("split") if "split" in columns else None,
        groups=column("group") if "group" in columns else None,
    )
