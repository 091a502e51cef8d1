"""The spectrum of the features: how many directions carry how much, with the alpha-ReQ fit (picture 9)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray
from torch import Tensor

from belvedere.measure.health import alpha_req, covariance_spectrum, participation_ratio
from belvedere.report.drawing import ACCENT, BAD, INK, Picture, new_figure, save_figure, write_table


@dataclass(frozen=True)
class FittedSpectrum:
    """Eigenvalues of the covariance (largest first, positive ones only) and the line that alpha-ReQ lays through them.

    Attributes:
        eigenvalues: (R,).
        line: (R,) the fit, NaN outside the ranks that it was made on.
        alpha, r2: of the fit; NaN when there is none.
        participation: how many directions carry the variance.
    """

    eigenvalues: NDArray[np.float64]
    line: NDArray[np.float64]
    alpha: float
    r2: float
    participation: float


def fit_spectrum(features: Tensor) -> FittedSpectrum:
    """Spectrum of (N, D) features; the fit is that of `measure.health.alpha_req`, over ranks 4 .. min(100, D/2)."""
    spectrum = covariance_spectrum(features)
    fit = alpha_req(spectrum)
    values = spectrum.numpy()
    # Below this share of the largest an eigenvalue is rounding.
    kept = values[values > values[0] * 1e-12]
    ranks = np.arange(1, len(kept) + 1)
    on = (ranks >= 4) & (ranks <= min(100, len(values) // 2))
    line = np.full(len(kept), np.nan)
    if np.isfinite(fit.alpha) and on.any():
        weight = 1 / ranks[on]
        level = np.average(np.log(kept[on]) + fit.alpha * np.log(ranks[on]), weights=weight)
        line[on] = np.exp(level - fit.alpha * np.log(ranks[on]))
    return FittedSpectrum(kept, line, fit.alpha, fit.r2, participation_ratio(spectrum))


def draw_spectrum(folder: Path, features: Tensor) -> Picture:
    """Write spectrum.webp and spectrum.csv of (N, D) features."""
    found = fit_spectrum(features)
    ranks = np.arange(1, len(found.eigenvalues) + 1)
    figure = new_figure(6.4, 3.2)
    axes = figure.add_axes((0.11, 0.16, 0.86, 0.8))
    axes.patch.set_alpha(0)
    axes.plot(ranks, found.eigenvalues, color=ACCENT, linewidth=1.6, marker="o", markersize=2.4)
    if np.isfinite(found.line).any():
        axes.plot(ranks, found.line, color=BAD, linewidth=1.4, linestyle=(0, (5, 2)))
        said = f"fit: alpha {found.alpha:.2f}, R2 {found.r2:.2f}"
        axes.text(0.98, 0.94, said, transform=axes.transAxes, color=BAD, fontsize=9, ha="right", va="top")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("rank", color=INK, fontsize=9)
    axes.set_ylabel("eigenvalue of the covariance", color=INK, fontsize=9)
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", colors=INK, labelsize=8, length=0)
    axes.grid(True, color=INK, alpha=0.18, linewidth=0.7)
    for side in axes.spines.values():
        side.set_visible(False)
    save_figure(figure, folder / "spectrum.webp")
    rows = zip(ranks.tolist(), found.eigenvalues.tolist(), found.line.tolist(), strict=True)
    write_table(folder / "spectrum.csv", ["rank", "eigenvalue", "fit"], rows)
    said = f"The fit has alpha {found.alpha:.2f} (R2 {found.r2:.2f})." if np.isfinite(found.alpha) else "No fit."
    return Picture(
        "spectrum",
        "Spectrum",
        "How much of the variance each direction of the features carries, both axes logarithmic: the slope alpha is "
        "best near 1; steep (above 2) means that a few directions carry everything, flat (below 0.5) looks like noise.",
        f"{len(ranks)} eigenvalues falling from {found.eigenvalues[0]:.3g} to {found.eigenvalues[-1]:.3g}; "
        f"{found.participation:.1f} directions carry the variance. {said}"
        if len(ranks)
        else "All features are equal: there is no spectrum.",
        "spectrum.webp",
        "spectrum.csv",
    )
