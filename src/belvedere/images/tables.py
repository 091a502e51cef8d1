"""Parquet files with a column of images: the files' bytes, or Hugging Face's struct of bytes and path.

A Parquet file is read a row group at a time, so the last few groups are kept for the threads that decode what lies
next to each other; canvases make every later access random. The column is found by itself where it is called image or
img or is the only one that can hold images; else FILE.parquet#COLUMN names it, and #COLUMN,LABEL the label's as well.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.errors import UserError
from belvedere.images.blobs import Blob, digest_of
from belvedere.images.items import Skipped, Source, choose_labels, make_source
from belvedere.images.labels import Labels, encode, splits_of_files
from belvedere.images.parallel import BLOCK, count_workers, ordered_map

IMAGE_COLUMNS = ("image", "img")
LARGE_GROUP = 2**30
"""Bytes of images in one row group above which the user is told what it costs."""

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Rows:
    """Images in Parquet files, by row; `starts` int64 [G+1] are the first rows of all row groups, and their number.

    Attributes:
        blobs, footers: the files, and the metadata at their ends.
        groups: (file, row group in it) of each of the G groups.
        column: of images; `leaf` is where their bytes are.
    """

    blobs: list[Blob]
    footers: list[Any]
    groups: list[tuple[int, int]]
    starts: NDArray[np.int64]
    column: str
    leaf: str
    _kept: OrderedDict[int, Any] = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_kept", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kept=OrderedDict(), _lock=Lock())

    def read(self, i: int) -> bytes:
        """Return the file of image i.

        Raises:
            ValueError: the row holds none.
        """
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        # One thread reads a group while the others wait for it, where each would otherwise read it for itself.
        with self._lock:
            images = self._group(group)
        item = images[i - int(self.starts[group])].as_py()
        if isinstance(item, dict):
            item = item["bytes"]
        if not isinstance(item, bytes):
            raise ValueError("no image in this row")
        return item

    def digest(self) -> str:
        """Hash which column of which files; no image is read."""
        digest = hashlib.blake2b(digest_of(self.blobs).encode(), digest_size=16)
        digest.update(self.leaf.encode())
        return digest.hexdigest()

    def _group(self, group: int) -> Any:
        """The image column of a row group, from the few that are kept or the file."""
        if group in self._kept:
            self._kept.move_to_end(group)
            return self._kept[group]
        from pyarrow import parquet

        number, place = self.groups[group]
        with self.blobs[number].open() as file:
            table = parquet.ParquetFile(file, metadata=self.footers[number]).read_row_group(place, columns=[self.leaf])
        self._kept[group] = table.column(self.column)
        while len(self._kept) > self._at_once(group):
            self._kept.popitem(last=False)
        return self._kept[group]

    def _at_once(self, group: int) -> int:
        """Row groups that the threads of one pass may be in: those that their images in flight can span."""
        rows = max(1, int(self.starts[group + 1] - self.starts[group]))
        return 2 + (2 * count_workers(None) + 1) * BLOCK // rows


def from_tables(
    blobs: dict[str, Blob], skipped: list[Skipped], described: str, choice: str, columns: Sequence[str] = ()
) -> Source:
    """The images of Parquet files, in the order of the files' names and of their rows.

    Args:
        blobs: the files by their names relative to a common folder.
        skipped: what was set aside before.
        choice: as `labels` in `find_images`; a column `label` names classes.
        columns: the image column, and the label column, where the user names them.

    Raises:
        UserError: pyarrow is missing, a file is no Parquet, or its columns do not tell which holds images.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"{described}: needs pyarrow; install it with pip install 'belvedere[parquet]'") from error
    files = list(blobs)

    def footer(i: int) -> Any:
        with blobs[files[i]].open() as file:
            try:
                return parquet.ParquetFile(file).metadata
            except Exception as error:  # a damaged footer raises what its fields make of it
                raise UserError(f"{blobs[files[i]].path}: cannot be read as Parquet ({error})") from error

    footers = list(ordered_map(footer, len(files), None, "reading Parquet footers", progress=True, block=1))
    schema = footers[0].schema.to_arrow_schema()
    column = columns[0] if columns else _image_column(schema, described)
    label = columns[1] if len(columns) > 1 else "label"
    for name, found in zip(files, footers, strict=True):
        missing = {column, *columns} - set(found.schema.to_arrow_schema().names)
        if missing:
            raise UserError(f"{described}: {name} has no column {missing.pop()}, only {_columns(found)}")
    groups = [(number, place) for number, found in enumerate(footers) for place in range(found.num_row_groups)]
    lengths = [footers[number].row_group(place).num_rows for number, place in groups]
    _warn_of_large_groups(footers, groups, described)
    rows = Rows(
        blobs=list(blobs.values()),
        footers=footers,
        groups=groups,
        starts=np.concatenate([np.zeros(1, np.int64), np.cumsum(np.array(lengths, np.int64))]),
        column=column,
        leaf=_leaf(schema, column, described),
    )
    names = [f"{i:07d}" for i in range(int(rows.starts[-1]))]
    if not names:
        raise UserError(f"{described}: no rows in {len(files)} Parquet files")
    splits = splits_of_files(files)
    told = None
    if splits is not None:
        told = [split for split, found in zip(splits, footers, strict=True) for _ in range(found.num_rows)]

    def automatic() -> Labels:
        found = _labels(rows, label, schema) if label in schema.names else Labels.none()
        return replace(found, splits=told)

    found = choose_labels(choice, names, described, automatic)
    return make_source(names, found, skipped, None, described, rows)


