"""`belvedere embed`: one vector an image, in one file, or in parts that several processes write.

A part is a Parquet file of the vectors of so many images that follow each other. It is decoded, embedded and written
without the others, so that neither memory nor disk holds more than one part at a time, and it is there whole or not at
all. Processes share the parts by number and talk only through the folder: none waits for another, and what a killed job
leaves undone, the same command does, with any number of processes.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections.abc import Container, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from belvedere.atomic import write_atomically
from belvedere.errors import UserError
from belvedere.images.cachefile import Canvas
from belvedere.images.canvases import Canvases, as_batch, decoded, write_skipped
from belvedere.images.decode import Scale
from belvedere.images.limits import MIN_SIDE, refuse_mostly_broken
from belvedere.images.source import Skipped, Source, find_images
from belvedere.images.survey import survey
from belvedere.images.tiles import cut
from belvedere.measure.encoder import BORDER, Encoder
from belvedere.measure.features import check_features, encode
from belvedere.measure.readings import Reading
from belvedere.opened import configuration_of, load
from belvedere.pretrain.compose import device_of
from belvedere.pretrain.engine import work_apart
from belvedere.pretrain.start import writing

FORMAT = 1
PART_IMAGES = 20_000
"""Images a part: 60 MB of vectors of 768 numbers, minutes of work on a CPU, and 10,000 files for 200 million images."""
BLOCK = 256
SURVEYED = 10_000
"""Headers that tell the depth of a set: all of a small one, of a large one evenly spaced."""
SKIPPED = "_skipped.csv"
NOTE = b"belvedere"
_PART = re.compile(r"part-(\d{5,})\.parquet")


def check_file(path: Path) -> None:
    """Refuse a file that vectors cannot be written to.

    Raises:
        UserError: naming it and what it should be.
    """
    if path.suffix not in (".npz", ".parquet", ".csv"):
        raise UserError(f"--out {path}: the ending must be .npz, .parquet or .csv, or / for a folder of parts")
    if path.suffix == ".parquet":
        _check_parquet(path)


def _check_parquet(path: Path) -> None:
    if find_spec("pyarrow") is None:
        raise UserError(f'--out {path}: .parquet needs an extra: pip install "belvedere[parquet]"')


def write_file(path: Path, features: NDArray[np.float32], canvases: Canvases) -> None:
    """Write `.npz`, `.parquet` or `.csv`; what was set aside stands in NAME.skipped.csv, or inside the `.npz`.

    Args:
        features: [N,D], of these N canvases.

    Raises:
        UserError: when the disk is full or cannot be written.
    """
    labels = _label_names(canvases.labels, canvases.classes, range(len(canvases)))
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npz":
            columns = {
                "features": features,
                "names": np.array(canvases.names),
                "labels": np.full(len(canvases), -1) if canvases.labels is None else canvases.labels,
                "classes": np.array(canvases.classes),
                "skipped": np.array([item.name for item in canvases.skipped]),
            }
            write_atomically(path, lambda beside: _save_npz(beside, columns))
            return
        if path.suffix == ".csv":
            write_atomically(path, lambda beside: _save_csv(beside, features, canvases.names, labels))
        else:
            write_atomically(path, lambda beside: _save_parquet(beside, features, canvases.names, labels))
        canvases.write_skipped(path.with_name(f"{path.stem}.skipped.csv"))


def _label_names(labels: NDArray[np.int64] | None, classes: list[str], rows: Sequence[int]) -> list[str]:
    return [classes[labels[i]] if labels is not None and labels[i] >= 0 else "" for i in rows]


def _save_npz(path: Path, columns: dict[str, Any]) -> None:
    with path.open("wb") as file:
        np.savez(file, **columns)


def _save_csv(path: Path, features: NDArray[np.float32], names: Sequence[str], labels: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", *(f"f{i}" for i in range(features.shape[1]))])
        writer.writerows([name, label, *row.tolist()] for name, label, row in zip(names, labels, features, strict=True))


def _save_parquet(
    path: Path,
    features: NDArray[np.float32],
    names: Sequence[str],
    labels: Sequence[str],
    note: dict[str, Any] | None = None,
) -> None:
    """Columns path, label and features, a list of D float32 each; `note` goes into the metadata, as JSON."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        [
            ("path", pyarrow.string()),
            ("label", pyarrow.string()),
            ("features", pyarrow.list_(pyarrow.float32(), features.shape[1])),
        ],
        metadata=None if note is None else {NOTE: json.dumps(note)},
    )
    vectors = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(features.ravel()), features.shape[1])
    columns = [_texts(names), _texts(labels), vectors]
    # Hardly a number comes twice, so a dictionary of them would only cost time.
    parquet.write_table(pyarrow.Table.from_arrays(columns, schema=schema), path, use_dictionary=["label"])


