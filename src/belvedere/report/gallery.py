"""Galleries: candidates with losses and the chosen pair (V11), learned views from plain to hardly recognisable (A4).

Spec view_policies 5. The images are the first ones of the replay, so nobody picked them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder, evaluating
from belvedere.pretrain.method import Job
from belvedere.pretrain.trainer import Trainer
from belvedere.report.drawing import (
    ACCENT,
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
from belvedere.report.selection import Replay, candidates_of, names_by_turns, operations_of, pixels_of, policy_of
from belvedere.views.params import ViewParams
from belvedere.views.picture import describe
from belvedere.views.policies._retention import retrieval_loss
from belvedere.views.program import clean
from belvedere.views.views import Views

IMAGES = 6
QUANTILES = (0.02, 0.25, 0.5, 0.75, 0.98)
A_ROW = 4
SECOND = "#d9822b"
"""The chosen pair's first view has the accent's colour, the second one this."""
EASY, HARDEST = (0.95, 0.96, 0.98), (0.55, 0.66, 0.88)
"""Shades of the table of losses, under black figures on light and dark pages alike."""
# In cells: side of a view, height of a row with its caption, gap of the table of losses.
SIDE, ROW, GAP = 0.94, 1.42, 0.45


def draw_candidates(folder: Path, trainer: Trainer, encoder: Encoder, canvases: Canvases, replay: Replay) -> Picture:
    """Write candidates.webp and candidates.csv: of some images all candidates, the loss of every pair, the chosen one.

    Args:
        encoder: for mean and std of the pixels.
        replay: of draw 0.
    """
    # The same batch as in the replay is not needed: losses are read from there.
    index = replay.index[:IMAGES]
    names = names_by_turns(replay.pairs)
    params = candidates_of(trainer, canvases, index, draw=0).select(names)
    views = _render(trainer, canvases, index, params)
    columns, rows = 1 + len(names) + GAP + 1.6, ROW * len(index)
    figure = new_figure(9.6, 9.6 * rows / columns)
    axes = cell_axes(figure, columns, rows)
    for n in range(len(index)):
        top = ROW * n + 0.06
        pair = replay.pairs[int(replay.chosen[n])]
        _put_source(axes, canvases.pixels(int(index[n])), params, n, pair, top)
        for column, name in enumerate(names):
            left = 1 + column + 0.03
            put_image(axes, printable(encoder, views[name][n]), left, top, side=SIDE)
            colour = (ACCENT, SECOND)[pair.index(name)] if name in pair else INK
            put_frame(axes, left, top, colour, side=SIDE, width=3.2 if name in pair else 0.6)
            caption = f"{column + 1}: {_caption(trainer, params, column, n)}"
            put_text(axes, caption, left, top + SIDE + 0.03, size=5.6, va="top", linespacing=1.15)
        _put_losses(axes, replay, names, n, 1 + len(names) + GAP, top)
    save_figure(figure, folder / "candidates.webp")
    write_table(folder / "candidates.csv", *_rows(replay, canvases))
    return Picture(
        "candidates",
        "Candidates, their losses, and the chosen pair",
        "Left the image with the boxes of its candidates, then the candidates with what was done to them, and the loss "
        "of every pair (right, dark is hard). The pair that the network finds hardest is framed in blue and orange. "
        "Good choices show the same thing in two ways; if one of the two shows nothing of it, the crops are too small "
        "or the colours too strong.",
        f"{len(index)} images with {len(names)} candidate views each; the chosen pair is framed.",
        "candidates.webp",
        "candidates.csv",
    )


def draw_learned(folder: Path, trainer: Trainer, encoder: Encoder, canvases: Canvases, replay: Replay) -> Picture:
    """Write learned.webp and learned.csv: views of the policy's law, from the easiest to recognise to the hardest."""
    index = replay.index
    name = names_by_turns(replay.pairs)[0]
    params = candidates_of(trainer, canvases, index, draw=0).select([name])
    losses = recognition_loss(trainer, canvases, index, params)
    order = losses.argsort().numpy()
    chance = math.log(len(index))
    picked = [_around(order, share) for share in QUANTILES]
    views = _render(trainer, canvases, index, params)
    plain = _render(trainer, canvases, index, clean(params, name))
    columns, rows = 1.25 + 2.12 * A_ROW, ROW * len(picked)
    figure = new_figure(9.6, 9.6 * rows / columns)
    axes = cell_axes(figure, columns, rows)
    for row, (share, places) in enumerate(zip(QUANTILES, picked, strict=True)):
        top = ROW * row + 0.06
        level = float(losses[places].mean()) / chance
        put_text(axes, f"{100 * share:.0f} %", 0.03, top + 0.35, size=11, fontweight="bold")
        put_text(axes, f"{level:.2f} of chance", 0.03, top + 0.62, size=7)
        for column, n in enumerate(places):
            left = 1.2 + 2.12 * column
            put_image(axes, printable(encoder, plain[name][n]), left, top, side=SIDE)
            put_image(axes, printable(encoder, views[name][n]), left + 1, top, side=SIDE)
            put_frame(axes, left + 1, top, ACCENT, side=SIDE, width=1.6)
            caption = _caption(trainer, params, 0, int(n))
            put_text(axes, caption, left + 1, top + SIDE + 0.03, size=5.6, va="top", linespacing=1.15)
    save_figure(figure, folder / "learned.webp")
    table = [(canvases.names[i], float(loss), float(loss) / chance) for i, loss in zip(index, losses, strict=True)]
    write_table(folder / "learned.csv", ["image", "loss", "share_of_chance"], table)
    return Picture(
        "learned",
        "Views from the easiest to recognise to the hardest",
        "Each image beside a view of it. The rows are quantiles of how hard it is to tell, among "
        f"{len(index)} images, which one a view is of (0: always right, 1: guessing). In the last row a person should "
        "still be able to tell; if not, the policy is too strong (learned views: make views.retention smaller).",
        f"{len(QUANTILES)} rows of {A_ROW} images, each beside one of its views.",
        "learned.webp",
        "learned.csv",
    )


