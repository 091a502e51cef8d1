"""Some pages, each with the pages whose patches are most like its own."""

from __future__ import annotations

from pathlib import Path

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.evaluate.protocols._pages import Pages
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

SCALE = 1.15
"""Inches of a page's side."""


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write vlad.webp and vlad.csv: a row a query, the pages found from left to right."""
    answers = result.draws[RUN]
    pages: Pages = answers["pages"]
    thumbnails = Thumbnails(data.test)
    lines = list(zip(*(answers[key].tolist() for key in ("queries", "nearest", "cosines")), strict=True))
    columns, height = len(lines[0][1]) + 1.15, 1.2 * len(lines)
    figure = new_figure(SCALE * columns, SCALE * height)
    axes = cell_axes(figure, columns, height)
    table: list[tuple[str, str, int, str, str, float, int]] = []
    for line, (query, nearest, cosines) in enumerate(lines):
        for place, page in enumerate([query, *nearest]):
            left, top = place + 0.15 * (place > 0) + 0.03, 1.2 * line + 0.03
            same = bool(pages.labels[page] == pages.labels[query])
            # Of several windows the middle one: there is rarely ink at the edge of a page.
            put_image(axes, thumbnails[pages.rows[page][len(pages.rows[page]) // 2]], left, top, side=0.94)
            put_frame(axes, left, top, (GOOD if same else BAD) if place else ACCENT, side=0.94)
            put_text(axes, shortened(data.classes[pages.labels[page]], 18), left, top + 1.04, size=6)
        for rank, (page, cosine) in enumerate(zip(nearest, cosines, strict=True), 1):
            labels = [data.classes[pages.labels[one]] for one in (query, page)]
            table.append(
                (pages.names[query], labels[0], rank, pages.names[page], labels[1], cosine, int(len({*labels}) == 1))
            )
    save_figure(figure, folder / "vlad.webp")
    write_table(folder / "vlad.csv", ["page", "label", "rank", "found", "its_label", "cosine", "same"], table)
    own, chance = result.metrics[RUN], result.settings["chance_percent"]
    return [
        Picture(
            "vlad",
            "Pages found by their patches",
            "Left a page, framed in blue, then the pages most like it by their patch tokens, the nearest first: green "
            "where the label is the same, red where it is another. Of a page in several windows one is shown. Over "
            f"{result.settings['queries']} pages the mAP is {own['map'].value:.0f} % and the nearest is right for "
            f"{own['top1'].value:.0f} %; by the global vector {own['map_global'].value:.0f} % and "
            f"{own['top1_global'].value:.0f} %; by chance {chance['map']:.0f} % and {chance['top1']:.0f} %.",
            f"{len(lines)} pages, each with the {len(lines[0][1])} pages found nearest to it.",
            "vlad.webp",
            "vlad.csv",
        )
    ]
