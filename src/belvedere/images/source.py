"""Which images were asked for: a folder, a list, a glob, arrays or a data set object. No folder's pixels are decoded.

Candidates go by extension (`EXTENSIONS`); what a file really is, its content decides later. Hidden files and folders
(leading dot), `__MACOSX` and links to folders are left out without a word; `@eaDir` thumbnails are ordinary images.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError
from belvedere.images.labels import Labels, encode, from_csv, from_folders

EXTENSIONS = frozenset(
    (
        *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc"),
        *(".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".npy", ".pbm", ".pcx", ".pfm", ".pgm", ".png"),
        *(".pnm", ".ppm", ".psd", ".qoi", ".sgi", ".tga", ".tif", ".tiff", ".webp"),
    )
)
"""File names taken for images: what Pillow opens by itself (no EPS, PDF or video, which need programs), and `.npy`."""

Data = Path | bytes | Image.Image | NDArray[Any]
"""What one item is before decoding: an image file, its bytes, a Pillow image, or an array [H,W] or [H,W,C]."""


@dataclass(frozen=True)
class Skipped:
    """An image that was asked for and left out."""

    name: str
    reason: str


class Items(Protocol):
    """The images behind a `Source`."""

    def read(self, i: int) -> Data:
        """Return image i undecoded."""

    def digest(self) -> str:
        """Return a hash that changes whenever an image does."""


@dataclass(frozen=True)
class Files:
    """Image files; a file is known by its path, size, time of change and mode."""

    paths: list[Path]

    def read(self, i: int) -> Path:
        """Return the path of file i."""
        return self.paths[i]

    def digest(self) -> str:
        """Hash the paths and stamps; no file is opened."""
        digest = hashlib.blake2b(digest_size=16)
        for path in self.paths:
            digest.update(os.fsencode(path.absolute()) + b"\0" + _stamp(path).encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class Stack:
    """An array [N,H,W] or [N,H,W,C]; `stamp` stands for its content where it lies in a file."""

    array: NDArray[Any]
    stamp: str = ""

    def read(self, i: int) -> NDArray[Any]:
        """Return array i, [H,W] or [H,W,C]."""
        item: NDArray[Any] = self.array[i]
        return item

    def digest(self) -> str:
        """Hash the file's stamp, or every value of an array that has no file."""
        digest = hashlib.blake2b(f"{self.array.dtype.str} {self.array.shape} {self.stamp}".encode(), digest_size=16)
        if not self.stamp:
            for item in self.array:
                digest.update(item.tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Dataset:
    """Items `index` of a map-style data set; `content` is the hash of all of them."""

    dataset: Any
    index: list[int]
    content: str

    def read(self, i: int) -> Data:
        """Return image i without its label."""
        return split_item(self.dataset[self.index[i]])[0]

    def digest(self) -> str:
        """Return the hash taken when the data set was read through."""
        return self.content


@dataclass(frozen=True)
class Source:
    """What was asked for.

    Attributes:
        names: one per image: its path relative to `root` with '/' separators, or "0000012" for arrays.
        labels: int64 [N], -1 = unlabelled, or None without labels; they index `classes`.
        label_origin: "first folder level", "second folder level", "labels.csv", "array", "data set" or "none".
        splits, groups: one text per image where the folders (train/val/test) or the CSV file tell them, else None.
        skipped: candidates that cannot be opened at all, such as dangling links.
        root: the folder that names are relative to; None for arrays.
        described: the source as the user would call it, for messages.
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

    def __len__(self) -> int:
        return len(self.names)

    def read(self, i: int) -> Data:
        """Return image i undecoded: a path, a Pillow image or an array."""
        return self.items.read(i)

    def digest(self) -> str:
        """Hash of names and content; of paths, sizes and times for files, which are not opened."""
        digest = hashlib.blake2b(self.items.digest().encode(), digest_size=16)
        for name in self.names:
            digest.update(os.fsencode(name) + b"\n")
        return digest.hexdigest()


def find_images(source: Any, labels: str | Path = "auto") -> Source:
    """List the images of `source` in a fixed order.

    Args:
        source: a folder of any nesting; a `.txt` list of paths (relative ones to the list's folder); a glob; an array
            [N,H,W] or [N,H,W,C], or the `.npy` or `.npz` file of one (arrays `images` or `x`, and `labels` or `y`); or
            a map-style data set whose items are a Pillow image, an array [H,W(,C)], a tensor [C,H,W] or [H,W], a dict
            with "image" and perhaps "label", or a tuple (image, label). A data set is read through once.
        labels: "auto" (folders that name classes; a data set's own labels), "folder", "none", or a CSV file with the
            columns path, label and perhaps split and group.

    Raises:
        UserError: nothing there, no images, one single image file, or labels that do not fit.
    """
    choice = str(labels)
    if isinstance(source, np.ndarray):
        return _from_array(source, None, "the array", choice)
    if not isinstance(source, str | os.PathLike):
        return _from_dataset(source, choice)
    text = os.fspath(source)
    path = Path(text).expanduser()
    if path.is_dir():
        names, skipped = _walk(path)
        return _from_files(path, names, skipped, text, choice)
    if path.is_file():
        return _from_file(path, text, choice)
    if any(mark in text for mark in "*?["):
        root, names, skipped = _glob(path)
        return _from_files(root, names, skipped, text, choice)
    raise UserError(f"{text}: no such file or folder; give a folder of images, a .txt list, a glob, .npy or .npz")


def split_item(item: Any) -> tuple[Data, Any]:
    """Split an item of a data set into its image (arrays channel-last) and its label (None without one).

    Raises:
        TypeError: the item is no image.
    """
    image, label = item, None
    if isinstance(item, dict):
        image, label = item.get("image"), item.get("label")
    elif isinstance(item, tuple | list):
        image, label = item[0], item[1] if len(item) > 1 else None
    if isinstance(image, Image.Image | np.ndarray):
        return image, label
    if hasattr(image, "movedim"):  # a torch tensor, told without importing torch; channels come first there
        return np.asarray(image.movedim(0, -1) if image.ndim == 3 else image), label
    raise TypeError(f"an item is a {type(image).__name__}, not a Pillow image, an array or (image, label)")


def _from_files(root: Path, names: list[str], skipped: list[Skipped], described: str, choice: str) -> Source:
    if not names:
        broken = f" ({len(skipped)} cannot be opened: {skipped[0].name}, {skipped[0].reason})" if skipped else ""
        raise UserError(f"{described}: no images found{broken}; looked for .jpg, .png, .tif, .webp and the like")
    found = _choose(choice, names, described, lambda: from_folders(names, described, required=False))
    return _source(names, found, skipped, root, described, Files([root / name for name in names]))


def _from_file(path: Path, described: str, choice: str) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        names, skipped = _read_list(path)
        return _from_files(path.parent, names, skipped, described, choice)
    if suffix in (".npy", ".npz"):
        images, own = _load_arrays(path)
        return _from_array(images, own, described, choice, f"{path.absolute()} {_stamp(path)}")
    if suffix in EXTENSIONS:
        raise UserError(f"{described} is one single image; give the folder it lies in")
    raise UserError(f"{described}: not a folder, a .txt list, .npy or .npz; unpack archives first")


def _from_array(array: NDArray[Any], own: NDArray[Any] | None, described: str, choice: str, stamp: str = "") -> Source:
    if array.dtype.kind not in "buif":
        raise UserError(f"{described}: its values are {array.dtype}; give uint8, uint16 or float")
    if array.ndim not in (3, 4) or not array.size:
        raise UserError(f"{described}: its shape is {array.shape}; give [N,H,W] or [N,H,W,C]")
    if array.ndim == 4 and array.shape[1] < 8 <= array.shape[3]:
        raise UserError(f"{described}: its shape {array.shape} has the channels first; give [N,H,W,C]")
    if array.ndim == 3 and array.shape[2] <= 4:
        raise UserError(f"{described}: its shape {array.shape} is that of one image; give [N,H,W] or [N,H,W,C]")
    if own is not None and own.size != len(array):
        raise UserError(f"{described}: {own.size} labels for {len(array)} images")
    names = [f"{i:07d}" for i in range(len(array))]

    def found() -> Labels:
        return Labels.none() if own is None else Labels(*encode(own.ravel().tolist()), "array")

    return _source(names, _choose(choice, names, described, found), [], None, described, Stack(array, stamp))


def _from_dataset(dataset: Any, choice: str) -> Source:
    described = f"the {type(dataset).__name__}"
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UserError(f"{described} is no folder, array or map-style data set (needs __len__ and __getitem__)")
    digest = hashlib.blake2b(digest_size=16)
    index, skipped, values = [], [], []
    for i in range(len(dataset)):
        # A data set runs any code, so anything may be raised; the item is set aside like a broken file.
        try:
            image, label = split_item(dataset[i])
        except Exception as error:
            skipped.append(Skipped(f"{i:07d}", f"{type(error).__name__}: {error}"))
            continue
        array = np.asarray(image)
        digest.update(f"{array.shape} {array.dtype} {getattr(image, 'mode', '')}".encode())
        digest.update(array.tobytes())
        index.append(i)
        values.append(label)
    if not index:
        reason = f": {skipped[0].reason}" if skipped else ""
        raise UserError(f"{described} holds no readable image{reason}")
    names = [f"{i:07d}" for i in index]
    found = _choose(choice, names, described, lambda: _dataset_labels(values, getattr(dataset, "classes", None)))
    return _source(names, found, skipped, None, described, Dataset(dataset, index, digest.hexdigest()))


def _dataset_labels(values: Sequence[Any], classes: Any) -> Labels:
    """Labels of a data set's items, where each is a whole number; its `classes` name them where it has such a list."""
    arrays = [np.asarray(value) for value in values]
    if any(array.size != 1 or array.dtype.kind not in "iu" for array in arrays):
        return Labels.none()
    numbers = [int(array.item()) for array in arrays]
    if isinstance(classes, list) and min(numbers) >= -1 and max(numbers) < len(classes):
        return Labels(np.array(numbers, np.int64), [str(name) for name in classes], "data set")
    return Labels(*encode(numbers), "data set")


def _choose(choice: str, names: list[str], described: str, automatic: Callable[[], Labels]) -> Labels:
    if choice == "none":
        return Labels.none()
    if choice == "auto":
        return automatic()
    if choice == "folder":
        return from_folders(names, described, required=True)
    return from_csv(Path(choice).expanduser(), names, described)


def _source(
    names: list[str], found: Labels, skipped: list[Skipped], root: Path | None, described: str, items: Items
) -> Source:
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


def _walk(root: Path) -> tuple[list[str], list[Skipped]]:
    """Names of the images below `root`, sorted; every real folder is visited once, links to folders never."""
    names: list[str] = []
    skipped: list[Skipped] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root / folder))
        except OSError as error:
            skipped.append(Skipped(folder or ".", f"folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if _ignored(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif Path(entry.name).suffix.lower() in EXTENSIONS:
                _sort_out(root, name, names, skipped)
    return sorted(names), sorted(skipped, key=lambda item: item.name)


def _glob(pattern: Path) -> tuple[Path, list[str], list[Skipped]]:
    """Root, names and skipped of a glob; the root is its leading part without wildcards."""
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if any(mark in part for mark in "*?["))
    root = Path(*parts[:first])
    names: list[str] = []
    skipped: list[Skipped] = []
    # pathlib's ** does not follow links to folders, which glob.glob's does, in endless walks.
    for path in sorted(set(root.glob("/".join(parts[first:])))):
        below = path.relative_to(root)
        if path.suffix.lower() in EXTENSIONS and not any(_ignored(part) for part in below.parts):
            _sort_out(root, below.as_posix(), names, skipped)
    return root, sorted(names), skipped


def _read_list(path: Path) -> tuple[list[str], list[Skipped]]:
    """Names and skipped of a text list, in its own order; any extension will do, since each file was asked for."""
    names: list[str] = []
    skipped: list[Skipped] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a list of paths in UTF-8 ({error})") from error
    for line in filter(str.strip, lines):
        asked = Path(line)
        inside = asked.is_absolute() and asked.is_relative_to(path.parent.absolute())
        name = (asked.relative_to(path.parent.absolute()) if inside else asked).as_posix()
        _sort_out(path.parent, name, names, skipped)
    return names, skipped


def _sort_out(root: Path, name: str, names: list[str], skipped: list[Skipped]) -> None:
    """Append `name` to `names`, or to `skipped` where it is no file; a folder behind a link is neither."""
    path = root / name
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = "dangling link" if path.is_symlink() and isinstance(error, FileNotFoundError) else error.strerror
        skipped.append(Skipped(name, str(reason)))
        return
    if stat.S_ISREG(mode):
        names.append(name)
    elif not stat.S_ISDIR(mode):  # opening a pipe would wait for ever
        skipped.append(Skipped(name, "not a regular file"))


def _ignored(part: str) -> bool:
    return part.startswith(".") or part == "__MACOSX"


def _stamp(path: Path) -> str:
    try:
        info = path.stat()
    except OSError as error:
        return f"gone: {error.errno}"
    return f"{info.st_size} {info.st_mtime_ns} {info.st_mode}"


def _load_arrays(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images and labels (None without) of a `.npy` (memory-mapped) or `.npz` file."""
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, mmap_mode="r", allow_pickle=False), None
        with np.load(path, allow_pickle=False) as arrays:
            images = next((arrays[key] for key in ("images", "x") if key in arrays), None)
            labels = next((arrays[key] for key in ("labels", "y") if key in arrays), None)
            present = ", ".join(arrays.files)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read as NumPy arrays ({error})") from error
    if images is None:
        raise UserError(f"{path}: no array named images or x, only {present}; save the images under one of these")
    return images, labels
