"""Objects in images, boxes and outlines, as COCO writes them (spec evaluation, section 1).

    root/images/a.jpg        root/annotations/instances.json            or, with both splits in one root,
    root/images/train/a.jpg  root/annotations/instances_train.json      root/images/val/b.jpg  ..._val.json

Of the file `images` (id, file_name, width, height), `categories` (id, name) and `annotations` (image_id, category_id,
bbox as left, top, width, height in pixels, and perhaps segmentation, iscrowd, area) are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.errors import UserError

FOLDER = "annotations"
EXTRA = 'outlines of objects need an extra: pip install "belvedere[detection]"'


@dataclass(frozen=True)
class Instance:
    """One object: class id, box (left, top, width, height), whether it is a group, pixels, and its outline if told.

    An outline is a list of polygons or a run-length code, as the file has it.
    """

    label: int
    box: tuple[float, float, float, float]
    crowd: bool
    area: float
    outline: Any = None

    def mask(self, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(h, w) pixels of the object in its image of that size; those of its box where it has no outline.

        Raises:
            UserError: when the extra is not installed.
        """
        height, width = size
        if self.outline is None:
            left, top, right, bottom = self.box[0], self.box[1], self.box[0] + self.box[2], self.box[1] + self.box[3]
            filled = np.zeros(size, bool)
            filled[max(0, round(top)) : round(bottom), max(0, round(left)) : round(right)] = True
            return filled
        try:
            from faster_coco_eval.core import mask
        except ImportError as error:
            raise UserError(EXTRA) from error
        codes = self.outline
        if isinstance(codes, list):
            codes = mask.merge(mask.frPyObjects(codes, height, width))
        elif isinstance(codes["counts"], list):
            codes = mask.frPyObjects(codes, height, width)
        found: NDArray[np.bool_] = mask.decode(codes).astype(bool)
        return found


