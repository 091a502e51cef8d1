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
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from belvedere.cachefolder import cache_folder
from belvedere.views.params import ViewParams
from belvedere.views.sample import SOLARIZE_OFF

_log = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("c++", "g++", "clang++")
# No sum is reassociated, so pixels depend on neither batch nor threads; levels are finite.
FLAGS = (
    *("-O3", "-std=c++17", "-march=native", "-shared", "-fPIC", "-pthread"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-ffinite-math-only", "-fno-signed-zeros"),
)
# Columns of the packed record after `bicubic`, in the order of `View` in the source.
COLUMNS = (
    *("top", "left", "h", "w", "flip", "order", "brightness", "contrast", "saturation", "hue"),
    *("gray", "sigma", "solarize"),
)
# What a program may hold, in the order of `Operation` in the source: functions of `operations.py`.
OPERATIONS = (
    *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "contrast", "saturation"),
    *("hue", "grayscale", "blur", "solarize", "sharpness", "autocontrast", "equalize", "posterize"),
)

# What the library returns for it.
OUT_OF_MEMORY = -2


@lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """The compiled renderer, or None where it cannot be had; why is said once, in one line."""
    if os.environ.get("BELVEDERE_NATIVE") == "0":
        return None
    try:
        try:
            return _declared(ctypes.CDLL(str(_compiled())))
        except OSError:  # damaged, or made on another machine
            return _declared(ctypes.CDLL(str(_compiled(anew=True))))
    except (_Unavailable, OSError, RuntimeError) as reason:
        why = str(reason)
    _log.warning("views are made by plain torch, which takes longer: %s (BELVEDERE_NATIVE=0: without this line)", why)
    return None


class _Unavailable(Exception):
    """Why there is no library."""


def compiler() -> list[str] | None:
    """The command of this machine's C++ compiler: `$CXX` if it is set, else the first of `COMPILERS`."""
    named = os.environ.get("CXX")
    commands = [shlex.split(named)] if named else [[name] for name in COMPILERS]
    return next(([found, *words[1:]] for words in commands if words and (found := shutil.which(words[0]))), None)


def _compiled(anew: bool = False) -> Path:
    """The library's path, compiled if it is not there, or `anew`."""
    found = compiler()
    if found is None:
        raise _Unavailable("there is no C++ compiler")
    made_of = (SOURCE.read_text(), FLAGS, found, platform.machine(), platform.libc_ver(), _instructions(), os.getuid())
    path = cache_folder().absolute() / f"views-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}.so"
    if path.exists() and not anew:
        # In a cache that several share, what lies under this name could be anybody's program.
        about = path.stat()
        if about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise _Unavailable(f"{path} belongs to another user, or others may change it; delete it")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Compiled aside and renamed: other processes see all of it or nothing.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".views-") as place:
        fresh = Path(place, path.name)
        done = subprocess.run([*found, *FLAGS, "-o", fresh, SOURCE], capture_output=True, text=True, check=False)
        if done.returncode:
            raise _Unavailable(f"{shlex.join(found)} said {next(iter(done.stderr.splitlines()), 'nothing')!r}")
        fresh.chmod(0o700)
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
        *(pointer, number, pointer),  # programs, their stages, spreads
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
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Views `[len(slots) * N, C, h, w]` of some slots of one size: levels 0..255 times `scale` less `shift`.

    Args:
        images: uint8 canvases `[N, H, W, C]`, of which `params.src_h, src_w` is the valid part, or N tensors `[h, w,
        C]`, on the CPU.
        scale, shift: `[C]` float32, on the CPU.
        coloured: whether colour operations follow the crop.
        dtype: of the views; they are computed in float32.

    Raises:
        ValueError: a box that leaves its image or holds none of its pixels, numbers that are not finite, or there is
            no library.
        MemoryError: for what is needed beside the views.
    """
    return _rendered(images, params, slots, scale, shift, coloured, None)[0].to(dtype)


def render_programs(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    slots: Sequence[int],
    scale: Tensor,
    shift: Tensor,
    programs: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Views as of `render` with a program of operations each in place of the colours, and how much they show.

    Args:
        programs: `[len(slots) * N, S, 3]` float32: position in `OPERATIONS` (-1 for none), magnitude, and what
            magnitude 1 does, with its sign.

    Returns:
        Views, and `[len(slots) * N, 2]` variances of their pixels in [0, 1], means over channels, before and after.

    Raises:
        ValueError, MemoryError: as `render`.
    """
    views, spreads = _rendered(images, params, slots, scale, shift, False, programs.contiguous())
    return views.to(dtype), spreads


