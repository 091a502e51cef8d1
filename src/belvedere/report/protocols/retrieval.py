"""Some queries, each with the images found nearest to it by the run and by what stands beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.report.drawing import (
    ACCENT,
    BAD,
    GOOD,
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

# In cells: the line of titles, a query with its class below it, and the gap between two blocks of columns.
HEAD, LINE, GAP = 0.3, 1.16, 0.2
SCALE = 0.86
"""Inches of an image's side."""
COLUMNS = "queries", "nearest", "cosines"


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write retrieval.webp, the run beside the first other subject, and retrieval.csv, all of them."""
    beside = list(result.draws)[:2]
    queries, found = result.draws[RUN]["queries"].tolist(), result.draws[RUN]["nearest"].shape[1]
    columns = 1 + len(beside) * (found + GAP)
    height = HEAD + LINE * len(queries)
    figure = new_figure(SCALE * columns, SCALE * height)
    axes = cell_axes(figure, columns, height)
    thumbnails = Thumbnails(data.test)
    put_text(axes, "query", 0.03, HEAD / 2, fontweight="bold")
    for block, name in enumerate(beside):
        first = 1 + GAP + block * (found + GAP)
        put_text(axes, "found by this run" if name == RUN else f"by {name}", first, HEAD / 2, fontweight="bold")
        for line, (query, nearest) in enumerate(zip(queries, result.draws[name]["nearest"].tolist(), strict=True)):
            top = HEAD + LINE * line
            if not block:
                put_image(axes, thumbnails[query], 0.03, top, side=0.94)
                put_frame(axes, 0.03, top, ACCENT, side=0.94)
                put_text(axes, shortened(data.classes[data.test_labels[query]], 19), 0.03, top + 1.05, size=6)
            for rank, other in enumerate(nearest):
                same = data.test_labels[other] == data.test_labels[query]
                put_image(axes, thumbnails[other], first + rank, top, side=0.94)
                put_frame(axes, first + rank, top, GOOD if same else BAD, side=0.94)
                named = shortened(data.classes[data.test_labels[other]], 18)
                put_text(axes, f"{'✓' if same else '✗'} {named}", first + rank, top + 1.05, size=5)
    save_figure(figure, folder / "retrieval.webp")
    header = ["subject", "query", "label", "rank", "found", "its_label", "cosine", "same"]
    write_table(folder / "retrieval.csv", header, _rows(result.draws, data))
    recall = next(iter(result.metrics[RUN]))
    k = recall.removeprefix("recall")
    told = [f"{result.metrics[name][recall].value:.0f} %" for name in beside]
    return [
        Picture(
            "retrieval",
            "The same thing, found again",
            "Left a query, framed in blue, with its class below; then the images found nearest to it: green where the "
            f"class is the same, red where it is another. Of all {result.settings['queries']} queries "
            + ("the nearest image is right for " if k == "1" else f"one of the {k} nearest images is right for ")
            + (f"{told[0]}." if len(beside) < 2 else f"{told[0]}, by {beside[1]} for {told[1]}."),
            f"{len(queries)} test images, evenly spaced, each with the {found} images found nearest to it.",
            "retrieval.webp",
            "retrieval.csv",
        )
    ]


def _rows(draws: Mapping[str, Mapping[str, Tensor]], data: EvalData) -> Iterator[tuple[object, ...]]:
    for name, answers in draws.items():
        for query, nearest, cosines in zip(*(answers[key].tolist() for key in COLUMNS), strict=True):
            for rank, (other, cosine) in enumerate(zip(nearest, cosines, strict=True), 1):
                labels = [data.classes[data.test_labels[one]] for one in (query, other)]
                files = data.test.names[query], data.test.names[other]
                yield name, files[0], labels[0], rank, files[1], labels[1], cosine, int(labels[0] == labels[1])
