"""Map-style data sets: any object with `__len__` and `__getitem__`, and Hugging Face's without decoding a picture.

Of a Hugging Face data set only the label column is read to begin with: its image column gives files' bytes, and its
fingerprint stands for its content. Any other object can only be known by reading it through once.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from belvedere.errors import UserError
from belvedere.images.items import Data, Skipped, Source, choose_labels, make_source
from belvedere.images.labels import Labels, encode
from belvedere.images.tables import IMAGE_COLUMNS, labels_of

SAVED, SAVED_SPLITS = "state.json", "dataset_dict.json"
"""What `save_to_disk` leaves in a folder."""


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
class HuggingFace:
    """The images of a `datasets.Dataset` whose image column is left undecoded."""

    dataset: Any
    column: str
    fingerprint: str

    def read(self, i: int) -> Data:
        """Return the file of image i, or where it lies.

        Raises:
            ValueError: the row holds none, or names what is no file.
        """
        item = self.dataset[i][self.column]
        if not item or (item["bytes"] is None and item["path"] is None):
            raise ValueError("no image in this row")
        if item["bytes"] is not None:
            return bytes(item["bytes"])
        path = Path(item["path"])
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError("not a regular file")
        return path

    def digest(self) -> str:
        """Return the data set's own fingerprint, with the column."""
        return f"{self.fingerprint} {self.column}"


def from_dataset(dataset: Any, choice: str) -> Source:
    """The images of a map-style data set.

    Raises:
        UserError: it is none, or holds no image.
    """
    described = f"the {type(dataset).__name__}"
    if isinstance(dataset, dict) and dataset and type(dataset).__module__.startswith("datasets"):
        raise UserError(
            f"{described} has the splits {', '.join(dataset)}; give one, as in data[{next(iter(dataset))!r}]"
        )
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise UserError(f"{described} is no folder, array or map-style data set (needs __len__ and __getitem__)")
    column = _image_column(dataset)
    if column is not None:
        return _from_hugging_face(dataset, column, described, choice)
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
    found = choose_labels(choice, names, described, lambda: _labels(values, getattr(dataset, "classes", None)))
    return make_source(names, found, skipped, None, described, Dataset(dataset, index, digest.hexdigest()))


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a data set to this folder."""
    return (folder / SAVED).is_file() or (folder / SAVED_SPLITS).is_file()


def from_saved(folder: Path, described: str, choice: str) -> Source:
    """The images of a folder that `Dataset.save_to_disk` wrote.

    Raises:
        UserError: `datasets` is missing, the folder is damaged, or has splits of which one is to be given.
    """
    if (folder / SAVED_SPLITS).is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{SAVED}"))
        raise UserError(f"{described}: has the splits {', '.join(splits)}; give one, as in {folder / splits[0]}")
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"{described}: needs datasets; install it with pip install 'belvedere[datasets]'") from error
    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged folder raises what its files make of it
        raise UserError(f"{described}: cannot be read as a saved data set ({error})") from error
    column = _image_column(dataset)
    if column is None:
        raise UserError(f"{described}: none or several of its columns are images ({', '.join(dataset.column_names)})")
    return _from_hugging_face(dataset, column, described, choice)


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


def _image_column(dataset: Any) -> str | None:
    """The one image column of a Hugging Face data set; None for any other object, or one that a transform changes."""
    library = sys.modules.get("datasets")
    if library is None or not isinstance(dataset, library.Dataset) or dataset.format["type"] is not None:
        return None
    columns = [name for name, feature in dataset.features.items() if isinstance(feature, library.Image)]
    named = [name for name in columns if name.lower() in IMAGE_COLUMNS]
    chosen = named or columns
    return chosen[0] if len(chosen) == 1 else None


def _from_hugging_face(dataset: Any, column: str, described: str, choice: str) -> Source:
    library = sys.modules["datasets"]
    if not len(dataset):
        raise UserError(f"{described} holds no images")
    files = dataset.select_columns([column]).cast_column(column, library.Image(decode=False))
    names = [f"{i:07d}" for i in range(len(dataset))]

    def found() -> Labels:
        classes = {name: kind for name, kind in dataset.features.items() if isinstance(kind, library.ClassLabel)}
        label = "label" if "label" in dataset.features else next(iter(classes), None)
        if label is None:
            return Labels.none()
        values = dataset.select_columns([label])[:][label]
        return labels_of(values, list(classes[label].names) if label in classes else None, "data set")

    items = HuggingFace(files, column, dataset._fingerprint)
    return make_source(names, choose_labels(choice, names, described, found), [], None, described, items)


def _labels(values: Sequence[Any], classes: Any) -> Labels:
    """Labels of a data set's items, where each is a whole number; its `classes` name them where it has such a list."""
    arrays = [np.asarray(value) for value in values]
    if any(array.size != 1 or array.dtype.kind not in "iu" for array in arrays):
        return Labels.none()
    numbers = [int(array.item()) for array in arrays]
    if isinstance(classes, list) and min(numbers) >= -1 and max(numbers) < len(classes):
        return Labels(np.array(numbers, np.int64), [str(name) for name in classes], "data set")
    return Labels(*encode(numbers), "data set")
