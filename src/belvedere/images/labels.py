"""Where labels come from: the folders that images lie in, or a CSV file."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from belvedere.errors import UserError

TRAIN_SPLITS = ("train", "training")
TEST_SPLITS = ("test", "testing", "val", "valid", "validation")
"""Of those for testing the first that is there is read."""
SPLITS = frozenset(TRAIN_SPLITS + TEST_SPLITS)
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


def own_split(splits: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows for training and for testing, where the images' splits tell them apart; else None."""
    names = np.array([name.lower() for name in splits])
    train = np.flatnonzero(np.isin(names, TRAIN_SPLITS))
    test = next((rows for split in TEST_SPLITS if len(rows := np.flatnonzero(names == split))), None)
    return (train, test) if len(train) and test is not None else None


def splits_of_files(names: Sequence[str]) -> list[str] | None:
    """The split of each of the files that hold many images, such as train/7.tar or test-00000-of-00002.parquet.

    None unless every file's first folder, or its name up to the first mark or digit, is that of a split.
    """
    first = [re.split(r"[^a-z]", PurePosixPath(name).parts[0].lower(), maxsplit=1)[0] for name in names]
    return first if first and set(first) <= SPLITS else None


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
    """Read a CSV file with the columns path, label or group or both, and perhaps split (UTF-8, header required).

    Images that the file does not name are unlabelled, all of them where it has no column label; names in it that are no
    image are counted in one warning.

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
    if "path" not in columns or not columns & {"label", "group"}:
        raise UserError(
            f"{path}: needs a header with the columns path and label (or group), has {', '.join(sorted(columns))}"
        )
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

    values, classes = encode(column("label")) if "label" in columns else (None, [])
    return Labels(
        values,
        classes,
        path.name if "label" in columns else "none",
        splits=column("split") if "split" in columns else None,
        groups=column("group") if "group" in columns else None,
    )
