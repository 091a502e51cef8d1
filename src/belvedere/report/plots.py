"""Small line plots as SVG that follow the reader's light or dark setting and need no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from belvedere.measure.bands import Rule

# Stand-ins that the saved text replaces by colours which change with the reader's setting: name -> (light, dark).
_COLOURS = {
    "ink": ("#010101", "#5d6673", "#98a2b1"),
    "grid": ("#020202", "#e3e6eb", "#2c323b"),
    "line0": ("#030301", "#2f6ae0", "#77a6ff"),
    "line1": ("#030302", "#c2571a", "#f0a06a"),
    "line2": ("#030303", "#12875a", "#5fd0a0"),
    "line3": ("#030304", "#8a4fc4", "#c49bf0"),
    "amber": ("#040401", "#f2b632", "#b98512"),
    "red": ("#040402", "#e4574f", "#b53b35"),
}
WIDTH, HEIGHT = 3.3, 1.55
MOST_POINTS = 400


def stand_in(name: str) -> str:
    """The colour to draw with for "ink", "grid", "line0" to "line3", "amber" and "red"."""
    return _COLOURS[name][0]


@dataclass(frozen=True)
class Line:
    """One line of a plot; a label is written at its end where there are several."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    faint: bool = False


@dataclass(frozen=True)
class Band:
    """The areas of a rule: where it is amber and red, and over which steps of a run of `planned` steps it applies."""

    rule: Rule
    planned: int

    @property
    def steps(self) -> tuple[float, float]:
        """First and last step."""
        return self.rule.start * self.planned, self.rule.until * self.planned


def plot(
    lines: Sequence[Line],
    *,
    floors: Sequence[tuple[str, float]] = (),
    bands: Sequence[Band] = (),
    domain: tuple[float, float] | None = None,
    log: bool = False,
    last_step: int = 0,
) -> str:
    """Draw lines over steps and return the SVG as a data URI.

    Args:
        floors: horizontal lines with their labels.
        bands: shaded in amber and red.
        domain: the y range that is always shown.
        log: whether y is logarithmic; then values above 0 are drawn.
        last_step: the right end of x.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    labelled = [line for line in lines if line.label]
    axes = figure.add_axes((0.125, 0.14, 0.63 if len(labelled) > 1 or floors else 0.835, 0.8))
    axes.patch.set_alpha(0)
    for i, line in enumerate(lines):
        _draw_line(axes, line, stand_in(f"line{_colour_number(lines, i)}"), log)
    if log:
        axes.set_yscale("log")
    _set_limits(axes, lines, floors, domain, log, last_step)
    for _, level in floors:
        axes.axhline(level, color=stand_in("ink"), linewidth=0.9, linestyle=(0, (3, 2)))
    _shade(axes, bands)
    _label_ends(axes, lines, floors)
    _style(axes, log)
    return data_uri(figure)


def _colour_number(lines: Sequence[Line], i: int) -> int:
    """Faint lines take the colour of the line that follows them."""
    return sum(not line.faint for line in lines[:i]) % 4


def _draw_line(axes: Axes, line: Line, colour: str, log: bool) -> None:
    x, y = np.asarray(line.x, float), np.asarray(line.y, float)
    keep = np.isfinite(y) & ((y > 0) | (not log))
    x, y = _thin(x[keep], y[keep])
    marker = "o" if len(x) == 1 else None
    axes.plot(x, y, color=colour, linewidth=0.7 if line.faint else 1.5, alpha=0.35 if line.faint else 1, marker=marker)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MOST_POINTS` points: of each stretch its least and its largest value, so that no spike is lost."""
    if len(x) <= MOST_POINTS:
        return x, y
    kept: list[int] = [0, len(x) - 1]
    for part in np.array_split(np.arange(len(x)), MOST_POINTS // 2 - 1):
        kept += [int(part[y[part].argmin()]), int(part[y[part].argmax()])]
    index = np.unique(kept)
    return x[index], y[index]


def _set_limits(
    axes: Axes,
    lines: Sequence[Line],
    floors: Sequence[tuple[str, float]],
    domain: tuple[float, float] | None,
    log: bool,
    last_step: int,
) -> None:
    axes.set_xlim(0, max(last_step, 1))
    if log:
        if domain is not None:
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, domain[0]), max(high, domain[1]))
        return
    values = [y for line in lines for y in line.y if np.isfinite(y)] + [level for _, level in floors]
    least, largest = min(values, default=0.0), max(values, default=1.0)
    low, high = (least, largest) if domain is None else (min(least, domain[0]), max(largest, domain[1]))
    pad = 0.08 * (high - low) or 0.05 * abs(high) or 0.5
    # A range that is always shown ends where it says, unless values pass its end.
    low -= 0 if domain is not None and low == domain[0] else pad
    high += 0 if domain is not None and high == domain[1] else pad
    axes.set_ylim(low, high)


