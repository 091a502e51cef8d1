"""The renderer of `native.cpp`: compiled on first use, called without the interpreter's lock.

It needs a C++ compiler (`$CXX`, else c++, g++ or clang++). Where there is none, or it fails, one line says so and the
eager renderer does the work; `BELVEDERE_NATIVE=0` asks for that. The library lies beside the image caches, under a name
made of its source, the compiler, this processor's instructions and the user: a home that machines share holds one of
each.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from belvedere.images.cachefile import cache_folder
from belvedere.views.params import ViewParams
from belvedere.views.sample import SOLARIZE_OFF

_log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("c++", "g++", "clang++")
# No sum is reassociated, so pixels do not depend on how a compiler likes its loops; levels are never infinite.
FLAGS = (
    *("-O3", "-std=c++17", "-march=native", "-shared", "-fPIC", "-pthread"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-ffinite-math-only", "-fno-signed-zeros"),
)
# Columns of the packed record after `bicubic`, in the order of `View` in the source.
COLUMNS = (
    *("top", "left", "h", "w", "flip", "order", "brightness", "contrast", "saturation", "hue"),
    *("gray", "sigma", "solarize"),
)


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled renderer, or None where it cannot be had; why is said once, in one line."""
    if os.environ.get("BELVEDERE_NATIVE") == "0":
        return None
    try:
        return _declared(ctypes.CDLL(str(_compiled())))
    except _Unavailable as reason:
        why = str(reason)
    except OSError as error:
        why = str(error)
    _log.warning("views are made by plain torch, which takes longer: %s (BELVEDERE_NATIVE=0: without this line)", why)
    return None


class _Unavailable(Exception):
    """Why there is no library."""


def compiler() -> str | None:
    """The C++ compiler of this machine: `$CXX` if it is set, else the first of `COMPILERS`."""
    named = os.environ.get("CXX")
    return next(filter(None, map(shutil.which, [named] if named else COMPILERS)), None)


def _compiled() -> Path:
    """The library's path, compiled if it is not there."""
    found = compiler()
    if found is None:
        raise _Unavailable("there is no C++ compiler")
    made_of = (SOURCE.read_text(), FLAGS, found, platform.machine(), platform.libc_ver(), _instructions(), os.getuid())
    path = cache_folder() / f"views-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    if path.exists():
        # In a cache that several share, what lies under this name could be anybody's program.
        if path.stat().st_uid != os.getuid():
            raise _Unavailable(f"{path} belongs to another user; delete it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Compiled aside and renamed: other processes see all of it or nothing.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".views-") as place:
        fresh = Path(place, path.name)
        done = subprocess.run([found, *FLAGS, "-o", fresh, SOURCE], capture_output=True, text=True, check=False)
        if done.returncode:
            raise _Unavailable(f"{found} said {next(iter(done.stderr.splitlines()), 'nothing')!r}")
        fresh.replace(path)
    return path


def _instructions() -> str:
    """What this processor can do, as Linux tells it; empty elsewhere, where one machine has one home."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _declared(found: ctypes.CDLL) -> ctypes.CDLL:
    pointer, whole, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.belvedere_render.argtypes = [
        *(pointer, pointer, whole),  # pixels and (height, width, stride) of each image
        *(pointer, whole),  # record
        *(number, number, number),  # channels, height, width
        *(pointer, pointer, number, pointer),  # scale, shift, threads, out
    ]
    found.belvedere_render.restype = whole
    return found


def render(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    slots: Sequence[int],
    scale: Tensor,
    shift: Tensor,
    *,
    coloured: bool = True,
) -> Tensor:
    """Views `[len(slots) * N, C, h, w]` of some slots of one size, float32: levels 0..255 times `scale` less `shift`.

    Args:
        images: uint8 canvases `[N, H, W, C]`, of which `params.src_h, src_w` is the valid part, or N tensors `[h, w,
        C]`, on the CPU.
        scale, shift: `[C]` float32.
        coloured: whether colour operations follow the crop.

    Raises:
        ValueError: a box that leaves its image, or there is no library.
    """
    called = library()
    if called is None:
        raise ValueError('there is no library for backend "native"; "auto" does without')
    canvases = [image if image[0].is_contiguous() else image.contiguous() for image in images]
    pixels = torch.tensor([image.data_ptr() for image in canvases], dtype=torch.int64)
    layout = torch.stack([params.src_h, params.src_w, torch.tensor([image.stride(0) for image in canvases])], 1).long()
    record = _packed(params, list(slots), coloured)
    out = torch.empty(len(record), len(scale), *params.size[slots[0]])
    wrong = called.belvedere_render(
        *(pixels.data_ptr(), layout.data_ptr(), len(canvases), record.data_ptr(), len(record), *out.shape[1:]),
        *(scale.data_ptr(), shift.data_ptr(), torch.get_num_threads(), out.data_ptr()),
    )
    if wrong >= 0:
        slot = params.slots[slots[wrong // len(canvases)]]
        raise ValueError(f"the box of view {wrong % len(canvases)} of slot {slot} leaves its image")
    return out


def _packed(params: ViewParams, slots: list[int], coloured: bool) -> Tensor:
    """A row a view `[len(slots) * N, 14]`."""
    columns = {name: getattr(params, name)[slots].flatten().float() for name in COLUMNS}
    columns["order"] = torch.where(params.jitter[slots].flatten(), columns["order"], -1.0)
    if not coloured:
        columns |= {"order": -torch.ones_like(columns["order"]), "gray": torch.zeros_like(columns["gray"])}
        columns |= {"sigma": columns["gray"], "solarize": torch.full_like(columns["solarize"], SOLARIZE_OFF)}
    bicubic = torch.tensor([params.interpolation[slot] == "bicubic" for slot in slots]).float()
    return torch.stack([bicubic.repeat_interleave(len(params.index)), *columns.values()], 1).contiguous()
