"""Features of whole image sets: extracted once in blocks of one shape, cached on disk, read by every protocol."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder


def extract(
    encoder: Encoder,
    canvases: Canvases,
    batch: int = 256,
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
) -> Tensor:
    """(N, D) float32 features of all images, on the CPU.

    Images go through in blocks of exactly `batch`, the last one padded, because kernels round differently for other
    shapes: an image's features do not depend on how many stand beside it.

    Args:
        device: where the encoder is put and run.
        cache_dir: folder of memory-mapped float16 files, one a set; values then have float16's precision, also when
            they are first computed. None keeps nothing and returns full precision.

    Raises:
        UserError: when features are not finite, or the images have the wrong number of channels.
    """
    encoder = encoder.to(device)
    if cache_dir is None:
        features = torch.empty(len(canvases), encoder.dim)
        for start, block in zip(range(0, len(canvases), batch), _blocks(encoder, canvases, batch, device), strict=True):
            features[start : start + batch] = block
        return features
    path = Path(cache_dir) / f"{_key(encoder, canvases)}.npy"
    if not path.exists():
        _write(path, encoder, canvases, batch, device)
    return torch.from_numpy(np.load(path, mmap_mode="r").astype(np.float32))


def _blocks(encoder: Encoder, canvases: Canvases, batch: int, device: torch.device | str) -> Iterator[Tensor]:
    for start in range(0, len(canvases), batch):
        index = np.arange(start, min(start + batch, len(canvases)))
        images = canvases.batch(index)
        pixels = encoder.preprocess(
            images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
        )
        padding = pixels.new_zeros(batch - len(index), *pixels.shape[1:])
        features = encoder(torch.cat([pixels, padding]))[: len(index)].cpu()
        broken = (~features.isfinite().all(1)).nonzero().flatten().tolist()
        if broken:
            name = canvases.names[start + broken[0]]
            raise UserError(f"{name}: its features are not finite; take a checkpoint from before the run diverged")
        yield features


def _key(encoder: Encoder, canvases: Canvases) -> str:
    return hashlib.sha256(f"{encoder.fingerprint()} {canvases.fingerprint}".encode()).hexdigest()[:32]


def _write(path: Path, encoder: Encoder, canvases: Canvases, batch: int, device: torch.device | str) -> None:
    """Fill a file of another name and rename it, so that a killed run leaves no half-filled cache."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    try:
        store = np.lib.format.open_memmap(unfinished, "w+", np.float16, (len(canvases), encoder.dim))
        for start, block in zip(range(0, len(canvases), batch), _blocks(encoder, canvases, batch, device), strict=True):
            largest = block.abs().max().item()
            if largest > torch.finfo(torch.float16).max:
                raise UserError(f"features reach {largest:.3g}, too large for the float16 cache: give no cache_dir")
            store[start : start + batch] = block.half().numpy()
        store.flush()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def pixels_features(canvases: Canvases, side: int = 32) -> Tensor:
    """(N, C * side * side) float32: every image squeezed to `side` x `side`, its mean removed.

    The cosine of two such rows is the correlation of two images: what k-NN makes of pixels alone. The image's own
    mean needs no other image and makes the harder floor (CIFAR-10, 20-NN: 40.5 %; 36.9 % with the mean of the set).
    """
    rows = []
    for i in range(len(canvases)):
        image = canvases.batch([i])[0].permute(2, 0, 1)[None].float()
        small = F.interpolate(image, (side, side), mode="bicubic", antialias=True, align_corners=False)
        rows.append(small.flatten() / 255)
    features = torch.stack(rows)
    return features - features.mean(1, keepdim=True)