def _shade(axes: Axes, bands: Sequence[Band]) -> None:
    bottom, top = axes.get_ylim()
    for band in bands:
        rule, steps = band.rule, np.clip(band.steps, *axes.get_xlim())
        end = top if rule.worse == "above" else bottom
        amber, red = float(np.clip(rule.amber, bottom, top)), float(np.clip(rule.red, bottom, top))
        for colour, low, high in (("amber", amber, red), ("red", red, end)):
            axes.fill_between(steps, low, high, color=stand_in(colour), alpha=0.2, linewidth=0, zorder=0)


def _label_ends(axes: Axes, lines: Sequence[Line], floors: Sequence[tuple[str, float]]) -> None:
    """Write labels right of the plot at the height where their lines end, pushed apart where they would overlap."""
    wanted: list[tuple[float, str, str]] = []
    to_axes = axes.transData + axes.transAxes.inverted()
    several = sum(bool(line.label) for line in lines) > 1 or bool(floors)
    for i, line in enumerate(lines):
        ends = [y for y in line.y if np.isfinite(y)]
        if several and line.label and ends and (axes.get_yscale() != "log" or ends[-1] > 0):
            height = float(to_axes.transform((0, ends[-1]))[1])
            wanted.append((height, line.label, stand_in(f"line{_colour_number(lines, i)}")))
    wanted += [(float(to_axes.transform((0, level))[1]), name, stand_in("ink")) for name, level in floors]
    lowest = -0.1
    for height, text, colour in sorted(wanted):
        lowest = max(height, lowest + 0.155)
        axes.text(
            1.025, lowest, text, color=colour, fontsize=7.5, va="center", transform=axes.transAxes, parse_math=False
        )


def _style(axes: Axes, log: bool) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: short(x)))
    axes.yaxis.set_major_locator(LogLocator(10, numticks=5) if log else MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: short(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(which="both", colors=stand_in("ink"), labelsize=7.5, length=0, pad=3)
    axes.grid(True, axis="y", color=stand_in("grid"), linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def short(x: float) -> str:
    """A number with few letters: 12k, 3.4M, 0.02, 5e-5."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{letter}"
    if 0 < abs(x) < 0.005:
        return np.format_float_scientific(x, precision=2, trim="-", exp_digits=1).replace(".e", "e")
    return f"{x:.3g}"


def data_uri(figure: Figure) -> str:
    """The figure as SVG in a data URI; stand-ins become colours that follow the reader's setting."""
    content = io.StringIO()
    # Text stays text, and equal plots are equal bytes.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "belvedere"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    light = "".join(f"--{name}:{colours[1]};" for name, colours in _COLOURS.items())
    dark = "".join(f"--{name}:{colours[2]};" for name, colours in _COLOURS.items())
    style = (
        f"<style>svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"
        "text{font-family:system-ui,sans-serif!important}</style>"
    )
    for name, colours in _COLOURS.items():
        svg = svg.replace(colours[0], f"var(--{name})")
    start = svg.index(">", svg.index("<svg")) + 1
    svg = svg[:start] + style + svg[start:]
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
