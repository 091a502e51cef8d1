"""NumPy files that are not what they claim: refused in one line, before memory is asked for."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_LZMA, ZIP_STORED, ZipFile

import numpy as np
import pytest

from belvedere.errors import UserError
from belvedere.images.decode import Scale, decode_canvas
from belvedere.images.source import find_images
from tiny import npy_of, tiles

HUGE = (10**6, 900, 1000, 3)
LARGE = (1000, 1000, 1000, 3)
JUNK = b"\x93NUMPY\x01\x00" + struct.pack("<H", 40) + b"{'descr': ('''" + b"(" * 26
"""A header that ends in the middle of a text."""


def npz_of(contents: Mapping[str, bytes], packed: int = ZIP_STORED) -> bytes:
    """An archive of these members."""
    file = io.BytesIO()
    with ZipFile(file, "w", packed) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


def lying(archive: bytes) -> bytes:
    """An archive of one member, whose list says that this would be of almost 4 GiB when unpacked."""
    place = archive.index(b"PK\1\2") + 24
    return archive[:place] + struct.pack("<I", 2**32 - 2) + archive[place + 4 :]


def whole() -> bytes:
    """An archive of images."""
    file = io.BytesIO()
    np.savez(file, images=tiles(6))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.npz", npz_of({"images.npy": npy_of(HUGE)}), "it claims 2700000000000 bytes and holds 228 at most"),
        ("x.npz", npz_of({"images.npy": npy_of((-(10**6), -(10**6), 3))}), "it claims 3000000000000 bytes"),
        ("x.npz", npz_of({"images.npy": npy_of((2**32, 2**32))}), "it claims"),
        ("x.npz", lying(npz_of({"images.npy": npy_of(LARGE)})), "it claims 3000000000 bytes"),
        ("x.npz", lying(npz_of({"images.npy": npy_of(LARGE)}, ZIP_DEFLATED)), "it claims 3000000000 bytes"),
        ("x.npz", npz_of({"images.npy": npy_of((4, 5, 5))}, ZIP_LZMA), "it claims"),
        ("x.npz", npz_of({"images.npy": b"no array"}), "the magic string is not correct"),
        ("x.npz", npz_of({"images": b"no array"}), "the magic string is not correct"),
        ("x.npz", npz_of({"images.npy": JUNK}), "cannot be read as NumPy arrays"),
        ("x.npz", whole()[:-5], "File is not a zip file"),
        ("x.npz", whole()[:3000] + b"\0\1\2\3" + whole()[3004:], "Bad CRC-32"),
        ("x.npy", JUNK, "cannot be read as NumPy arrays"),
        ("x.npy", whole(), "the magic string is not correct"),
        ("x.npy", npy_of(HUGE), "cannot be read as NumPy arrays"),
    ],
)
def test_a_hostile_array_file_is_refused_before_memory_is_asked_for(
    name: str, content: bytes, told: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as error:
            find_images(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{path}: cannot be read as NumPy arrays (")
    assert told in str(error.value)


def test_whole_archives_are_read_however_they_are_packed(tmp_path: Path) -> None:
    flat = np.zeros((40, 500, 500), np.uint8)  # zlib can pack nothing closer
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "x.npz", images=flat, labels=np.arange(40) % 2)
        source = find_images(tmp_path / "x.npz")
        assert len(source) == 40
        assert source.classes == ["0", "1"]


def test_an_array_in_a_shard_may_not_claim_more_than_it_holds() -> None:
    with pytest.raises(ValueError, match="it claims 2700000000000 bytes and holds 228"):
        decode_canvas(npy_of(HUGE), 3, Scale(), 32)
