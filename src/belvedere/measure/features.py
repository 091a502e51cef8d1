"""Features of whole image sets: extracted once in blocks of one shape, cached on disk, read by every protocol."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from belvedere.atomic import write_atomically
from belvedere.distributed import gather_blocks, holds_for_all, rank, world_size
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder

PIXELS_SIDE = 32
"""Side that images are squeezed to for the floor of raw pixels."""


def extract(
    encoder: Encoder,
    canvases: Canvases,
    batch: int = 256,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    together: bool = False,
) -> Tensor:
    """(N, D) float32 features of all images, on the CPU.

    Images go through in blocks of exactly `batch`, the last one padded, because kernels round differently for other
    shapes: an image's features depend neither on how many stand beside it nor on how many processes there are.

    Args:
        device: where the encoder is put and run.
        cache_dir: folder of float16 files, one a set; values then have float16's precision, also when they are first
            computed. A file that cannot be read is computed anew. None keeps nothing and returns full precision.
        together: all processes call this, share the blocks among them, and each gets all features; else whoever calls
            it does all.

    Raises:
        UserError: when features are not finite, the images have the wrong number of channels, or the cache cannot be
            written.
    """
    encoder = encoder.to(device)
    path = None if cache_dir is None else Path(cache_dir) / f"{_key(encoder, canvases)}.npy"
    known = None if path is None else _read(path, (len(canvases), encoder.dim))
    usable = known is not None
    if path is not None and together:
        usable = holds_for_all(usable, device)
    if known is not None and usable:
        return torch.from_numpy(known.astype(np.float32))
    features = torch.empty(len(canvases), encoder.dim, dtype=torch.float32 if path is None else torch.float16)
    starts = range(0, len(canvases), batch)
    for start, block in zip(starts, _blocks(encoder, canvases, batch, device, together), strict=True):
        check_features(block, canvases.names[start : start + batch], features.dtype)
        features[start : start + batch] = block
    if path is not None and not (together and rank()):
        write_atomically(path, lambda beside: _fill(beside, features.numpy()))
    return features.float()


def _blocks(
    encoder: Encoder, canvases: Canvases, batch: int, device: torch.device | str, together: bool
) -> Iterator[Tensor]:
    """Features block by block; `together`, block b is made by process b mod W and handed to all."""
    starts = range(0, len(canvases), batch)
    world, own = (world_size(), rank()) if together else (1, 0)
    for first in range(0, len(starts), world):
        # Who has no block of its own in the last round does one over, since all must take part.
        start = starts[min(first + own, len(starts) - 1)]
        block = _block(encoder, canvases, start, batch, device)
        blocks = gather_blocks(block) if together else [block]
        for other, features in zip(starts[first : first + world], blocks, strict=False):
            yield features[: len(canvases) - other].cpu()


def _block(encoder: Encoder, canvases: Canvases, start: int, batch: int, device: torch.device | str) -> Tensor:
    """(batch, D) features of the images from `start` on, and of plain ones after the last."""
    return encode(encoder, canvases.batch(np.arange(start, min(start + batch, len(canvases)))), batch, device)


def encode(encoder: Encoder, images: Tensor | list[Tensor], batch: int, device: torch.device | str) -> Tensor:
    """(batch, D) features of at most `batch` images as `Canvases.batch` gives them, and of plain ones after the last.

    Always in one shape, see `extract`.
    """
    pixels = encoder.preprocess(
        images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
    )
    features: Tensor = encoder(torch.cat([pixels, pixels.new_zeros(batch - len(pixels), *pixels.shape[1:])]))
    return features


def check_features(block: Tensor, names: Sequence[str], kept: torch.dtype) -> None:
    """Refuse a block (n, D) that holds what is no number, or numbers too large for the type they are kept in.

    Raises:
        UserError: naming the first such image.
    """
    broken = (~block.isfinite().all(1)).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"{names[broken[0]]}: its features are not finite; take a checkpoint from before the run diverged"
        )
    largest = block.abs().max().item()
    if largest > torch.finfo(kept).max:
        raise UserError(f"features reach {largest:.3g}, too large for the float16 cache: give no cache_dir")


def _key(encoder: Encoder, canvases: Canvases) -> str:
    return hashlib.sha256(f"{encoder.fingerprint()} {canvases.fingerprint}".encode()).hexdigest()[:32]


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float16] | None:
    """The features of a file of the cache; None where it is missing, damaged, or not as `_fill` writes it."""
    try:
        found: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception:  # numpy raises many kinds for damaged files
        return None
    fits = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float16
    return found if fits else None


def _fill(path: Path, features: NDArray[np.float16]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        # Not `np.save`, which does not say that the disk is full.
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(features))
        file.write(features.data)


def pixels_features(canvases: Canvases, side: int = PIXELS_SIDE) -> Tensor:
    """(N, C * side * side) float32: every image squeezed to `side` x `side`, its mean removed.

    The cosine of two such rows is the correlation of two images: what k-NN makes of pixels alone. The image's own
    mean needs no other image and makes the harder floor (CIFAR-10, 20-NN: 40.5 %; 36.9 % with the mean of the set).
    """
    rows = []
    for i in range(len(canvases)):
        image = canvases.batch([i])[0].permute(2, 0, 1)[None].float()
        small = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False)
        rows.append(small.flatten() / 255)
    return without_mean(torch.stack(rows))


def without_mean(pixels: Tensor) -> Tensor:
    """(N, D) rows, each less its own mean."""
    return pixels - pixels.mean(1, keepdim=True)
