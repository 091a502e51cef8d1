"""Scores of known and of foreign images as histograms, and the images of either kind that look like the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from numpy.typing import NDArray

from belvedere.evaluate.contract import RUN, EvalData, Result
from belvedere.evaluate.metrics.outliers import RECALL
from belvedere.report.drawing import ACCENT, BAD, INK, Picture, new_figure, save_figure, write_table
from belvedere.report.protocols._images import Thumbnails, draw_rows

Values = NDArray[np.float64]

SHOWN = 10
"""Images a row."""
LISTED = 1000
"""Images of each kind in the table, which the page embeds."""
BINS = 40
SCORES = {
    "knn": "distance to the k-th neighbour",
    "mahalanobis": "Mahalanobis' distance",
    "softmax": "minus the largest softmax",
    "energy": "energy of the logits",
}
_KINDS = {"your test images": ACCENT, "foreign images (--other)": BAD}
# In inches.
_PANEL, _GAP, _SIDE, _TOP, _BOTTOM = (3.3, 1.5), (0.35, 0.62), 0.15, 0.72, 0.25


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write ood.webp and ood_images.webp with their tables, of the run's scores."""
    return [_histograms(folder, result), _images(folder, result, data)]


def threshold(outside: Values) -> float:
    """The highest score at which at least 95 % of the foreign images are found."""
    ordered = np.sort(outside)[::-1]
    return float(ordered[int(np.ceil(RECALL * len(ordered))) - 1])


def _histograms(folder: Path, result: Result) -> Picture:
    scores: dict[str, tuple[Values, Values]] = result.draws["scores"][RUN]
    lines = -(-len(scores) // 2)
    width = 2 * _PANEL[0] + _GAP[0] + 2 * _SIDE
    height = _TOP + lines * _PANEL[1] + (lines - 1) * _GAP[1] + _BOTTOM
    figure = new_figure(width, height)
    rows: list[tuple[Any, ...]] = []
    for place, (name, (inside, outside)) in enumerate(scores.items()):
        left = _SIDE + place % 2 * (_PANEL[0] + _GAP[0])
        bottom = height - _TOP - _PANEL[1] - place // 2 * (_PANEL[1] + _GAP[1])
        box = left / width, bottom / height, _PANEL[0] / width, _PANEL[1] / height
        bins = _draw_one(figure.add_axes(box), name, inside, outside, result.metrics[RUN][f"{name}_auroc"].value)
        rows += [(name, *bin_) for bin_ in bins]
    handles = [Patch(color=colour, alpha=0.6, label=name) for name, colour in _KINDS.items()]
    place_of: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (0, 1)}
    figure.legend(handles=handles, **place_of, ncols=2, frameon=False, fontsize=8.5, labelcolor=INK)
    save_figure(figure, folder / "ood.webp")
    header = ["score", "from", "to", "share_of_known", "share_of_foreign", "threshold"]
    write_table(folder / "ood.csv", header, rows)
    own = result.metrics[RUN]
    told = "; ".join(
        f"{SCORES[name]}: AUROC {own[f'{name}_auroc'].value:.0f} %, {own[f'{name}_fpr95'].value:.0f} % false alarms"
        for name in scores
    )
    return Picture(
        "ood",
        "Known and foreign images",
        "How foreign each image looks by every score of this run, higher is more foreign: your test images (blue) and "
        f"those of --other (red), each kind as shares of its own. Right of the dashed line lie {100 * RECALL:.0f} % of "
        "the foreign images; the blue ones there would be false alarms. Histograms that lie on each other mean that "
        "the score cannot tell them apart.",
        f"{len(scores)} histograms of the scores of known and foreign images. {told}.",
        "ood.webp",
        "ood.csv",
    )


def _draw_one(
    axes: Axes, name: str, inside: Values, outside: Values, auroc: float
) -> list[tuple[float, float, float, float, float]]:
    """The histogram of a score; returns its bins with the shares of both kinds, and the threshold."""
    both = np.concatenate([inside, outside])
    # A few far ones must not press all others into one bin; they are counted in the outermost.
    low, high = np.quantile(both, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    shares = [np.histogram(np.clip(x, edges[0], edges[-1]), edges)[0] / len(x) for x in (inside, outside)]
    for share, colour in zip(shares, _KINDS.values(), strict=True):
        axes.stairs(100 * share, edges, fill=True, color=colour, alpha=0.35, linewidth=0)
        axes.stairs(100 * share, edges, color=colour, linewidth=1.3)
    line = threshold(outside)
    axes.axvline(float(np.clip(line, edges[0], edges[-1])), color=INK, linewidth=1.2, linestyle=(0, (4, 3)))
    alarms = float((inside >= line).mean())
    axes.set_title(SCORES[name], fontsize=9, color=INK, loc="left", pad=14)
    note = f"AUROC {auroc:.0f} %, {100 * alarms:.0f} % false alarms"
    axes.text(0, 1.03, note, transform=axes.transAxes, fontsize=7.5, color=INK)
    axes.patch.set_alpha(0)
    axes.set_yticks([])
    axes.set_ylim(bottom=0)
    axes.tick_params(colors=INK, labelsize=7.5, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)
    return [
        (float(a), float(b), float(known), float(foreign), line)
        for a, b, known, foreign in zip(edges[:-1], edges[1:], *shares, strict=True)
    ]


def _images(folder: Path, result: Result, data: EvalData) -> Picture:
    assert data.other is not None
    inside, outside = result.draws["scores"][RUN]["knn"]
    known: NDArray[np.int64] = result.draws["known"]
    odd, familiar = np.argsort(-inside, kind="stable"), np.argsort(outside, kind="stable")
    test, other = Thumbnails(data.test), Thumbnails(data.other)
    draw_rows(
        folder / "ood_images.webp",
        [
            ("Your images that look most foreign", ACCENT, [test[int(known[i])] for i in odd[:SHOWN]]),
            ("Foreign images that look most like yours", BAD, [other[int(i)] for i in familiar[:SHOWN]]),
        ],
    )
    rows = [("known", data.test.names[int(known[i])], float(inside[i])) for i in odd[:LISTED]]
    rows += [("foreign", data.other.names[int(i)], float(outside[i])) for i in familiar[:LISTED]]
    write_table(folder / "ood_images.csv", ["kind", "image", "distance"], rows)
    return Picture(
        "ood_images",
        "Images taken for the other kind",
        "By the distance to the k-th neighbour among the training images: your test images that are farthest from all "
        "others (blue frame), the farthest first, and the images of --other that are nearest to yours (red frame). "
        "Broken, empty or mislaid images of your own often stand in the first row; in the second is what the network "
        f"does not tell from yours. The table goes on, up to {LISTED} of each.",
        f"{min(SHOWN, len(odd))} test images at distances of {inside[odd[0]]:.2f} and less, and "
        f"{min(SHOWN, len(familiar))} foreign images from {outside[familiar[0]]:.2f} on.",
        "ood_images.webp",
        "ood_images.csv",
    )
