"""Images in one array, in memory or in a `.npy` or `.npz` file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from belvedere.errors import UserError
from belvedere.images.decode import reason
from belvedere.images.files import stamp
from belvedere.images.items import Source, choose_labels, make_source
from belvedere.images.labels import Labels, encode
from belvedere.images.npy import members, read_member


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


def from_array_file(path: Path, described: str, choice: str, split: str = "") -> Source:
    """The images of a `.npy` or `.npz` file, or of one of its splits.

    Raises:
        UserError: no arrays in it, or none that are images.
    """
    images, own = _load_arrays(path, split)
    return from_array(images, own, described, choice, f"{path.absolute()} {split} {stamp(path)}")


def from_array(array: NDArray[Any], own: NDArray[Any] | None, described: str, choice: str, stamped: str = "") -> Source:
    """The images of an array [N,H,W] or [N,H,W,C] with labels of its `own`, or None.

    Raises:
        UserError: its shape or values are not those of images.
    """
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

    return make_source(
        names, choose_labels(choice, names, described, found), [], None, described, Stack(array, stamped)
    )


def _load_arrays(path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images and labels (None without) of a `.npy` (memory-mapped) or `.npz` file, or of one of its splits."""
    ahead = f"{split}_" if split else ""
    wanted = [f"{ahead}{name}" for name in ("images", "x")], [f"{ahead}{name}" for name in ("labels", "y")]
    # Damaged archives and headers raise whatever their readers like.
    try:
        if path.suffix.lower() == ".npy":
            return open_memmap(path, mode="r"), None
        with ZipFile(path) as archive:
            present = members(archive)
            images, labels = (
                next((read_member(archive, present[key]) for key in keys if key in present), None) for keys in wanted
            )
    except Exception as error:
        raise UserError(f"{path}: cannot be read as NumPy arrays ({reason(error)})") from error
    if images is None:
        splits = [name.removesuffix("_images") for name in present if name.endswith("_images")]
        choose = f"give {path}/{splits[0]} for {splits[0]}_images" if splits else "save the images under one of these"
        raise UserError(f"{path}: no array named {' or '.join(wanted[0])}, only {', '.join(present)}; {choose}")
    return images, labels