def _texts(names: Sequence[str]) -> Any:
    """A column of text; bytes of a file's name that are none become "?"."""
    import pyarrow

    return pyarrow.array([name.encode("utf-8", "replace").decode() for name in names], pyarrow.string())


# --- parts ------------------------------------------------------------------------------------------------------------


def embed_parts(
    run: str | Path,
    data: Any,
    out: str | Path,
    *,
    part_images: int = PART_IMAGES,
    reading: Reading = "auto",
    device: str = "auto",
) -> Path:
    """Write one vector an image as part-00000.parquet, part-00001.parquet, ... in a folder, and return the folder.

    Called again, also after a kill, it makes the parts that are missing. Processes that torchrun started share the
    parts, and the files do not depend on how many there are. The one that writes the last part adds `_skipped.csv`,
    the images that were set aside.

    Args:
        data: as `embed` takes it; decoded part by part, and not kept in the cache.
        out: a folder that is new, empty, or holds parts of the same run, reading, images and `part_images`.
        part_images: images a part, those that cannot be read included.
        reading: which vector of an image, see `measure/readings.py`; auto takes the class token where there is one.

    Raises:
        UserError: when the folder holds anything else, it cannot be written, or most images are unusable.
    """
    _check_parquet(Path(out))
    device = device_of(device)
    process, processes, here = work_apart(device)
    encoder = load(run, reading, device)
    images = cut(find_images(data), configuration_of(Path(run)).config.images.cutting)
    parts = Parts(Path(out), images, encoder, part_images)
    there = parts.whole()
    own = share(process, processes, len(parts), there)
    if there and process == 0:
        print(f"{out}: {len(there)} of {len(parts)} parts are there", flush=True)
    if own:
        with writing(parts.folder):
            parts.folder.mkdir(parents=True, exist_ok=True)
        workers = max(1, (os.cpu_count() or 1) // here)
        scale = survey(parts.source, encoder.channels, workers, progress=False, limit=SURVEYED).scale
        for k in own:
            parts.make(k, scale, device, workers)
    if own or process == 0:
        parts.finish()
    return parts.folder


def part_rows(images: int, size: int) -> list[range]:
    """The images of each part: every one in exactly one, in order, `size` a part and what is left in the last."""
    return [range(start, min(start + size, images)) for start in range(0, images, size)]


def share(process: int, processes: int, parts: int, there: Container[int]) -> list[int]:
    """The parts that a process makes: those of `parts` in turn, without those that are there."""
    return [k for k in range(process, parts, processes) if k not in there]


class Parts:
    """A folder of parts, and what they are made of."""

    def __init__(self, folder: Path, source: Source, encoder: Encoder, size: int) -> None:
        self.folder = folder
        self.source = source
        self.encoder = encoder
        self._rows = part_rows(len(source), size)
        self._made_of = {
            "format": FORMAT,
            "encoder": encoder.fingerprint(),
            "images": _fingerprint(source),
            "part_images": size,
        }

    def __len__(self) -> int:
        return len(self._rows)

    def path(self, k: int) -> Path:
        """The file of part k."""
        return self.folder / f"part-{k:05}.parquet"

    def whole(self) -> dict[int, dict[str, Any]]:
        """The notes of the parts that are there; a damaged file is not.

        Raises:
            UserError: when the folder holds something else.
        """
        found = {}
        entries = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        for path in entries:
            # What Parquet readers pass over, too.
            if path.name.startswith((".", "_")):
                continue
            matched = _PART.fullmatch(path.name)
            if matched is None:
                raise UserError(f"--out {self.folder}: holds other files ({path.name}); choose an empty or new folder")
            note = _read_note(path)
            if note is not None:
                self._refuse_other(path, int(matched[1]), note)
                found[int(matched[1])] = note
        return found

    def _refuse_other(self, path: Path, k: int, note: dict[str, Any]) -> None:
        differs = [key for key, value in self._note(k).items() if note.get(key) != value]
        whose = {
            "format": "was not written by this version of belvedere",
            "encoder": "is of another run, or of another reading",
            "images": "is of other images",
            "part_images": f"was written with --part-images {note.get('part_images')}",
            "part": f"is part {note.get('part')} under another name",
        }
        if differs:
            raise UserError(f"--out {self.folder}: {path.name} {whose[differs[0]]}; choose an empty or new folder")

    def _note(self, k: int) -> dict[str, Any]:
        return {**self._made_of, "part": k}

    def make(self, k: int, scale: Scale, device: str, workers: int) -> None:
        """Decode, embed and write part k.

        Raises:
            UserError: when features are not finite, or the part cannot be written.
        """
        rows = self._rows[k]
        features = np.empty((len(rows), self.encoder.dim), np.float32)
        kept: list[int] = []
        skipped: list[Skipped] = []
        side = round(max(self.encoder.size) * BORDER)
        items = decoded(self.source, rows, side, self.encoder.channels, scale, MIN_SIDE, workers, progress=False)
        for block in _blocks(items, skipped):
            names = [self.source.names[canvas.row] for canvas in block]
            images = as_batch([canvas.pixels for canvas in block])
            vectors = encode(self.encoder, images, BLOCK, device)[: len(block)].cpu()
            check_features(vectors, names, torch.float32)
            features[len(kept) : len(kept) + len(block)] = vectors.numpy()
            kept += [canvas.row for canvas in block]
        features = features[: len(kept)]
        names = [self.source.names[i] for i in kept]
        labels = _label_names(self.source.labels, self.source.classes, kept)
        note = {**self._note(k), "images_of_part": len(kept), "skipped": [(one.name, one.reason) for one in skipped]}
        write_atomically(self.path(k), lambda beside: _save_parquet(beside, features, names, labels, note))
        print(f"{self.path(k)}: {len(kept)} images ({len(skipped)} set aside)", flush=True)

    def finish(self) -> None:
        """Say so and write down what was set aside, where no part is missing.

        Raises:
            UserError: when most images were set aside.
        """
        there = self.whole()
        if len(there) < len(self):
            return
        skipped = [Skipped(*item) for k in range(len(self)) for item in there[k]["skipped"]]
        skipped = [*self.source.skipped, *skipped]
        write_atomically(self.folder / SKIPPED, lambda beside: write_skipped(skipped, beside))
        images = sum(note["images_of_part"] for note in there.values())
        print(
            f"{images} vectors of {self.encoder.dim} numbers in {len(self)} parts: {self.folder} "
            f"({len(skipped)} images set aside)",
            flush=True,
        )
        refuse_mostly_broken(self.source, skipped)


def _blocks(items: Iterator[Canvas | Skipped], skipped: list[Skipped]) -> Iterator[list[Canvas]]:
    """Canvases by the block, the last one perhaps shorter; what was set aside goes into `skipped`."""
    block: list[Canvas] = []
    for item in items:
        if isinstance(item, Skipped):
            skipped.append(item)
            continue
        block.append(item)
        if len(block) == BLOCK:
            yield block
            block = []
    if block:
        yield block


def _fingerprint(source: Source) -> str:
    """Hash of names, content and labels."""
    digest = hashlib.blake2b(source.digest().encode(), digest_size=16)
    if source.labels is not None:
        digest.update(source.labels.tobytes() + json.dumps(source.classes).encode())
    return digest.hexdigest()


def _read_note(path: Path) -> dict[str, Any] | None:
    """What stands in a part's metadata, {} where it is none of ours; None where the file is not whole.

    Raises:
        UserError: when it cannot be read.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_schema(path).metadata or {}
    except pyarrow.ArrowInvalid:
        return None
    except OSError as error:
        if error.errno is None:  # what it says of itself makes no sense
            return None
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        note = json.loads(metadata.get(NOTE, b"{}"))
    except ValueError:
        return {}
    return note if isinstance(note, dict) else {}
