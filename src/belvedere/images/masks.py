"""Classes of pixels: one mask file an image (spec evaluation, section 1).

    root/images/a.jpg        root/masks/a.png           or, with both splits in one root,
    root/images/train/a.jpg  root/masks/train/a.png     root/images/val/b.jpg  root/masks/val/b.png

A mask is a PNG of one channel: class ids in the image's original size, 255 for pixels to leave out. In a palette PNG
the ids are the palette's indices. `annotations/` and `labels/` are other names of `masks/`. Beside them may lie:

- `classes.txt`: a class a line, its name or its id and its name, in the order of the ids. Of a class whose name says
  so (void, ignore, unlabelled) pixels are left out as well.
- `palette.csv`, for masks that are pictures in colour: the columns name, r, g and b; its order gives the ids.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from belvedere.errors import UserError
from belvedere.images.decode import reason
from belvedere.images.labels import own_split

IGNORE = 255
"""Class of a pixel that no protocol reads."""
FOLDERS = ("masks", "annotations", "labels")
"""Names of the folder of masks beside `images`."""
FORMATS = ("PNG",)
"""By content, whatever a file is named: Pillow would run a program for an EPS, and JPEG changes ids."""
_VOID = frozenset(("void", "ignore", "ignored", "unlabelled", "unlabeled"))


class MaskOptions(BaseModel):
    """How the ids in mask files are meant.

    `reduce_zero_label`: id 0 stands for unlabelled pixels and the classes begin with id 1 (ADE20K). As in
    mmsegmentation 0 is left out, every other id is one less, and 255 stays 255.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    reduce_zero_label: bool = False


@dataclass(frozen=True)
class Masks:
    """Masks of some images, in their order, read as they are asked for.

    Attributes:
        files: one an image.
        classes: names of the classes, by id.
        ids: (256,) class of each id in the files, `IGNORE` for those left out, -1 for those that no file may have.
        colours: 256 * (256 * r + g) + b -> class, for masks in colour.
    """

    files: list[Path]
    classes: list[str]
    ids: NDArray[np.int16] = field(default_factory=lambda: np.arange(256, dtype=np.int16))
    colours: Mapping[int, int] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, index: Sequence[int] | NDArray[np.int64]) -> Masks:
        """The masks `index`, in that order."""
        return replace(self, files=[self.files[int(i)] for i in index])

    def fingerprint(self) -> str:
        """Hash of the files and of what their ids and colours mean: equal for masks that say the same of all pixels."""
        meant = (self.classes, self.ids.tolist(), sorted((self.colours or {}).items()))
        digest = hashlib.blake2b(repr(meant).encode("utf-8", "replace"), digest_size=16)
        for file in self.files:
            try:
                content = file.read_bytes()
            except OSError as error:
                raise _unreadable(file, error) from error
            # Each hashed by itself, so that no two lists of files run together into the same bytes.
            digest.update(hashlib.blake2b(content).digest())
        return digest.hexdigest()

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """(h, w) uint8 class ids of image i in its original size, `IGNORE` for pixels to leave out.

        Raises:
            UserError: when the file is no mask, or has an id or a colour that is no class.
        """
        file = self.files[i]
        if self.colours is not None:
            return _by_colour(file, _read(file, "RGB"), self.colours)
        found = _read(file, None)
        if found.ndim != 2:
            raise UserError(
                f"{file}: a mask has one channel, class ids, with 255 for unlabelled; "
                "for masks in colour put a palette.csv with the columns name,r,g,b beside the folder of masks"
            )
        largest = int(found.max(initial=0))
        if largest > IGNORE:
            raise UserError(f"{file}: has the id {largest}; ids are 0 to 254, and 255 for unlabelled")
        classes = self.ids[found]
        wrong = found[classes < 0]
        if wrong.size:
            raise UserError(
                f"{file}: has the id {wrong.min()}, but classes.txt names {len(self.classes)} classes, "
                "and 255 is unlabelled; mend one of them"
            )
        read: NDArray[np.uint8] = classes.astype(np.uint8)
        return read


def mask_folder(root: Path) -> Path | None:
    """The folder of masks of `root`, where it has one beside a folder `images`; COCO's `annotations` is none."""
    folders = [root / name for name in FOLDERS if (root / name).is_dir()]
    found = (folder for folder in folders if next(folder.glob("instances*.json"), None) is None)
    return next(found, None) if (root / "images").is_dir() else None


