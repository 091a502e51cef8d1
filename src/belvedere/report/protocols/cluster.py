"""The cluster gallery: of every cluster the members nearest to its centre, and the farthest (picture 14)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.report.drawing import (
    ACCENT,
    BAD,
    Picture,
    cell_axes,
    new_figure,
    put_frame,
    put_image,
    put_text,
    save_figure,
    write_table,
)
from belvedere.report.protocols._images import Thumbnails, shortened

CLOSEST, FARTHEST = 12, 4
MOST = 20
"""Clusters shown, the largest first."""
HEAD = 0.34
GAP = 0.3


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write cluster.webp and cluster.csv, of the run's clusters of the training images."""
    found = result.draws[RUN]
    clusters: NDArray[np.int64] = found["clusters"]
    sizes = np.bincount(clusters)
    order = [int(k) for k in np.argsort(-sizes, kind="stable") if sizes[k]]
    shown = order[:MOST]
    columns = CLOSEST + GAP + FARTHEST
    height = len(shown) * (1 + HEAD)
    figure = new_figure(0.56 * columns, 0.56 * height)
    axes = cell_axes(figure, columns, height)
    thumbnails = Thumbnails(data.train, 64)
    rows: list[tuple[Any, ...]] = []
    for line, k in enumerate(shown):
        top = line * (1 + HEAD)
        near, far = members(clusters, found["distances"], k)
        put_text(axes, f"{sizes[k]} images{_kinds(data, clusters == k)}", 0.03, top + HEAD / 2, size=7.5)
        for place, i in enumerate(near):
            _put(axes, thumbnails, i, place, top + HEAD, ACCENT)
        for place, i in enumerate(far):
            _put(axes, thumbnails, i, CLOSEST + GAP + place, top + HEAD, BAD)
        for kind, chosen in (("closest", near), ("farthest", far)):
            for rank, i in enumerate(chosen, 1):
                rows.append((k, int(sizes[k]), kind, rank, data.train.names[i], float(found["distances"][i])))
    save_figure(figure, folder / "cluster.webp")
    write_table(folder / "cluster.csv", ["cluster", "images", "kind", "rank", "image", "distance"], rows)
    less = "" if len(shown) == len(order) else f" The {len(shown)} largest of {len(order)} clusters are shown."
    return [
        Picture(
            "cluster",
            "Clusters",
            f"A row is a cluster of the {len(clusters)} training images: left (blue) the {CLOSEST} members nearest to "
            f"its centre, right (red) the {FARTHEST} farthest. A row of one kind of thing is a group that the network "
            "has found by itself; where the red ones are something else, the cluster holds what fits nowhere. Rows "
            f"sorted by colour or brightness mean that the features see little more.{less}",
            f"{len(shown)} clusters of {int(sizes[shown[-1]])} to {int(sizes[shown[0]])} images, up to "
            f"{CLOSEST + FARTHEST} images each.",
            "cluster.webp",
            "cluster.csv",
        )
    ]


def members(clusters: NDArray[np.int64], distances: NDArray[Any], k: int) -> tuple[list[int], list[int]]:
    """Rows of the members of cluster k nearest to its centre, the nearest first, and of the farthest of the others."""
    rows = np.flatnonzero(clusters == k)
    rows = rows[np.argsort(distances[rows], kind="stable")]
    return rows[:CLOSEST].tolist(), rows[CLOSEST:][::-1][:FARTHEST].tolist()


def _kinds(data: EvalData, inside: NDArray[np.bool_]) -> str:
    """The three commonest classes of a cluster, where there are labels."""
    labels = data.train_labels[inside & (data.train_labels >= 0)]
    if not len(labels):
        return ""
    counts = np.bincount(labels)
    common = [int(c) for c in np.argsort(-counts, kind="stable")[:3] if counts[c]]
    return ": " + ", ".join(f"{shortened(data.classes[c], 20)} {100 * counts[c] / len(labels):.0f} %" for c in common)


def _put(axes: Any, thumbnails: Thumbnails, i: int, left: float, top: float, colour: str) -> None:
    put_image(axes, thumbnails[i], left + 0.03, top, side=0.94)
    put_frame(axes, left + 0.03, top, colour, side=0.94, width=0.9)
