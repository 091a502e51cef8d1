"""Sets of permutations that are far from each other: the classes of a jigsaw."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from math import factorial

import numpy as np
from numpy.typing import NDArray


def far_permutations(count: int, start: Sequence[int]) -> NDArray[np.int64]:
    """(count, n) different permutations of 0..n-1, greedily far apart in Hamming distance (spec patch_and_pretext 5.2).

    From `start` on, the permutation is added whose distances to all chosen ones have the largest sum; among equals the
    first in lexicographic order.

    Raises:
        ValueError: when there are fewer than `count`, or `start` is none of them.
    """
    places = _all(len(start))
    chosen = np.flatnonzero((places == np.asarray(start)[:, None]).all(0)).tolist()
    if not chosen or count > factorial(len(start)):
        raise ValueError(f"{count} permutations of {len(start)} beginning with {list(start)}: there are none such")
    # Places that a permutation shares with the chosen ones, over all of them: the fewer, the farther.
    shared = np.zeros(places.shape[1], dtype=np.int32)
    while len(chosen) < count:
        for values in places:
            shared += values == values[chosen[-1]]
        shared[chosen[-1]] = np.iinfo(np.int32).max // 2  # out of the race
        chosen.append(int(shared.argmin()))
    return places[:, chosen].T.astype(np.int64)


@lru_cache(maxsize=1)
def _all(n: int) -> NDArray[np.int8]:
    """(n, n!) all permutations in lexicographic order, a column each."""
    return np.ascontiguousarray(np.array(list(permutations(range(n))), dtype=np.int8).T)
