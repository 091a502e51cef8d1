"""The page of `belvedere compare`: runs side by side, their paired differences, and a plain sentence for each pair."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from belvedere.evaluate.compare import Comparison, Difference, Measured
from belvedere.evaluate.contract import MAJORITY, PIXELS, RUN, UNTRAINED, Number
from belvedere.evaluate.verdict import HEADLINES
from belvedere.report import markup
from belvedere.report.numbers import (
    CORRUPTIONS,
    ENCODERS,
    METRICS,
    PROTOCOLS,
    in_order,
    metric_name,
    number_cell,
    selected_on_test,
)
from belvedere.report.page import document
from belvedere.report.plots import data_uri, stand_in

_Row = tuple[str, str | int, float, float, float]
_FLOORS: dict[str, Any] = {UNTRAINED: (0, (1, 1.2)), PIXELS: (0, (5, 1.5)), MAJORITY: (0, (6, 1.5, 1, 1.5))}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)))


def render(found: Comparison) -> str:
    """The page's HTML."""
    names = [run.name for run in found.runs]
    told = "".join(f'<p class="verdict">{escape(sentence)}</p>' for sentence in verdicts(found))
    notices = "".join(f'<p class="notice">{escape(notice)}</p>' for notice in found.notices)
    heading = f"<h1>{escape(' and '.join(names) if len(names) == 2 else f'{len(names)} runs')}</h1>"
    parts = [_differences(found), _fewshot(found), _corruption(found), _numbers(found)]
    return document(
        " and ".join(names), ", ".join(names), f"{heading}{told}{notices}", [part for part in parts if part]
    )


def verdicts(found: Comparison) -> list[str]:
    """A sentence for every run after the first."""
    return [_verdict(found.runs[0].name, name, of_run) for name, of_run in found.differences.items()]


def _verdict(first: str, other: str, differences: dict[tuple[str, str], Difference]) -> str:
    headlines = _headlines(differences)
    if not headlines:
        return f"{other} and {first} have no headline number in common: evaluate both with the same protocols."
    better = [f"{points} points better {where}" for where, points, n in headlines if n.low > 0]
    worse = [f"{points} points worse {where}" for where, points, n in headlines if n.high < 0]
    same = [f"{where} ({'-' * (n.value < 0)}{points})" for where, points, n in headlines if n.low <= 0 <= n.high]
    sentences = [f"{other} is {_joined(part)} than {first}" for part in (better, worse) if part]
    if same:
        sentences.append(f"{'the two' if sentences else f'{other} and {first}'} cannot be told apart {_joined(same)}")
    return "; ".join(sentences) + "."


def _headlines(differences: dict[tuple[str, str], Difference]) -> list[tuple[str, str, Number]]:
    """(where, "2.1 ± 0.8", difference) of the headline metric of every protocol that has one."""
    found = [
        (where, differences[protocol, metric].points)
        for protocol, (metric, where) in HEADLINES.items()
        if (protocol, metric) in differences
    ]
    return [(where, f"{abs(n.value):.1f} ± {(n.high - n.low) / 2:.1f}", n) for where, n in found]


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _differences(found: Comparison) -> str:
    """A table of every run after the first."""
    first = found.runs[0].name
    tables = []
    for name, differences in found.differences.items():
        head = "".join(f"<th>{title}</th>" for title in ("", "difference", "95 % interval", "", "McNemar's p"))
        rows = "".join(_of_protocol(protocol, differences) for protocol in found.protocols())
        table = f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        content = f'<div class="scroll">{table}</div>'
        tables.append(f"<h3>{escape(f'{name} less {first}')}</h3>{content}")
    lead = (
        f"Each run less {first}, on the same test items: intervals by paired bootstrap, 1,000 draws that all runs "
        "share; p is McNemar's, where every item is right or wrong. One true zero in twenty leaves its interval by "
        "chance, so do not read much into a single one of many."
    )
    return markup.section("differences", "Differences", lead, *tables)


def _of_protocol(protocol: str, differences: dict[tuple[str, str], Difference]) -> str:
    """A row with the protocol's name, then one a metric; nothing where nothing was compared."""
    rows = ""
    for metric in in_order(METRICS, {metric for of, metric in differences if of == protocol}):
        cells = "".join(f'<td class="number">{escape(text)}</td>' for text in _told(differences[protocol, metric]))
        rows += f"<tr><td>{escape(metric_name(metric))}</td>{cells}</tr>"
    heading = f'<tr class="group"><th colspan="5">{escape(PROTOCOLS.get(protocol, protocol))}</th></tr>'
    return heading + rows if rows else ""


