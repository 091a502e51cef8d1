"""Nearest neighbours: some queries, each with the eight images that the network finds most like it (picture 4)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.knn import count_votes, top_neighbours
from belvedere.report.drawing import (
    BAD,
    GOOD,
    INK,
    Picture,
    cell_axes,
    new_figure,
    printable,
    put_frame,
    put_image,
    put_text,
    save_figure,
    write_table,
)

SHOWN = 8
QUERIES = 3
"""Of each kind: random, clearest, least clear."""


@dataclass(frozen=True)
class Found:
    """Neighbours of N images among themselves, the nearest first, the image itself left out.

    Attributes:
        index, cosines: (N, k).
        margin: (N,) how clear the answer is; largest is clearest.
    """

    index: Tensor
    cosines: Tensor
    margin: Tensor


def find_neighbours(features: Tensor, labels: NDArray[np.int64] | None) -> Found:
    """The nearest images of every image, by cosine.

    The margin is the share of the (weighted) votes for the own class minus that of the strongest other class, in
    [-1, 1]. Without a label it is the mean cosine of the neighbours minus that of all images: how far they stand out.

    Args:
        features: (N, D), N >= 2.
        labels: (N,) class ids, -1 where unknown, or None.
    """
    own = torch.arange(len(features))
    cosines, index = top_neighbours(features, features, SHOWN, exclude=own)
    rows = F.normalize(features.float(), dim=1)
    margin = cosines.mean(1) - rows @ rows.mean(0)
    if labels is not None and (labels >= 0).any():
        known = torch.from_numpy(labels)
        # Neighbours without a label vote for a class that nobody is of.
        votes = count_votes(cosines, known[index].where(known[index] >= 0, known.max() + 1), int(known.max()) + 2)
        share = votes / votes.sum(1, keepdim=True)
        right = share.gather(1, known.clamp(min=0)[:, None]).squeeze(1)
        best_other = share.scatter(1, known.clamp(min=0)[:, None], -1.0).amax(1)
        # A tenth of how far they stand out orders the many queries whose neighbours all agree.
        margin = torch.where(known >= 0, (right - best_other) + 0.1 * margin, torch.nan)
    return Found(index, cosines, margin)


def choose_queries(found: Found) -> dict[str, list[int]]:
    """Queries of three kinds, at most `QUERIES` each; no image is shown twice as a query or among the clearest."""
    usable = found.margin.isfinite().nonzero().flatten().tolist()
    by_margin = sorted(usable, key=lambda i: -float(found.margin[i]))
    kinds: dict[str, list[int]] = {"Random queries": usable[:QUERIES]}
    taken = set(kinds["Random queries"])
    for kind, order in (("Clearest queries", by_margin), ("Least clear queries", by_margin[::-1])):
        chosen: list[int] = []
        seen = set(taken)
        for i in order:
            if len(chosen) < QUERIES and i not in seen:
                chosen.append(i)
                seen |= {i, *found.index[i].tolist()}
        kinds[kind] = chosen
        taken |= set(chosen)
    return {kind: chosen for kind, chosen in kinds.items() if chosen}


def draw_neighbours(folder: Path, encoder: Encoder, canvases: Canvases, features: Tensor) -> Picture:
    """Write neighbours.webp and neighbours.csv.

    Args:
        features: (N, D) of the N canvases, in random order.
    """
    labels = canvases.labels
    found = find_neighbours(features, labels)
    kinds = choose_queries(found)
    shown = min(SHOWN, found.index.shape[1])
    columns, rows = 1.25 + shown, sum(len(queries) + 0.42 for queries in kinds.values())
    figure = new_figure(1.06 * columns, 1.06 * rows)
    axes = cell_axes(figure, columns, rows)
    table: list[tuple[object, ...]] = []
    # In a young network all cosines are close to 1, and only more digits tell them apart.
    digits = 2 if float(found.cosines.min()) < 0.95 else 4
    top = 0.0
    for kind, queries in kinds.items():
        put_text(axes, kind, 0.03, top + 0.24, size=11, fontweight="bold")
        top += 0.42
        for query in queries:
            _put(axes, encoder, canvases, query, 0.03, top, INK)
            for rank in range(shown):
                other, cosine = int(found.index[query, rank]), float(found.cosines[query, rank])
                colour = _colour(labels, query, other)
                left = 1.22 + rank
                _put(axes, encoder, canvases, other, left, top, colour)
                put_text(
                    axes,
                    f"{cosine:.{digits}f}",
                    left + 0.06,
                    top + 0.85,
                    size=7,
                    color="white",
                    bbox={"boxstyle": "round,pad=.25", "facecolor": "#000000", "alpha": 0.55, "linewidth": 0},
                )
                names = canvases.names[query], canvases.names[other]
                table.append((kind, names[0], rank + 1, names[1], cosine, *_classes(canvases, query, other)))
            top += 1
    save_figure(figure, folder / "neighbours.webp")
    header = ["kind", "query", "rank", "neighbour", "cosine", "query_class", "neighbour_class"]
    write_table(folder / "neighbours.csv", header, table)
    frames = " A green frame means the same class, red another one." if labels is not None else ""
    return Picture(
        "neighbours",
        "Nearest neighbours",
        f"Left the query, then the {shown} images that the network finds most like it, with their cosine: a good "
        f"network puts the same kind of thing side by side, a poor one the same colours and backgrounds.{frames}",
        f"{sum(map(len, kinds.values()))} query images, each followed by its {shown} nearest neighbours among "
        f"{len(canvases)} images. {_agreement(labels, found)}",
        "neighbours.webp",
        "neighbours.csv",
    )


def _put(axes: Axes, encoder: Encoder, canvases: Canvases, i: int, left: float, top: float, colour: str) -> None:
    pixels = encoder.preprocess(torch.from_numpy(canvases.pixels(i).copy())[None])[0]
    image = printable(encoder, pixels)
    put_image(axes, image, left, top, side=0.94)
    put_frame(axes, left, top, colour, side=0.94, width=2.6 if colour != INK else 0.8)


def _colour(labels: NDArray[np.int64] | None, query: int, other: int) -> str:
    if labels is None or labels[query] < 0 or labels[other] < 0:
        return INK
    return GOOD if labels[query] == labels[other] else BAD


def _classes(canvases: Canvases, *items: int) -> list[str]:
    if canvases.labels is None:
        return [""] * len(items)
    return [canvases.classes[canvases.labels[i]] if canvases.labels[i] >= 0 else "" for i in items]


def _agreement(labels: NDArray[np.int64] | None, found: Found) -> str:
    if labels is None or not (labels >= 0).any():
        return f"The mean cosine of the nearest neighbour is {float(found.cosines[:, 0].mean()):.2f}."
    known = labels >= 0
    same = (labels[found.index.numpy()] == labels[:, None])[known].mean()
    return f"Over all of them, {100 * same:.0f} % of the neighbours are of the query's class."