@torch.no_grad()
def recognition_loss(trainer: Trainer, canvases: Canvases, index: NDArray[np.int64], params: ViewParams) -> Tensor:
    """`[N]` the self-regulariser of one view an image, among these N images: chance is log N (spec 2.5)."""
    teacher = trainer.parts.teacher
    branch = teacher if teacher is not None else trainer.parts.student
    (name,) = params.slots
    found = []
    for record in (params, clean(params, name)):
        views = _render(trainer, canvases, index, record)
        with evaluating(branch), trainer.fabric.autocast():
            job = Job(views[name])
            found.append(branch.encode({(name,): job})[name,].cls.float())
    return retrieval_loss(*found).cpu()


def _render(trainer: Trainer, canvases: Canvases, index: NDArray[np.int64], params: ViewParams) -> Views:
    clock = trainer.clock(int(trainer.config.train.steps) - 1)
    with torch.no_grad():
        return trainer.render(torch.as_tensor(index), pixels_of(trainer, canvases, index), clock, params)


def _around(order: NDArray[np.int64], share: float) -> NDArray[np.int64]:
    """`A_ROW` images around a quantile of an order."""
    middle = round(share * (len(order) - 1))
    start = min(max(0, middle - A_ROW // 2), max(0, len(order) - A_ROW))
    return order[start : start + A_ROW]


def _put_source(
    axes: Axes, image: NDArray[np.uint8], params: ViewParams, n: int, pair: tuple[str, str], top: float
) -> None:
    """The image, its aspect kept, with the boxes of all candidates."""
    height, width = image.shape[:2]
    unit = SIDE / max(height, width)
    extent = (0.02, 0.02 + width * unit, top + height * unit, top)
    shown = image[..., :3] if image.shape[2] >= 3 else image.mean(2) / 255
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(shown, extent=extent, cmap="gray", vmin=0, vmax=1, aspect="auto")
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    ordered = sorted(params.slots, key=lambda name: name in pair)  # the chosen ones on top
    for name in ordered:
        at = (params.slot(name), n)
        corner = 0.02 + float(params.left[at]) * unit, top + float(params.top[at]) * unit
        colour, thick = ((ACCENT, SECOND)[pair.index(name)], 1.8) if name in pair else ("white", 0.5)
        size = float(params.w[at]) * unit, float(params.h[at]) * unit
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=colour, linewidth=thick))


def _put_losses(axes: Axes, replay: Replay, names: list[str], n: int, left: float, top: float) -> None:
    """A table of the candidates by the candidates, one cell a pair, the chosen one framed."""
    side = 1.15 / len(names)
    scores = replay.scores[:, n]
    low, high = float(scores.min()), float(scores.max())
    for k in range(len(names)):
        put_text(axes, str(k + 1), left - 0.08, top + (k + 0.5) * side, size=6.5, ha="center")
        put_text(axes, str(k + 1), left + (k + 0.5) * side, top + len(names) * side + 0.07, size=6.5, ha="center")
    for p, (a, b) in enumerate(replay.pairs):
        row, column = sorted((names.index(a), names.index(b)), reverse=True)
        x, y, value = left + column * side, top + row * side, float(scores[p])
        strength = (value - low) / max(high - low, 1e-12)
        shade = tuple((1 - strength) * light + strength * dark for light, dark in zip(EASY, HARDEST, strict=True))
        axes.add_patch(Rectangle((x, y), side, side, facecolor=shade, linewidth=0))
        text = f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"
        size = 6.5 if len(names) <= 4 else 4.5
        put_text(axes, text, x + side / 2, y + side / 2, size=size, ha="center", color="black")
    row, column = sorted((names.index(name) for name in replay.pairs[int(replay.chosen[n])]), reverse=True)
    put_frame(axes, left + column * side, top + row * side, ACCENT, side=side, width=2)


def _caption(trainer: Trainer, params: ViewParams, slot: int, image: int) -> str:
    """What was done to a view: its crop, then its colours or the operations of its program."""
    return describe(params, slot, image, operations_of(policy_of(trainer)))


def _rows(replay: Replay, canvases: Canvases) -> tuple[list[str], list[tuple[object, ...]]]:
    """Every pair of every image: names, loss, whether it was chosen, and its facts."""
    header = ["image", "first", "second", "loss", "chosen", *replay.facts]
    rows = [
        (
            canvases.names[int(i)],
            *pair,
            float(replay.scores[p, n]),
            int(p == int(replay.chosen[n])),
            *(float(fact[p, n]) for fact in replay.facts.values()),
        )
        for n, i in enumerate(replay.index)
        for p, pair in enumerate(replay.pairs)
    ]
    return header, rows