def _told(difference: Difference) -> tuple[str, str, str, str]:
    n = difference.points
    p = "" if difference.p is None else "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
    word = "cannot be told apart" if not difference.sure else "higher" if n.value > 0 else "lower"
    return f"{n.value:+.1f}", f"{n.low:+.1f} to {n.high:+.1f}", word, p


def _numbers(found: Comparison) -> str:
    """Every protocol's numbers, runs and floors in one table."""
    tables = []
    for protocol in found.protocols():
        names = in_order(METRICS, set(found.metrics(protocol)))
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", *map(metric_name, names)))
        rows = ""
        for label, run, subject in _rows(found, protocol):
            numbers = [run.number(protocol, name, subject) for name in names]
            cells = "".join(number_cell(None if number is None else asdict(number)) for number in numbers)
            own = ' class="own"' if subject == RUN else ""
            rows += f"<tr{own}><td>{escape(label)}</td>{cells}</tr>"
        table = f'<table class="numbers"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        flattered = [run.name for run in found.runs if selected_on_test(run.protocols.get(protocol, {}))]
        mark = f"Settings selected on test in {_joined(flattered)}, so the numbers flatter." if flattered else ""
        about = f'<p class="lead">{escape(mark)}</p>' if mark else ""
        tables.append(f'<h3>{escape(PROTOCOLS.get(protocol, protocol))}</h3>{about}<div class="scroll">{table}</div>')
    lead = "With 95 % intervals, and the floors that went through the same protocols."
    return markup.section("numbers", "All numbers", lead, *tables)


def _rows(found: Comparison, protocol: str) -> list[tuple[str, Measured, str]]:
    """(label, run, subject) of every run, then of the floors; equal floors of several runs once."""
    measured = [run for run in found.runs if protocol in run.protocols]
    rows = [(run.name, run, RUN) for run in measured]
    for floor, label in ENCODERS.items():
        seen: list[object] = []
        for run in measured:
            numbers = run.protocols[protocol]["metrics"].get(floor)
            if floor != RUN and numbers is not None and numbers not in seen:
                rows.append((f"{label} ({run.name})" if seen else label, run, floor))
                seen.append(numbers)
    return rows


def _fewshot(found: Comparison) -> str:
    """Few-shot curves of all runs in one plot, the floors dashed."""
    shots = sorted(int(name[5:]) for name in found.metrics("fewshot") if re.fullmatch(r"shots\d+", name))
    if not shots:
        return ""
    figure = _figure(3.5)
    axes = figure.add_axes((0.08, 0.28, 0.9, 0.69))
    told, rows = [], list[_Row]()
    for label, which, run, subject in _lines(found, "fewshot"):
        points = [(n, number) for n in shots if (number := run.number("fewshot", f"shots{n}", subject)) is not None]
        _curve(axes, label, points, which)
        told.append(f"{label} " + ", ".join(f"{number.value:.1f}" for _, number in points))
        rows += [(label, n, *_plain(number)) for n, number in points]
    _style(axes, shots)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(n) for n in shots])
    axes.minorticks_off()
    _legend(axes, (-0.04, -0.1))
    alt = f"Accuracy in percent with {', '.join(map(str, shots))} labelled images a class: {'; '.join(told)}."
    caption = (
        "Top-1 accuracy in percent over labelled images a class, with 95 % intervals over draws of the labels and test "
        "images. Gray: the floors."
    )
    return markup.section("fewshot", "With few labels", "", _shown(figure, alt, caption, "fewshot", "labels", rows))


