"""Classes of pixels: one mask file an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from belvedere.errors import UserError

IGNORE = 255
"""Class of a pixel that no protocol reads."""


@dataclass(frozen=True)
class Masks:
    """Masks of some images, in their order, read as they are asked for.

    Attributes:
        files: one a image.
        classes: names of the classes, by id.
    """

    files: list[Path]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.files)

    def subset(self, index: Sequence[int] | NDArray[np.int64]) -> Masks:
        """The masks `index`, in that order."""
        return replace(self, files=[self.files[int(i)] for i in index])

    def __getitem__(self, i: int) -> NDArray[np.uint8]:
        """(h, w) uint8 class ids of image i in its original size, `IGNORE` for pixels to leave out.

        Raises:
            UserError: when the file is no mask of one channel.
        """
        try:
            with Image.open(self.files[i]) as image:
                mask = np.array(image)
        except OSError as error:
            raise UserError(f"{self.files[i]}: is no mask that can be read ({error})") from error
        if mask.ndim != 2 or mask.dtype != np.uint8:
            raise UserError(f"{self.files[i]}: a mask has one channel of 8 bits, class ids, with 255 for unlabelled")
        return mask


def find_masks(root: Path, names: Sequence[str]) -> Masks:
    """The masks of images: `root/masks/a/x.png` is that of the image "a/x.jpg" below `root/images`.

    Class names are the lines of `root/classes.txt`, in the order of their ids; without it classes are called by number.

    Raises:
        UserError: when an image has none.
    """
    files = [(root / "masks" / name).with_suffix(".png") for name in names]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: {len(missing)} of {len(files)} images have no mask; add them")
    listed = root / "classes.txt"
    if listed.is_file():
        return Masks(files, listed.read_text(encoding="utf-8").rstrip().split("\n"))
    found = Masks(files, [])
    largest = max(int(mask[mask != IGNORE].max(initial=0)) for mask in map(found.__getitem__, range(len(files))))
    return replace(found, classes=[str(i) for i in range(largest + 1)])
