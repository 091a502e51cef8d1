"""One file that holds a decoded set: canvases one after another, an index, and a trailer that proves both are whole.

    pixels    every canvas [h,w,C], uint8, without gaps
    index     an .npz archive: rows, sizes, original, and `facts` (JSON in UTF-8), among them the pixels' BLAKE2b
    trailer   64 bytes: magic (16), offset and length of the index (8 each), BLAKE2b of the index (32)

The file is written beside its final place and moved there in one step, so that a reader never sees half of one. Its
time of change is set to one that the index notes: where it is another, somebody wrote to the file, or copied it, and
all pixels are compared with their checksum. Reading them at every start would take long for a large set.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.errors import UserError
from belvedere.images.decode import Pixels

MAGIC = b"belvedere-canvas"
TRAILER = struct.Struct("<16sQQ32s")
BUILDING = ".building"


class Damaged(Exception):
    """A cache file that is not whole."""


@dataclass(frozen=True)
class Canvas:
    """A decoded image on its way to the cache: its row in the source, its pixels [h,w,C] and its original (h, w)."""

    row: int
    pixels: Pixels
    original: tuple[int, int]


@dataclass(frozen=True)
class Index:
    """rows int64 [N] (positions in the source), sizes and original int32 [N,2] (h, w), and what else was said."""

    rows: NDArray[np.int64]
    sizes: NDArray[np.int32]
    original: NDArray[np.int32]
    facts: dict[str, Any]

    def offsets(self) -> NDArray[np.int64]:
        """First byte of each canvas."""
        ends = np.cumsum(self.sizes.astype(np.int64).prod(axis=1) * self.facts["channels"])
        return np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]


def write_pixels(file: io.BufferedIOBase, canvases: Iterable[Canvas], facts: dict[str, Any]) -> Index:
    """Append canvases as they come and return their index; `facts` gains the BLAKE2b of all pixels."""
    digest = hashlib.blake2b(digest_size=16)
    rows, sizes, original = [], [], []
    for canvas in canvases:
        pixels = canvas.pixels.tobytes()
        file.write(pixels)
        digest.update(pixels)
        rows.append(canvas.row)
        sizes.append(canvas.pixels.shape[:2])
        original.append(canvas.original)
    return Index(
        rows=np.array(rows, np.int64),
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        original=np.array(original, np.int32).reshape(-1, 2),
        facts={**facts, "pixels": digest.hexdigest()},
    )


def write_index(file: io.BufferedIOBase, index: Index) -> None:
    """Append the index and the trailer, which make the file whole, and set its time of change to the one noted."""
    buffer = io.BytesIO()
    written = int(time.time()) // 2 * 2  # in seconds; even ones, as not every file system holds others
    facts = np.frombuffer(json.dumps({**index.facts, "written": written}).encode(), np.uint8)
    np.savez(buffer, rows=index.rows, sizes=index.sizes, original=index.original, facts=facts)
    packed = buffer.getvalue()
    offset = file.tell()
    file.write(packed)
    file.write(TRAILER.pack(MAGIC, offset, len(packed), hashlib.blake2b(packed, digest_size=32).digest()))
    file.flush()
    os.utime(file.fileno(), (written, written))


def read_index(path: Path) -> Index:
    """Read the index of a cache file; its pixels only where the file's time says that it was written to.

    Raises:
        FileNotFoundError: there is none.
        Damaged: the file is shorter or longer than it says, or its index, or pixels that were read, are not what was
            written.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < TRAILER.size:
            raise Damaged(f"{path}: only {size} bytes")
        file.seek(size - TRAILER.size)
        magic, offset, length, digest = TRAILER.unpack(file.read(TRAILER.size))
        if magic != MAGIC or offset + length + TRAILER.size != size:
            raise Damaged(f"{path}: cut or overwritten")
        file.seek(offset)
        packed = file.read(length)
        if hashlib.blake2b(packed, digest_size=32).digest() != digest:
            raise Damaged(f"{path}: the index does not match its checksum")
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            facts = json.loads(arrays["facts"].tobytes())
            index = Index(arrays["rows"], arrays["sizes"], arrays["original"], facts)
        # Caches of before this was noted are believed.
        written = facts.get("written")
        if written is not None and os.fstat(file.fileno()).st_mtime_ns != written * 10**9:
            if _digest(file, offset) != facts["pixels"]:
                raise Damaged(f"{path}: the pixels do not match their checksum")
            with suppress(OSError):  # of another user, or read-only: then they are read at every start
                os.utime(file.fileno(), (written, written))
    return index


def _digest(file: io.BufferedIOBase, length: int) -> str:
    """The BLAKE2b of the first `length` bytes."""
    file.seek(0)
    digest = hashlib.blake2b(digest_size=16)
    while length and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open a new file that takes the place of `path` when the block ends, and is deleted when it fails.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_unfinished(path)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=BUILDING, dir=path.parent)
        fcntl.flock(handle, fcntl.LOCK_EX)  # which ends with the process, however it ends
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or power failure could leave the name of a file without its content
        os.replace(name, path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Let one process build `path` while the others of this machine wait, which then find it whole.

    Without it eight ranks would decode a set eight times, and write it eight times. Only time depends on it, so a file
    system without locks is no error; a lock ends with its process, however that ends.
    """
    place = int(hashlib.blake2b(path.name.encode(), digest_size=7).hexdigest(), 16)
    with ExitStack() as stack:
        with suppress(OSError):  # whoever builds says what is wrong with the folder
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((path.parent.parent / "locks").open("ab"))
            fcntl.lockf(file, fcntl.LOCK_EX, 1, place)
        yield


def _clear_unfinished(path: Path) -> None:
    """Delete what killed processes left beside `path`: files with content that nobody holds a lock of."""
    for left in path.parent.glob(f".{path.stem}.*{BUILDING}"):
        with left.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if left.stat().st_size:  # an empty one may be about to be locked
                left.unlink(missing_ok=True)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"the canvas cache cannot be written to {path.parent} ({error.strerror}); free some space, "
        "or name another folder in $BELVEDERE_CACHE"
    )
