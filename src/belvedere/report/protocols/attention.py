"""Attention of the last block beside the true objects, with lines around 60 % of it (spec evaluation 2.12)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.evaluate.protocols.attention import enlarged, jaccard, object_masks
from belvedere.images.masks import IGNORE
from belvedere.measure.attention import MASS, attention_masks
from belvedere.report.attention import outline
from belvedere.report.drawing import Picture, cell_axes, new_figure, put_image, put_text, save_figure, write_table
from belvedere.report.protocols._segmentation import canvas_picture, class_colours, paint

# In cells: room for the names of the rows, the side of a picture, and from row to row with a line of text between.
MARGIN, SIDE, STEP = 0.62, 0.95, 1.1


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write attention.webp and attention.csv; an image is a column."""
    assert data.test_masks is not None
    shown = result.draws[RUN]
    colours = class_colours(len(data.test_masks.classes))
    titles = ["image", "truth", "mean head", "best head"]
    columns, rows = MARGIN + len(shown["rows"]), STEP * len(titles)
    # Cells take the usual shape of the images; one of another shape is stretched to it, and so is its attention.
    shape = float(np.median([data.test.sizes[i][0] / data.test.sizes[i][1] for i in shown["rows"]]))
    figure = new_figure(9.6, 9.6 * rows / columns * shape)
    axes = cell_axes(figure, columns, rows)
    for row, title in enumerate(titles):
        put_text(axes, title, 0.03, STEP * row + 0.47, fontweight="bold")
    table: list[tuple[object, ...]] = []
    for column, (i, maps) in enumerate(zip(shown["rows"], shown["maps"], strict=True)):
        mask, left = data.test_masks[i], MARGIN + column
        found, best = _overlaps(maps, torch.from_numpy(mask), shown["background"])
        name = data.test.names[i]
        table += [(name, "mean" if head == 0 else str(head), value) for head, value in enumerate(found)]
        put_image(axes, canvas_picture(data, i), left, 0, side=SIDE)
        put_image(axes, paint(mask, colours), left, STEP, side=SIDE)
        for row, (weights, value) in enumerate([(maps.mean(0), found[0]), (maps[best], found[best + 1])], 2):
            picture, top = weights.numpy(), STEP * row
            put_image(axes, picture, left, top, side=SIDE, cmap="magma", vmin=0, vmax=float(picture.max()))
            outline(axes, picture, left, top, side=SIDE)
            head = f", head {best + 1}" if row == 3 else ""
            put_text(axes, f"{100 * value:.0f} %{head}", left, top + SIDE + 0.07, size=7)
    save_figure(figure, folder / "attention.webp")
    write_table(folder / "attention.csv", ["image", "head", "mean_jaccard"], table)
    best_head, mean_head = result.metrics[RUN]["best_head"], result.metrics[RUN]["mean_head"]
    others = [f"{name} {one['best_head'].value:.1f}" for name, one in result.metrics.items() if name != RUN]
    floors = f" Best head of others: {', '.join(others)}." if others else ""
    return [
        Picture(
            "attention_masks",
            "Attention and true objects",
            f"Where the last block looks, beside the true classes: bright is much, the line encloses {MASS:.0%} of it. "
            "Below each map its Jaccard index with the objects of the image, averaged over them; the best head is the "
            f"one for which it is largest. Over {result.settings['images']} images: best head of each object "
            f"{best_head.value:.1f} % [{best_head.low:.1f}, {best_head.high:.1f}], mean of heads "
            f"{mean_head.value:.1f} %.{floors}",
            f"{len(shown['rows'])} images with their true classes, the mean attention map and that of the best head.",
            "attention.webp",
            "attention.csv",
        )
    ]


def _overlaps(maps: Tensor, mask: Tensor, background: int | None) -> tuple[list[float], int]:
    """Jaccard index, averaged over the objects, of the mean map and then of every head; and the best head."""
    objects = object_masks(mask, background)
    height, width = mask.shape
    masks = torch.cat([attention_masks(maps.mean(0, keepdim=True)), attention_masks(maps)])
    found = jaccard(enlarged(masks, (height, width)) & (mask != IGNORE), objects).mean(1)
    return found.tolist(), int(np.argmax(found[1:].numpy()))
