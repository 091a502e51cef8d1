"""Random numbers as a pure function of (seed, epoch, image index, purpose): no state, no order of calls.

A draw never depends on the batch an image sits in, on the number of workers or on where a run was resumed. The
generator is SplitMix64 (Steele, Lea, Flood 2014) used by counter: every key part passes the 64-bit finaliser, then draw
number j is the finaliser of `key + j * golden ratio`. Views, masks, corruption, donors and the data order all draw from
here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import ArrayLike, NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The SplitMix64 finaliser, a bijection of 64-bit words; works in place on its argument."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def _purpose_key(seed: int, epoch: int, purpose: str) -> int:
    """64 bits for everything but the image."""
    return _hash(f"{seed}/{epoch}/{purpose}")


def _hash(text: str) -> int:
    """64 bits of a real hash, because purposes are short and alike."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def streams(seed: int, epoch: int, index: ArrayLike, purposes: Sequence[str]) -> NDArray[np.uint64]:
    """The keys `[P, N]` of the streams of P purposes and N images: all that their draws depend on."""
    keys = np.array([_purpose_key(seed, epoch, purpose) for purpose in purposes], dtype=np.uint64)
    images = _mix(np.asarray(index, dtype=np.int64).astype(np.uint64) * _GOLDEN + np.uint64(1))
    return _mix(keys[:, None] ^ images[None, :])


def substreams(keys: NDArray[np.uint64], purpose: str) -> NDArray[np.uint64]:
    """Keys of streams of another purpose, one for each of `keys` and of the same shape."""
    return _mix(keys ^ np.uint64(_hash(purpose)))


def words(keys: NDArray[np.uint64], count: int, start: int = 0) -> NDArray[np.uint64]:
    """Words number `start` to `start + count - 1` of each stream, `[..., count]`, uniform 64-bit."""
    counters = np.arange(start + 1, start + count + 1, dtype=np.uint64) * _GOLDEN
    return _mix(keys[..., None] + counters)


def unit(uniform_words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Uniform words as numbers in [0, 1)."""
    return (uniform_words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def bits(seed: int, epoch: int, index: ArrayLike, purposes: Sequence[str], count: int) -> NDArray[np.uint64]:
    """Uniform 64-bit words `[P, N, count]` for P purposes and N images; word j is the same whatever `count`."""
    return words(streams(seed, epoch, index, purposes), count)


def uniform_many(seed: int, epoch: int, index: ArrayLike, purposes: Sequence[str], count: int) -> NDArray[np.float64]:
    """Uniform draws in [0, 1), `[P, N, count]`: one call for several purposes (all slots of a batch)."""
    return unit(bits(seed, epoch, index, purposes, count))


def uniform(seed: int, epoch: int, index: ArrayLike, purpose: str, shape: tuple[int, ...] = ()) -> NDArray[np.float64]:
    """Uniform draws in [0, 1), `[N, *shape]`, for the images `index [N]`.

    The same (seed, epoch, index, purpose) gives the same numbers for ever; any two different ones are independent.
    """
    draws = uniform_many(seed, epoch, index, [purpose], prod(shape))
    return draws.reshape(draws.shape[1], *shape)


def integers(
    seed: int, epoch: int, index: ArrayLike, purpose: str, high: ArrayLike, shape: tuple[int, ...] = ()
) -> NDArray[np.int64]:
    """Uniform integers in `[0, high)`, `[N, *shape]`; `high` broadcasts against that shape and must be at least 1."""
    limit = np.asarray(high)
    if (limit < 1).any():
        raise ValueError("integers: high must be at least 1")
    draws: NDArray[np.float64] = np.floor(uniform(seed, epoch, index, purpose, shape) * limit)
    return draws.astype(np.int64)


def permutation(seed: int, epoch: int, n: int, purpose: str = "order") -> NDArray[np.int64]:
    """A uniformly random order of `range(n)`, `[n]`: the data order of one epoch."""
    return np.argsort(bits(seed, epoch, np.arange(n), [purpose], 1)[0, :, 0], kind="stable")
