"""NumPy files from anywhere: what one claims is compared with what it holds before memory is asked for."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

_RATIO = {ZIP_STORED: 1, ZIP_DEFLATED: 1032}
"""As many bytes one byte of an archive can stand for, by how NumPy packs them: zlib's own limit."""


def members(archive: ZipFile) -> dict[str, ZipInfo]:
    """The members of an `.npz` archive by the names of their arrays."""
    return {info.filename.removesuffix(".npy"): info for info in archive.infolist()}


def read_member(archive: ZipFile, info: ZipInfo) -> NDArray[Any]:
    """One array of an `.npz` archive that was opened by its path.

    Raises:
        Exception: whatever the readers of archives and headers like; ValueError where it claims more than it holds.
    """
    # The archive's list of members may lie too; its size does not.
    most = Path(str(archive.filename)).stat().st_size * _RATIO.get(info.compress_type, 0)
    with archive.open(info) as file:
        check_claim(file, min(info.file_size, most))
    with archive.open(info) as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))


def check_claim(file: IO[bytes], holds: int) -> None:
    """Refuse a NumPy file that claims to be larger than the bytes it holds, the header among them.

    Raises:
        ValueError: it does, or has no header.
    """
    # Headers of versions 2 and 3 differ only in letters of the names of columns.
    read_header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read_header(file)
    # Plain whole numbers: NumPy's product can overflow, and two negative sides make a positive one.
    claimed = prod(abs(side) for side in shape) * dtype.itemsize
    if claimed > holds:
        raise ValueError(f"it claims {claimed} bytes and holds {holds} at most")
