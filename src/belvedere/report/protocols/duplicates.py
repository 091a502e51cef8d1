"""Near-duplicates and suspected labels side by side, with their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.measure.twins import Twins
from belvedere.report.drawing import (
    ACCENT,
    BAD,
    INK,
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

SHOWN = 12
"""Pairs of each picture."""
COLUMNS = 4
CELL = (2.25, 1.75)
"""Width and height of a pair in cells of one image."""


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write duplicates, twins and suspects as .webp and .csv; one without entries says so."""
    found, images = result.draws[RUN], _Images(data)
    pictures = [_duplicates(folder, found["within"], images), _twins(folder, found["across"], images)]
    if result.settings["judged_labels"]:
        pictures.append(_suspects(folder, found["suspects"], images))
    return pictures


class _Images:
    """Training and test images under one row number, training first."""

    def __init__(self, data: EvalData) -> None:
        self.data = data
        self.count = len(data.train)
        self._train, self._test = Thumbnails(data.train), Thumbnails(data.test)

    def pixels(self, i: int) -> Any:
        return self._train[i] if i < self.count else self._test[i - self.count]

    def name(self, i: int) -> str:
        return self.data.train.names[i] if i < self.count else self.data.test.names[i - self.count]

    def named(self, i: int) -> tuple[str, str]:
        """The set and the name: the same name may stand in both."""
        return "train" if i < self.count else "test", self.name(i)

    def label(self, i: int) -> str:
        label = self.data.train_labels[i] if i < self.count else self.data.test_labels[i - self.count]
        return self.data.classes[label] if label >= 0 else ""


def _duplicates(folder: Path, within: Twins, images: _Images) -> Picture:
    title = "Near-duplicates"
    if not len(within.pairs):
        return Picture("duplicates", title, skipped="no two images are near-duplicates")
    # Different labels of one image are the ones to look at, then those that are copies for certain.
    order = sorted(
        range(len(within.pairs)),
        key=lambda p: (images.label(int(within.pairs[p, 0])) == images.label(int(within.pairs[p, 1])), p),
    )
    pairs = [(int(a), int(b)) for a, b in within.pairs[order]]
    rows: list[tuple[Any, ...]] = [
        (
            *images.named(a),
            *images.named(b),
            _kind(within, p),
            float(within.cosines[p]),
            images.label(a),
            images.label(b),
        )
        for p, (a, b) in zip(order, pairs, strict=True)
    ]
    notes = [(f"{kind}, cosine {cosine:.3f}", *_differs(one, two)) for *_, kind, cosine, one, two in rows]
    _draw_pairs(folder / "duplicates.webp", pairs[:SHOWN], notes[:SHOWN], images)
    header = ["set", "image", "earlier_set", "earlier_image", "kind", "cosine", "class", "earlier_class"]
    write_table(folder / "duplicates.csv", header, rows)
    odd = sum(one != two for *_, one, two in rows)
    return Picture(
        "duplicates",
        title,
        f"{len(pairs)} images are twins of an earlier one: {within.told()}. "
        f"{f'{odd} of these pairs have different labels (red) and are shown first. ' if odd else ''}"
        "Copies make training sets smaller than they look. The table names all.",
        f"{min(SHOWN, len(pairs))} pairs of near-duplicate images side by side, of {len(pairs)}.",
        "duplicates.webp",
        "duplicates.csv",
    )


def _twins(folder: Path, across: Twins, images: _Images) -> Picture:
    title = "Test images with a twin in training"
    if not len(across.pairs):
        return Picture("twins", title, skipped="no test image has a near-duplicate among the training images")
    order = across.order().tolist()
    pairs = [(images.count + int(test), int(train)) for test, train in across.pairs[order]]
    kinds = [(_kind(across, p), float(across.cosines[p])) for p in order]
    notes = [
        (f"{kind}, cosine {cosine:.3f}", *_differs(images.label(a), images.label(b)))
        for (kind, cosine), (a, b) in zip(kinds, pairs, strict=True)
    ]
    _draw_pairs(folder / "twins.webp", pairs[:SHOWN], notes[:SHOWN], images)
    rows = [(images.name(a), images.name(b), *kind) for (a, b), kind in zip(pairs, kinds, strict=True)]
    write_table(folder / "twins.csv", ["test_image", "training_image", "kind", "cosine"], rows)
    return Picture(
        "twins",
        title,
        f"{len(pairs)} of {len(images.data.test)} test images (left) are twins of a training image (right): "
        f"{across.told()}. "
        "Numbers on such images flatter: take them out of the test set, or split by what they share.",
        f"{min(SHOWN, len(pairs))} test images beside their near-duplicate in training, of {len(pairs)}.",
        "twins.webp",
        "twins.csv",
    )


def _suspects(folder: Path, suspects: list[dict[str, Any]], images: _Images) -> Picture:
    title = "Suspected label errors"
    if not suspects:
        return Picture("suspects", title, skipped="no label is contradicted by the image's neighbours")
    classes = images.data.classes
    pairs = [(one["image"], one["neighbour"]) for one in suspects]
    notes = [
        (f"labelled {shortened(images.label(one['image']), 24)}", f"rather {shortened(classes[one['suggested']], 26)}")
        for one in suspects
    ]
    _draw_pairs(folder / "suspects.webp", pairs[:SHOWN], notes[:SHOWN], images)
    rows = [
        (*images.named(one["image"]), images.label(one["image"]), classes[one["suggested"]], one["margin"])
        for one in suspects
    ]
    write_table(folder / "suspects.csv", ["set", "image", "class", "suggested", "margin"], rows)
    return Picture(
        "suspects",
        title,
        f"{len(suspects)} images whose neighbours vote for another class than their label by a wide margin; left the "
        "image, right its nearest neighbour of that class. Some labels are wrong, some images are odd, and some "
        "classes the network cannot tell apart: the better it does, the more of these are errors. The clearest come "
        "first.",
        f"{min(SHOWN, len(suspects))} images beside a neighbour of another class, of {len(suspects)} suspects.",
        "suspects.webp",
        "suspects.csv",
    )


def _kind(twins: Twins, place: int) -> str:
    return "exact" if twins.exact[place] else "near"


def _differs(one: str, two: str) -> tuple[str, ...]:
    return (f"{shortened(one, 14)} / {shortened(two, 14)}",) if one != two else ()


def _draw_pairs(path: Path, pairs: list[tuple[int, int]], notes: Sequence[tuple[str, ...]], images: _Images) -> None:
    """Two images side by side, what is to be said of them (a second note in red), and their names."""
    columns = min(COLUMNS, len(pairs))
    lines = -(-len(pairs) // columns)
    width, height = CELL
    figure = new_figure(0.82 * columns * width, 0.82 * lines * height)
    axes = cell_axes(figure, columns * width, lines * height)
    for place, ((one, two), note) in enumerate(zip(pairs, notes, strict=True)):
        left, top = place % columns * width, place // columns * height
        colour = BAD if len(note) > 1 else ACCENT
        for k, i in enumerate((one, two)):
            put_image(axes, images.pixels(i), left + 0.04 + k, top + 0.04, side=0.94)
            put_frame(axes, left + 0.04 + k, top + 0.04, colour, side=0.94, width=1.2)
        _write(axes, [*note, shortened(images.name(one), 34), shortened(images.name(two), 34)], left + 0.04, top + 1.1)
    save_figure(figure, path)


def _write(axes: Axes, lines: list[str], left: float, top: float) -> None:
    for k, text in enumerate(lines):
        put_text(axes, text, left, top + 0.155 * k, size=6, color=BAD if k == 1 and len(lines) > 3 else INK)