def find_masks(
    root: Path, names: Sequence[str], sizes: NDArray[np.int32] | None = None, options: MaskOptions | None = None
) -> Masks:
    """The masks of images: `root/masks/a/x.png` is that of the image "a/x.jpg" below `root/images`.

    `classes.txt` and `palette.csv` are looked for in `root` and in the folder above it, which the splits may share;
    without them classes are called by number, up to the largest that occurs.

    Args:
        names: of the images, relative to `root/images`.
        sizes: (N, 2) h and w of the images in their original size, to hold the masks to.

    Raises:
        UserError: when there are no masks, an image has none or one of another size, or the classes cannot be read.
    """
    folder = mask_folder(root)
    if folder is None:
        raise UserError(f"{root}: has no folder of masks beside images/; call it masks")
    files = [(folder / name).with_suffix(".png") for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: {len(missing)} of {len(files)} images have no mask; add them")
    if sizes is not None:
        _check_sizes(files, sizes)
    zero = options is not None and options.reduce_zero_label
    beside = [place / name for name in ("palette.csv", "classes.txt") for place in (root, root.parent)]
    listed = next((file for file in beside if file.is_file()), None)
    if listed is not None and listed.suffix == ".csv":
        if zero:
            raise UserError(f"masks.reduce_zero_label: {listed} gives masks in colour, which have no ids to reduce")
        classes, colours = _palette(listed)
        return Masks(files, classes, colours=colours)
    if listed is not None:
        classes, ids = _named(_lines(listed), zero)
        return Masks(files, classes, ids)
    found = Masks(files, [], _shifted(zero))
    largest = max(int(mask[mask != IGNORE].max(initial=0)) for mask in map(found.__getitem__, range(len(files))))
    return replace(found, classes=[str(i) for i in range(largest + 1)])


def split_rows(names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Rows for training and for testing, where the first folder of the names tells them apart; else None.

    Only its first letters count: COCO's folders are train2017 and val2017.
    """
    folders = [name.partition("/")[0].lower() if "/" in name else "" for name in names]
    return own_split([re.split(r"[^a-z]", folder, maxsplit=1)[0] for folder in folders])


def shared_classes(train: Masks, test: Masks) -> list[str]:
    """Names of the classes of both.

    Raises:
        UserError: when one id has two names.
    """
    longer, shorter = sorted((train.classes, test.classes), key=len, reverse=True)
    # Classes that are only numbers end with the largest that occurs, which may differ.
    numbered = longer == [str(i) for i in range(len(longer))]
    if longer != shorter and not (numbered and longer[: len(shorter)] == shorter):
        odd = next((pair for pair in zip(longer, shorter, strict=False) if pair[0] != pair[1]), None)
        what = f"'{odd[0]}' and '{odd[1]}'" if odd else f"{len(longer)} and {len(shorter)} of them"
        raise UserError(f"the masks of training and test images have other classes: {what}; give both one classes.txt")
    return longer


def _read(file: Path, mode: str | None) -> NDArray[Any]:
    try:
        with Image.open(file, formats=FORMATS) as image:
            return np.array(image if mode is None else image.convert(mode))
    except Exception as error:  # a broken file raises whatever its decoder likes
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    why = "not a PNG" if isinstance(error, UnidentifiedImageError) else reason(error)
    return UserError(f"{file}: is no mask that can be read ({why})")


def _by_colour(file: Path, pixels: NDArray[np.uint8], colours: Mapping[int, int]) -> NDArray[np.uint8]:
    """Classes of (h, w, 3) colours."""
    codes = pixels.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    found, place = np.unique(codes, return_inverse=True)
    unknown = [int(code) for code in found if int(code) not in colours]
    if unknown:
        code = unknown[0]
        raise UserError(
            f"{file}: has the colour {code >> 16},{code >> 8 & 255},{code & 255}, which palette.csv does not name; "
            "add it, called void if it is to be left out"
        )
    return np.array([colours[int(code)] for code in found], np.uint8)[place].reshape(codes.shape)


def _check_sizes(files: Sequence[Path], sizes: NDArray[np.int32]) -> None:
    """Hold masks to the sizes of their images by their headers alone."""
    for file, (height, width) in zip(files, sizes.tolist(), strict=True):
        try:
            with Image.open(file, formats=FORMATS) as image:
                found = image.size
        except Exception as error:
            raise _unreadable(file, error) from error
        if found != (width, height):
            raise UserError(
                f"{file}: is {found[0]} x {found[1]}, its image {width} x {height}; a mask has its image's size"
            )


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read as text in UTF-8 ({error})") from error


def _named(lines: Sequence[str], zero: bool) -> tuple[list[str], NDArray[np.int16]]:
    """Names of the classes that are read, and the class of every id in the files."""
    if len(lines) > IGNORE:
        raise UserError(f"classes.txt: names {len(lines)} classes; masks of 8 bits hold {IGNORE} and unlabelled")
    parts = [re.fullmatch(r"(\d+)[\s:,]+(.+)", line) for line in lines]
    numbered = all(part is not None and int(part[1]) == i for i, part in enumerate(parts))
    names = [part[2] if numbered and part is not None else line for part, line in zip(parts, lines, strict=True)]
    ids = np.full(256, -1, np.int16)
    ids[IGNORE] = IGNORE
    classes: list[str] = []
    for i, name in enumerate(names):
        ids[i] = IGNORE if _is_void(name) else len(classes)
        classes += [] if _is_void(name) else [name]
    return classes, _reduced(ids) if zero else ids


def _is_void(name: str) -> bool:
    return bool(_VOID & set(re.findall(r"[a-z]+", name.lower())))


def _shifted(zero: bool) -> NDArray[np.int16]:
    ids = np.arange(256, dtype=np.int16)
    return _reduced(ids) if zero else ids


def _reduced(ids: NDArray[np.int16]) -> NDArray[np.int16]:
    """The class of every id in files whose id 0 is no class: those of one less, 255 stays."""
    return np.concatenate([[IGNORE], ids[:254], [IGNORE]]).astype(np.int16)


def _palette(file: Path) -> tuple[list[str], dict[int, int]]:
    """Names of the classes that are read, and the class of every colour; several colours may be of one class."""
    rows = list(csv.DictReader(_lines(file), skipinitialspace=True))
    classes: list[str] = []
    colours: dict[int, int] = {}
    try:
        for row in rows:
            red, green, blue = (int(row[name]) for name in "rgb")
            name = row["name"]
            if not _is_void(name) and name not in classes:
                classes.append(name)
            colours[(red << 16) + (green << 8) + blue] = IGNORE if _is_void(name) else classes.index(name)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: a palette has the columns name,r,g,b, with 0 to 255 in the last three") from error
    return classes, colours