def _image_column(schema: Any, described: str) -> str:
    """The column of images where one is called so, or only one can hold them."""
    possible = [name for name in schema.names if _holds_bytes(schema.field(name).type)]
    named = [name for name in possible if name.lower() in IMAGE_COLUMNS]
    chosen = named or possible
    if len(chosen) != 1:
        raise UserError(
            f"{described}: none or several of its columns may hold images ({', '.join(schema.names)}); "
            f"name one as in {described}#{(chosen or schema.names or ['COLUMN'])[0]}"
        )
    return str(chosen[0])


def _holds_bytes(kind: Any) -> bool:
    import pyarrow

    if pyarrow.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0 and _holds_bytes(kind.field("bytes").type))
    return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))


def _leaf(schema: Any, column: str, described: str) -> str:
    kind = schema.field(column).type
    if not _holds_bytes(kind):
        raise UserError(f"{described}: its column {column} is {kind}, not the bytes of image files")
    return column if not hasattr(kind, "num_fields") or not kind.num_fields else f"{column}.bytes"


def _labels(rows: Rows, column: str, schema: Any) -> Labels:
    """Labels of the column, with the class names that Hugging Face keeps in the file's own notes; null is none."""
    from pyarrow import parquet

    values: list[Any] = []
    for blob, found in zip(rows.blobs, rows.footers, strict=True):
        with blob.open() as file:
            values += parquet.ParquetFile(file, metadata=found).read(columns=[column]).column(column).to_pylist()
    return labels_of(values, _class_names(schema, column), f"column {column}")


def labels_of(values: list[Any], classes: list[str] | None, origin: str) -> Labels:
    """Labels of a column: whole numbers (which `classes` name, if they fit) or texts; anything else is none at all."""
    given = [value for value in values if value is not None]
    if not given or not all(isinstance(value, int | str) for value in given):
        return Labels.none()
    if classes and all(isinstance(value, int) and -1 <= value < len(classes) for value in given):
        return Labels(np.array([-1 if value is None else value for value in values], np.int64), classes, origin)
    return Labels(*encode(["" if value is None else value for value in values]), origin)


def _class_names(schema: Any, column: str) -> list[str] | None:
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        return [str(name) for name in features[column]["names"]]
    except (KeyError, TypeError, ValueError):
        return None


def _columns(footer: Any) -> str:
    return ", ".join(footer.schema.to_arrow_schema().names)


def _warn_of_large_groups(footers: list[Any], groups: list[tuple[int, int]], described: str) -> None:
    sizes = [footers[number].row_group(place).total_byte_size for number, place in groups]
    if sizes and max(sizes) > LARGE_GROUP:
        _log.warning(
            "%s: a row group of %.1f GiB is read at once, and a few of them are kept while images are decoded; "
            "write the file with row_group_size=1000 if memory is short",
            described,
            max(sizes) / 2**30,
        )