def _rendered(
    images: Tensor | Sequence[Tensor],
    params: ViewParams,
    slots: Sequence[int],
    scale: Tensor,
    shift: Tensor,
    coloured: bool,
    programs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    called = library()
    if called is None:
        raise ValueError('there is no library for backend "native"; "auto" does without')
    images, pixels, strides = _addresses(images)
    layout = torch.stack([params.src_h, params.src_w, strides], 1).long().contiguous()
    record = packed(params, list(slots), coloured)
    if not (record.isfinite().all() and (programs is None or programs.isfinite().all())):
        raise ValueError("the record of a view holds a number that is not finite")
    out = torch.empty(len(record), len(scale), *params.size[slots[0]], device="cpu", dtype=torch.float32)
    spreads = torch.empty(len(record), 2, device="cpu", dtype=torch.float32)
    program = (None, 0) if programs is None else (programs.data_ptr(), programs.shape[1])
    wrong = called.belvedere_render(
        *(pixels.data_ptr(), layout.data_ptr(), len(images), record.data_ptr(), len(record), *out.shape[1:]),
        *(scale.data_ptr(), shift.data_ptr(), torch.get_num_threads(), out.data_ptr()),
        *(*program, spreads.data_ptr()),
    )
    if wrong == OUT_OF_MEMORY:
        raise MemoryError("no memory for rendering views")
    if wrong >= 0:
        slot = params.slots[slots[wrong // len(images)]]
        raise ValueError(
            f"the box of view {wrong % len(images)} of slot {slot} leaves its image or holds none of its pixels"
        )
    return out, spreads


def _addresses(images: Tensor | Sequence[Tensor]) -> tuple[Tensor | Sequence[Tensor], Tensor, Tensor]:
    """Images whose rows are contiguous, to be kept alive; where each begins, and its bytes a row: `[N]` int64."""
    # Neither a default device nor a default type of the user's may decide what the library reads.
    host: dict[str, Any] = {"device": "cpu", "dtype": torch.int64}
    if isinstance(images, Tensor):  # asked image by image, a tenth of the time of two views of 256 at 32 px
        images = images if images[0, 0].is_contiguous() else images.contiguous()
        pixels = images.data_ptr() + images.stride(0) * torch.arange(len(images), **host)
        return images, pixels, torch.full((len(images),), images.stride(1), **host)
    images = [image if image[0].is_contiguous() else image.contiguous() for image in images]
    pixels = torch.tensor([image.data_ptr() for image in images], **host)
    return images, pixels, torch.tensor([image.stride(0) for image in images], **host)


def packed(params: ViewParams, slots: list[int], coloured: bool) -> Tensor:
    """What a compiled renderer reads of a record: `[len(slots) * N, 14]` float32, `bicubic` and then `COLUMNS`."""
    columns = {name: getattr(params, name)[slots].flatten().float() for name in COLUMNS}
    columns["order"] = columns["order"].masked_fill(~params.jitter[slots].flatten(), -1)
    if not coloured:
        columns |= {"order": -torch.ones_like(columns["order"]), "gray": torch.zeros_like(columns["gray"])}
        columns |= {"sigma": columns["gray"], "solarize": torch.full_like(columns["solarize"], SOLARIZE_OFF)}
    kinds = [float(params.interpolation[slot] == "bicubic") for slot in slots]
    bicubic = torch.tensor(kinds, device="cpu", dtype=torch.float32)
    return torch.stack([bicubic.repeat_interleave(len(params.index)), *columns.values()], 1).contiguous()
