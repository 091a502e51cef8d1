"""Parts of a labelled set for choosing and testing, drawn from a seed (spec evaluation, section 0)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupShuffleSplit

from belvedere.errors import UserError

Labels = NDArray[np.int64]
Rows = NDArray[np.int64]


def hold_out(labels: Labels, seed: int, share: float = 0.1, groups: Sequence[str] | None = None) -> tuple[Rows, Rows]:
    """Split rows in two, every class in proportion; a class too small for its share stays whole in the first part.

    Args:
        labels: (N,) class ids.
        share: of the second part; at least one row goes there.
        groups: (N,) names of what belongs together (patient, writer, video): whole groups are then drawn instead.

    Returns:
        Ascending rows of the first and of the second part.

    Raises:
        UserError: when there is too little to split.
    """
    if len(labels) < 2 or (groups is not None and len(set(groups)) < 2):
        unit = "labelled image" if groups is None else "group"
        raise UserError(f"only one {unit} to split into training and test: add more, or give a test set")
    if groups is not None:
        drawn: Any = next(GroupShuffleSplit(1, test_size=share, random_state=seed).split(labels, groups=groups))
        return np.sort(drawn[0]), np.sort(drawn[1])
    # Every row's place in its shuffled class, as a share of the class: the lowest places of all classes together
    # are a stratified draw.
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    order = shuffled[np.argsort(place[shuffled], kind="stable")]
    count = max(1, round(share * len(labels)))
    return np.sort(order[count:]), np.sort(order[:count])