@dataclass(frozen=True)
class Annotations:
    """The objects of some images, in their order.

    Attributes:
        objects: a list an image.
        sizes: (h, w) of each image in pixels, which boxes and outlines are in.
        classes: names of the classes, by id.
    """

    objects: list[list[Instance]]
    sizes: list[tuple[int, int]]
    classes: list[str]

    def __len__(self) -> int:
        return len(self.objects)

    @property
    def outlined(self) -> bool:
        """Whether every object but groups has an outline."""
        return not self.without_outline

    @property
    def without_outline(self) -> int:
        """Objects, groups left aside, that have a box alone."""
        return sum(one.outline is None and not one.crowd for objects in self.objects for one in objects)

    def subset(self, index: Sequence[int] | NDArray[np.int64]) -> Annotations:
        """Those of the images `index`, in that order."""
        rows = [int(i) for i in index]
        return replace(self, objects=[self.objects[i] for i in rows], sizes=[self.sizes[i] for i in rows])

    def fingerprint(self) -> str:
        """Hash of all objects and class names."""
        text = json.dumps([self.classes, [[vars(one) for one in objects] for objects in self.objects]], sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def annotation_files(root: Path) -> dict[str, Path]:
    """The files of objects beside `root/images`, by the folder below it that they are of ("" for all of it)."""
    if not (root / "images").is_dir():
        return {}
    files = sorted((root / FOLDER).glob("instances*.json"))
    return {file.stem.removeprefix("instances").removeprefix("_"): file for file in files}


def annotated_rows(root: Path, names: Sequence[str]) -> NDArray[np.int64]:
    """Rows of the images (names relative to `root/images`) whose folder has a file: COCO's test images have none.

    All rows where one file is for the whole of `root/images`.
    """
    files = annotation_files(root)
    return np.array([i for i, name in enumerate(names) if "" in files or name.partition("/")[0] in files], np.int64)


def find_annotations(root: Path, names: Sequence[str], sizes: NDArray[np.int32] | None = None) -> Annotations:
    """The objects of images, by their names relative to `root/images`; an image without one is an image all the same.

    Args:
        sizes: (N, 2) h and w of the images in their original size, to hold the files to.

    Raises:
        UserError: when there is no such file, it is none of COCO's form, or an image is not in it.
    """
    files = annotation_files(root)
    if not files:
        raise UserError(f"{root}: has no {FOLDER}/instances.json beside images/")
    tables = {split: _Table.read(file) for split, file in files.items()}
    classes = next(iter(tables.values())).classes
    for other in tables.values():
        if other.classes != classes:
            first = next(iter(tables.values())).file
            raise UserError(f"{other.file}: has other categories than {first}; give both the same")
    objects, shapes = [], []
    for i, name in enumerate(names):
        split, _, rest = name.partition("/")
        table: _Table | None = tables.get(split) if rest else None
        table = tables.get("") if table is None else table
        # A file of one split may or may not name the split's folder.
        key = rest if table is not None and rest in table.images else name
        if table is None or key not in table.images:
            where = root / FOLDER if table is None else table.file
            raise UserError(f"{where}: has no entry for the image {name}; add one, without annotations if it is empty")
        shape, found = table.images[key]
        if sizes is not None and tuple(sizes[i].tolist()) != shape:
            height, width = sizes[i].tolist()
            raise UserError(f"{table.file}: calls {key} {shape[1]} x {shape[0]}, the image is {width} x {height}")
        objects.append(found)
        shapes.append(shape)
    return Annotations(objects, shapes, list(classes.values()))


@dataclass(frozen=True)
class _Table:
    """One file: (h, w) and objects of each image by file name, and names of the classes by the file's own ids."""

    file: Path
    images: dict[str, tuple[tuple[int, int], list[Instance]]]
    classes: dict[int, str]

    @staticmethod
    def read(file: Path) -> _Table:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            classes = {int(one["id"]): str(one["name"]) for one in content["categories"]}
            classes = dict(sorted(classes.items()))
            label = {number: k for k, number in enumerate(classes)}
            images: dict[int, tuple[str, tuple[int, int], list[Instance]]] = {
                one["id"]: (str(one["file_name"]), (int(one["height"]), int(one["width"])), [])
                for one in content["images"]
            }
            for one in content["annotations"]:
                _, size, found = images[one["image_id"]]
                instance = _instance(one, label, size)
                if instance is not None:
                    found.append(instance)
            names = [name for name, _, _ in images.values()]
            if len(set(names)) < len(names):
                raise ValueError("two images of one file_name")
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise UserError(f"{file}: cannot be read as JSON ({error})") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{file}: is no file of COCO's form, images, categories and annotations with bbox ({error!r})"
            ) from error
        return _Table(file, {name: (size, found) for name, size, found in images.values()}, classes)


def _instance(one: Mapping[str, Any], label: Mapping[int, int], size: tuple[int, int]) -> Instance | None:
    """An object in an image of `size`; None for a box without a pixel, of which COCO's own files have some.

    Raises:
        ValueError: when the outline is neither polygons nor a run-length code of this size.
    """
    left, top, width, height = (float(value) for value in one["bbox"])
    # As single floats, in which detectors compute.
    if not (np.float32(left + width) > np.float32(left) and np.float32(top + height) > np.float32(top)):
        return None
    outline = one.get("segmentation") or None
    if isinstance(outline, dict):
        if "counts" not in outline or list(outline.get("size", ())) != list(size):
            raise ValueError(f"annotation {one.get('id')}: its run-length code is not of size {list(size)}")
    elif not all(isinstance(ring, list) and len(ring) >= 6 and len(ring) % 2 == 0 for ring in outline or ()):
        raise ValueError(f"annotation {one.get('id')}: a polygon is x, y of three points or more")
    return Instance(
        label=label[int(one["category_id"])],
        box=(left, top, width, height),
        crowd=bool(one.get("iscrowd", 0)),
        area=float(one.get("area", width * height)),
        outline=outline,
    )
