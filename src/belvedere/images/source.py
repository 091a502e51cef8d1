"""Which images were asked for: a folder, a list, a glob, shards, tables, arrays or a data set object.

This file tells the kinds apart; each is listed in a file of its own. No folder's pixels are decoded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from belvedere.errors import UserError
from belvedere.images.arrays import from_array, from_array_file
from belvedere.images.blobs import Blob, Blobs, is_url, list_url, local_path, refuse_missing
from belvedere.images.byteplots import PREFIX, from_bytes
from belvedere.images.datasets import from_dataset, from_saved, is_saved
from belvedere.images.files import CANDIDATES, EXTENSIONS, Files, expand_braces, glob, read_list, suffix, walk
from belvedere.images.items import Data, Items, Skipped, Source, choose_labels, make_source
from belvedere.images.labels import from_folders
from belvedere.images.shards import from_shards, refuse_compressed
from belvedere.images.tables import from_tables

__all__ = ["Data", "Items", "Skipped", "Source", "find_images"]


def find_images(source: Any, labels: str | Path = "auto") -> Source:
    """List the images of `source` in a fixed order.

    Args:
        source: a folder of any nesting; a `.txt` list of paths (relative ones to the list's folder); a glob; an array
            [N,H,W] or [N,H,W,C], or the `.npy` or `.npz` file of one (arrays `images` or `x`, and `labels` or `y`;
            "FILE.npz/train" takes `train_images` and `train_labels` of a file with splits, as MedMNIST's have);
            WebDataset `.tar` shards or Parquet files (one, a folder of them, a glob, or braces as in
            "shards-{000..099}.tar"; "FILE.parquet#COLUMN" names the column of images); any of these or a folder of
            images behind an fsspec URL; a folder that `datasets` saved; "bytes:" and a folder, list or glob of files of
            any kind, pictured by their bytes; or a map-style data set whose items are a
            Pillow image, an array [H,W(,C)], a tensor [C,H,W] or [H,W], a dict with "image" and perhaps "label", or a
            tuple (image, label). A data set that is not Hugging Face's is read through once.
        labels: "auto" (folders that name classes; the labels of shards, tables and data sets), "folder", "none", or a
            CSV file with the columns path, label or group or both, and perhaps split.

    Raises:
        UserError: nothing there, no images, one single image file, or labels that do not fit.
    """
    choice = str(labels)
    if isinstance(source, np.ndarray):
        return from_array(source, None, "the array", choice)
    if not isinstance(source, str | os.PathLike):
        return from_dataset(source, choice)
    text = os.fspath(source)
    if text.startswith(PREFIX):
        return from_bytes(text, choice)
    place, columns = _split_columns(local_path(text))
    if is_url(place):
        blobs = list_url(place)
        return _from_listing(_Listing(text, None, list(blobs), [], blobs), choice, columns)
    path = Path(place).expanduser()
    if path.is_dir():
        if is_saved(path):
            return from_saved(path, text, choice)
        return _from_listing(_Listing(text, path, *walk(path)), choice, columns)
    if path.is_file():
        return _from_file(path, text, choice, columns)
    if path.parent.suffix.lower() == ".npz" and path.parent.is_file():
        return from_array_file(path.parent, text, choice, split=path.name)
    if "{" in place:
        return _from_listing(_Listing(text, *_in_braces(str(path), text)), choice, columns)
    if any(mark in place for mark in "*?["):
        return _from_listing(_Listing(text, *glob(path)), choice, columns)
    raise UserError(
        f"{text}: no such file or folder; give a folder of images, a .txt list, a glob, .npy, .npz, .tar or .parquet"
    )


@dataclass(frozen=True)
class _Listing:
    """Candidates that a word of the user's stands for: files below `root`, or `remote` ones by their names."""

    described: str
    root: Path | None
    names: list[str]
    skipped: list[Skipped]
    remote: dict[str, Blob] | None = None

    @cached_property
    def _endings(self) -> list[str]:
        return [suffix(name) for name in self.names]

    def of(self, *endings: str) -> _Listing:
        """Those with one of these endings, and what was set aside but candidates of other endings."""
        others = CANDIDATES - set(endings)
        names = [name for name, ending in zip(self.names, self._endings, strict=True) if ending in endings]
        return replace(self, names=names, skipped=[item for item in self.skipped if suffix(item.name) not in others])

    def blobs(self) -> dict[str, Blob]:
        """The files to read parts of."""
        if self.remote is not None:
            return {name: self.remote[name] for name in self.names}
        return {name: Blob.local((self.root or Path()) / name) for name in self.names}

    def files(self) -> Items:
        """The files as one image each."""
        return Blobs(list(self.blobs().values())) if self.root is None else Files(self.root, self.names)


def _from_file(path: Path, described: str, choice: str, columns: list[str]) -> Source:
    ending = path.suffix.lower()
    if ending == ".txt":
        return _from_images(_Listing(described, path.parent, *read_list(path)), choice)
    if ending in (".npy", ".npz"):
        return from_array_file(path, described, choice)
    if ending in EXTENSIONS:
        raise UserError(f"{described} is one single image; give the folder it lies in")
    if ending in CANDIDATES:
        return _from_listing(_Listing(described, path.parent, [path.name], []), choice, columns)
    raise UserError(f"{described}: not a folder, a .txt list, .npy, .npz, .tar or .parquet; unpack archives first")


def _from_listing(listing: _Listing, choice: str, columns: list[str]) -> Source:
    """Images where there are any, else shards, else tables."""
    described = listing.described
    images, shards, tables = listing.of(*EXTENSIONS), listing.of(".tar"), listing.of(".parquet")
    if not images.names and shards.names and tables.names:
        raise UserError(f"{described}: holds .tar and .parquet files; say which, as in {described.rstrip('/')}/*.tar")
    if not images.names and tables.names:
        return from_tables(tables.blobs(), tables.skipped, described, choice, columns)
    if columns:
        raise UserError(f"{described}: #{','.join(columns)} names columns of Parquet files, and there are none")
    if not images.names and shards.names:
        return from_shards(shards.blobs(), shards.skipped, described, choice)
    if not images.names:
        refuse_compressed(listing.names, described)
    return _from_images(images, choice)


def _from_images(listing: _Listing, choice: str) -> Source:
    names, skipped, described = listing.names, listing.skipped, listing.described
    if not names:
        broken = f" ({len(skipped)} cannot be opened: {skipped[0].name}, {skipped[0].reason})" if skipped else ""
        raise UserError(f"{described}: no images found{broken}; looked for .jpg, .png, .tif, .webp and the like")
    found = choose_labels(choice, names, described, lambda: from_folders(names, described, required=False))
    return make_source(names, found, skipped, listing.root, described, listing.files())


def _in_braces(pattern: str, described: str) -> tuple[Path, list[str], list[Skipped]]:
    """Root, names and nothing skipped: braces ask for each file, so one that is missing is refused."""
    root = Path(pattern.partition("{")[0].rpartition("/")[0] or ".")
    paths = [Path(text) for text in expand_braces(pattern)]
    refuse_missing(described, [str(path) for path in paths if not path.is_file()], len(paths))
    return root, sorted({path.relative_to(root).as_posix() for path in paths}), []


def _split_columns(place: str) -> tuple[str, list[str]]:
    """A word and the columns behind its `#`, where it is not part of a file's name."""
    head, mark, columns = place.rpartition("#")
    if not mark or not columns or Path(place).expanduser().exists():
        return place, []
    return head, columns.split(",")