def _corruption(found: Comparison) -> str:
    """A plot for each corruption that all runs were measured under at the same strengths, with a line a run."""
    measured = [run.protocols["corruption"]["settings"] for run in found.runs if "corruption" in run.protocols]
    kinds = {
        kind: list(measured[0][kind])
        for kind in (CORRUPTIONS if measured else ())
        if kind in measured[0] and all(settings.get(kind) == measured[0][kind] for settings in measured)
    }
    if not kinds:
        return ""
    lines = -(-len(kinds) // 2)
    height = 1.9 * lines + 0.75
    figure = _figure(height)
    told, rows = [], list[_Row]()
    for place, (kind, strengths) in enumerate(kinds.items()):
        left, bottom = 0.08 + 0.5 * (place % 2), 1 - (1.9 * (place // 2 + 1) - 0.25) / height
        axes = figure.add_axes((left, bottom, 0.41, 1.35 / height))
        for label, which, run, subject in _lines(found, "corruption"):
            points = _under(run, subject, kind, len(strengths))
            _curve(axes, label, points, which)
            rows += [(label, ("clean", *(f"{kind} {one:g}" for one in strengths))[n], *_plain(x)) for n, x in points]
            if subject == RUN:
                told.append(f"{CORRUPTIONS[kind]}, {label}: " + ", ".join(f"{n.value:.1f}" for _, n in points))
        _style(axes, list(range(len(strengths) + 1)))
        axes.set_ylim(bottom=0)
        axes.set_title(CORRUPTIONS[kind], fontsize=9.5, color=stand_in("ink"), loc="left", pad=5)
    _legend(figure.axes[-1 - (len(kinds) - 1) % 2], (-0.1, -0.12))
    caption = (
        "Top-1 accuracy in percent of a probe fitted on clean images, on clean ones (0) and under each corruption at "
        "growing strength, with 95 % intervals. Gray: the floors."
    )
    alt = f"Accuracy in percent from clean images to the greatest strength. {'; '.join(told)}."
    return markup.section(
        "corruption", "Worse pictures", "", _shown(figure, alt, caption, "corruption", "images", rows)
    )


def _under(run: Measured, subject: str, kind: str, levels: int) -> list[tuple[int, Number]]:
    """Clean, then every strength; the majority class answers the same at all."""
    clean = run.number("corruption", "clean", subject)
    if clean is None:
        return []
    found = [run.number("corruption", f"{kind}{level}", subject) or clean for level in range(1, levels + 1)]
    return list(enumerate([clean, *found]))


def _lines(found: Comparison, protocol: str) -> list[tuple[str, int | str, Measured, str]]:
    """(label, number of the run or name of the floor, run, subject)."""
    runs = itertools.count()
    return [
        (label, next(runs) if subject == RUN else subject, run, subject)
        for label, run, subject in _rows(found, protocol)
    ]


def _figure(height: float) -> Figure:
    # No wider: a phone shows it at about two thirds of this, and the text has to stay readable.
    figure = Figure(figsize=(4.4, height))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    return figure


def _plain(number: Number) -> tuple[float, float, float]:
    return round(number.value, 4), round(number.low, 4), round(number.high, 4)


def _shown(figure: Figure, alt: str, caption: str, name: str, what: str, rows: Sequence[_Row]) -> str:
    """A figure with its caption, and its numbers as CSV: of every encoder at each value of `what`."""
    table = io.StringIO()
    csv.writer(table).writerows([("encoder", what, "top1", "low", "high"), *rows])
    data = base64.b64encode(table.getvalue().encode("utf-8", "replace")).decode()
    link = f'<a download="{name}.csv" href="data:text/csv;base64,{data}">Its numbers as CSV</a>.'
    image = f'<img src="{data_uri(figure)}" alt="{escape(alt)}">'
    below = f"<figcaption>{escape(caption)} {link}</figcaption>"
    return f'<figure class="picture small"><div class="pan">{image}</div>{below}</figure>'


def _curve(axes: Axes, label: str, points: list[tuple[int, Number]], which: int | str) -> None:
    """The line of a run, by its number, with its interval, or that of a floor, by its name."""
    x = np.array([n for n, _ in points], float)
    values = np.array([[n.value, n.low, n.high] for _, n in points]).T
    if isinstance(which, str):
        axes.plot(x, values[0], color=stand_in("ink"), linewidth=1.1, linestyle=_FLOORS[which], label=label)
        return
    colour, dash = stand_in(f"line{which % 4}"), _DASHES[which // 4 % len(_DASHES)]
    axes.fill_between(x, values[1], values[2], color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, values[0], color=colour, linewidth=1.8, linestyle=dash, marker="o", markersize=4, label=label)


def _style(axes: Axes, ticks: list[int]) -> None:
    axes.patch.set_alpha(0)
    axes.set_xticks(ticks)
    axes.tick_params(colors=stand_in("ink"), labelsize=9, length=0, pad=4)
    axes.grid(True, axis="y", color=stand_in("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _legend(axes: Axes, corner: tuple[float, float]) -> None:
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": corner, "ncols": 2}
    axes.legend(**place, frameon=False, fontsize=8.5, labelcolor=stand_in("ink"), handlelength=3.2)
