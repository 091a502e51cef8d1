"""What every kind of source comes down to: a fixed list of names, and `read(i)` for each of them, in any order.

Everything after this is random access: canvases are decoded once, on several threads, in the order of the names; the
order of training is drawn over all of them. So a kind of source is one class with `read` and `digest`, which holds no
open file and no lock that would keep it from being used by many threads or sent to another process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.images.cutting import WHOLE, Cutting
from belvedere.images.labels import Labels, from_csv, from_folders
from belvedere.images.part import Part

Data = Path | bytes | Image.Image | NDArray[Any] | Part
"""What one item is before decoding: an image file, its bytes, a Pillow image, an array [H,W] or [H,W,C], or a part."""


@dataclass(frozen=True)
class Skipped:
    """An image that was asked for and left out."""

    name: str
    reason: str


class Items(Protocol):
    """The images behind a `Source`."""

    def read(self, i: int) -> Data:
        """Return image i undecoded.

        Raises:
            UserError: the place where all images lie is out of reach, which stops the run; any other exception sets
                this one image aside.
        """

    def digest(self) -> str:
        """Return a hash that changes whenever an image does."""


@dataclass(frozen=True)
class Source:
    """What was asked for.

    Attributes:
        names: one per image: its path relative to `root` with '/' separators, or "0000012" for arrays and tables.
        labels: int64 [N], -1 = unlabelled, or None without labels; they index `classes`.
        label_origin: "first folder level", "second folder level", "labels.csv", "array", "data set", "shards",
            "column label" or "none".
        splits, groups: one text per image where the folders (train/val/test) or the CSV file tell them, else None.
        skipped: candidates that cannot be opened at all, such as dangling links, and links to folders.
        root: the folder that names are relative to; None where they are no files on this machine.
        described: the source as the user would call it, for messages.
        cutting: what was made of the files, by `tiles.cut`.
    """

    names: list[str]
    labels: NDArray[np.int64] | None
    classes: list[str]
    skipped: list[Skipped]
    root: Path | None
    label_origin: str
    splits: list[str] | None
    groups: list[str] | None
    described: str
    items: Items
    cutting: Cutting = WHOLE

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> Data:
        """Return image i undecoded: a path, its bytes, a Pillow image or an array."""
        return self.items.read(i)

    def digest(self) -> str:
        """Hash of names and content; of paths, sizes and times for files, which are not opened."""
        digest = hashlib.blake2b(self.items.digest().encode(), digest_size=16)
        if self.cutting.min_ink:
            digest.update(f"{self.cutting.min_ink}".encode())
        for name in self.names:
            digest.update(os.fsencode(name) + b"\n")
        return digest.hexdigest()


def evenly_spaced(source: Source, most: int) -> Source:
    """At most so many of the images, from the first to the last at equal distances."""
    rows = np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(np.int64)

    def picked(texts: list[str] | None) -> list[str] | None:
        return None if texts is None else [texts[i] for i in rows]

    return replace(
        source,
        names=[source.names[i] for i in rows],
        labels=None if source.labels is None else source.labels[rows],
        splits=picked(source.splits),
        groups=picked(source.groups),
        items=_Some(source.items, rows),
    )


@dataclass(frozen=True)
class _Some:
    """Some of the images behind another source."""

    items: Items
    rows: NDArray[np.int64]

    def read(self, i: int) -> Data:
        return self.items.read(int(self.rows[i]))

    def digest(self) -> str:
        return self.items.digest()


def choose_labels(choice: str, names: list[str], described: str, automatic: Callable[[], Labels]) -> Labels:
    """Labels as the user chose them: "auto" takes the source's own, see `find_images`."""
    if choice == "none":
        return Labels.none()
    if choice == "auto":
        return automatic()
    if choice == "folder":
        return from_folders(names, described, required=True)
    return from_csv(Path(choice).expanduser(), names, described)


def make_source(
    names: list[str], found: Labels, skipped: list[Skipped], root: Path | None, described: str, items: Items
) -> Source:
    """A source with the labels that were found."""
    return Source(
        names=names,
        labels=found.values,
        classes=found.classes,
        skipped=skipped,
        root=root,
        label_origin=found.origin,
        splits=found.splits,
        groups=found.groups,
        described=described,
        items=items,
    )
