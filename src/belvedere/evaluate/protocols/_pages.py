"""Images that make one page: the tiles of a file, or what a user cut and named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.images.tiles import file_of

By = Literal["file", "folder", "group"]


@dataclass(frozen=True)
class Pages:
    """Some pages.

    Attributes:
        rows: of the images of each.
        labels: (P,) class ids.
        names: the file, folder or group of each.
    """

    rows: list[list[int]]
    labels: NDArray[np.int64]
    names: list[str]

    def marked(self, which: NDArray[np.bool_]) -> Pages:
        """Those that are marked in (P,)."""
        chosen = np.flatnonzero(which).tolist()
        return Pages([self.rows[p] for p in chosen], self.labels[which], [self.names[p] for p in chosen])

    def means(self, features: Tensor) -> Tensor:
        """(P, D) mean over each page of the directions of its images' features (N, D)."""
        directions = F.normalize(features, dim=1)
        return torch.stack([directions[rows].mean(0) for rows in self.rows])


def pages_of(canvases: Canvases, labels: NDArray[np.int64], by: By) -> Pages:
    """The pages of labelled images, in the order of their first images.

    Args:
        by: "file" takes the tiles of one file together, "folder" all images of one folder, "group" those of one group.

    Raises:
        UserError: when there are no groups, or images of one page have different labels.
    """
    if by == "group" and canvases.groups is None:
        raise UserError("vlad.page: the images have no groups; give a CSV with the columns path,label,group")
    keys = {
        "file": lambda: [file_of(name) for name in canvases.names],
        "folder": lambda: [str(PurePosixPath(file_of(name)).parent) for name in canvases.names],
        "group": lambda: canvases.groups or [],
    }[by]()
    rows: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        rows.setdefault(key, []).append(i)
    for key, own in rows.items():
        if len(set(labels[own].tolist())) > 1:
            raise UserError(f"vlad.page={by}: the images of '{key}' have different labels, so they are not one page")
    return Pages(list(rows.values()), np.array([labels[own[0]] for own in rows.values()]), list(rows))
