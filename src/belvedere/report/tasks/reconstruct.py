"""Corrupted, reconstructed, original: what SiT's student was shown and what it painted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import (
    Picture,
    cell_axes,
    new_figure,
    printable,
    put_image,
    put_text,
    save_figure,
    write_table,
)

IMAGES = 12
"""Triplets that are drawn; the numbers are of all images."""
A_LINE = 3
SIDE, ROW, GAP = 0.94, 1.22, 0.3
TRIPLET = ("corrupted", "reconstructed", "original")


def draw(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder) -> list[Picture]:
    """Write reconstruct.webp and reconstruct.csv; see `draw_painted`."""
    return draw_painted(
        folder, shown, encoder, "reconstruct", "What the network paints where it was shown something else"
    )


def draw_painted(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder, name: str, title: str) -> list[Picture]:
    """Write NAME.webp and NAME.csv: triplets, and the error beside those of two answers without thought.

    Args:
        shown: what the task's `show` gave.
        encoder: for mean and std of the pixels.
    """
    errors = masked_errors(shown)
    number = min(IMAGES, len(shown["original"]))
    lines = -(-number // A_LINE)
    columns, rows = 3 * A_LINE + GAP * (A_LINE - 1), ROW * lines + 0.22
    figure = new_figure(9.6, 9.6 * rows / columns)
    axes = cell_axes(figure, columns, rows)
    for place in range(min(A_LINE, number)):
        for column, which in enumerate(TRIPLET):
            put_text(axes, which, (3 + GAP) * place + column + SIDE / 2, 0.11, size=8, ha="center")
    for n in range(number):
        line, place = divmod(n, A_LINE)
        left, top = (3 + GAP) * place, 0.22 + ROW * line
        for column, which in enumerate(TRIPLET):
            put_image(axes, printable(encoder, shown[which][n]), left + column, top, side=SIDE)
        values = ", ".join(f"{answer} {float(error[n]):.2f}" for answer, error in errors.items())
        put_text(axes, values, left, top + SIDE + 0.1, size=6.2)
    save_figure(figure, folder / f"{name}.webp")
    masked = shown["mask"].mean((1, 2, 3))
    table = [
        (n, float(masked[n]), *(float(error[n]) for error in errors.values())) for n in range(len(shown["original"]))
    ]
    write_table(folder / f"{name}.csv", ["image", "masked", "network", "mean_colour", "copy"], table)
    what = "each patch's true mean level, which the network is given" if "means" in shown else "the image's mean colour"
    return [
        Picture(
            name,
            title,
            "Each image three times: as the student saw it, as it painted it, and as it is. Under it the mean absolute "
            "error of the pixels that were corrupted, in standard deviations of the pixels (smaller is better), of the "
            f"network, of {what}, and of the corrupted view left as it is. {_verdict(errors, masked)} "
            "Early in training it paints blurs of the right colour, later edges that go on.",
            f"{number} images, each corrupted, reconstructed and original; {100 * float(masked.mean()):.0f} % of the "
            "pixels are corrupted.",
            f"{name}.webp",
            f"{name}.csv",
        )
    ]


def _verdict(errors: Mapping[str, Tensor], masked: Tensor) -> str:
    some = masked > 0
    if not some.any():
        return "Nothing of these views was corrupted, so nothing was learned from them: drop and replace are 0."
    network, mean, copy = (float(error[some].mean()) for error in errors.values())
    verdict = "better than both" if network < min(mean, copy) else "no better than the best of the two"
    return (
        f"Over {len(masked)} images: network {network:.2f}, mean {mean:.2f}, copy {copy:.2f}; the network is {verdict}."
    )


def masked_errors(shown: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """(B,) mean absolute error over the corrupted pixels of each view, 0 where there are none.

    Returns:
        "network", and of the two baselines: "mean" paints the clean view's mean colour, or of every patch its own where
        those are in `shown["means"]`; "copy" the corrupted view.
    """
    original, mask = shown["original"], shown["mask"]
    counted = (mask.sum((1, 2, 3)) * original.shape[1]).clamp(min=1)
    answers = {
        "network": shown["reconstructed"],
        "mean": shown.get("means", original.mean((2, 3), keepdim=True).expand_as(original)),
        "copy": shown["corrupted"],
    }
    return {
        name: torch.sum((answer - original).abs() * mask, dim=(1, 2, 3)) / counted for name, answer in answers.items()
    }
