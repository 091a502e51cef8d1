"""The page of `belvedere compare`: runs side by side, their paired differences, and a plain sentence for each pair."""

from __future__ import annotations

import itertools
import re
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from belvedere.evaluate.compare import Comparison, Difference, Measured
from belvedere.evaluate.contract import PIXELS, RUN, Number
from belvedere.evaluate.verdict import HEADLINES
from belvedere.report import markup
from belvedere.report.numbers import ENCODERS, METRICS, in_order, metric_name, number_cell
from belvedere.report.page import document
from belvedere.report.plots import data_uri, stand_in

_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)))


def render(found: Comparison) -> str:
    """The page's HTML."""
    names = [run.name for run in found.runs]
    told = "".join(f'<p class="verdict">{escape(sentence)}</p>' for sentence in verdicts(found))
    notices = "".join(f'<p class="notice">{escape(notice)}</p>' for notice in found.notices)
    heading = f"<h1>{escape(' and '.join(names) if len(names) == 2 else f'{len(names)} runs')}</h1>"
    parts = [_differences(found), _fewshot(found), _numbers(found)]
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
        rows = [
            (protocol, metric_name(metric), *_told(differences[protocol, metric]))
            for protocol in found.protocols()
            for metric in in_order(METRICS, {metric for of, metric in differences if of == protocol})
        ]
        header = ("protocol", "metric", "difference", "95 % interval", "McNemar's p", "")
        content = markup.table(header, rows, ("number",) * len(header))
        tables.append(f"<h3>{escape(f'{name} less {first}')}</h3>{content}")
    lead = (
        f"Each run less {first}, on the same test items: intervals by paired bootstrap, 1,000 draws that all runs "
        "share. One true zero in twenty leaves its interval by chance, so do not read much into a single one of many."
    )
    return markup.section("differences", "Differences", lead, *tables)


def _told(difference: Difference) -> tuple[str, str, str, str]:
    n = difference.points
    p = "" if difference.p is None else "< 0.001" if difference.p < 0.001 else f"{difference.p:.3f}"
    word = "cannot be told apart" if not difference.sure else "higher" if n.value > 0 else "lower"
    return f"{n.value:+.1f}", f"{n.low:+.1f} to {n.high:+.1f}", p, word


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
        table = f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
        tables.append(f"<h3>{escape(protocol)}</h3>{table}")
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
    figure = Figure(figsize=(5.6, 4.1))
    FigureCanvasSVG(figure)
    figure.patch.set_alpha(0)
    axes = figure.add_axes((0.07, 0.27, 0.91, 0.7))
    told = []
    runs = itertools.count()
    for label, run, subject in _rows(found, "fewshot"):
        points = [(n, number) for n in shots if (number := run.number("fewshot", f"shots{n}", subject)) is not None]
        _curve(axes, label, points, next(runs) if subject == RUN else subject)
        told.append(f"{label} " + ", ".join(f"{number.value:.1f}" for _, number in points))
    _style(axes, shots)
    alt = f"Accuracy in percent with {', '.join(map(str, shots))} labelled images a class: {'; '.join(told)}."
    image = f'<img src="{data_uri(figure)}" alt="{escape(alt)}">'
    caption = (
        "Top-1 accuracy in percent over labelled images a class, with 95 % intervals over draws of the labels and test "
        "images. Gray: the floors."
    )
    content = f'<figure class="picture small"><div class="pan">{image}</div><figcaption>{caption}</figcaption></figure>'
    return markup.section("fewshot", "With few labels", "", content)


def _curve(axes: Axes, label: str, points: list[tuple[int, Number]], which: int | str) -> None:
    """The line of a run, by its number, with its interval, or that of a floor, by its name."""
    x = np.array([n for n, _ in points], float)
    values = np.array([[n.value, n.low, n.high] for _, n in points]).T
    if isinstance(which, str):
        dash = _DASHES[1] if which == PIXELS else _DASHES[2]
        axes.plot(x, values[0], color=stand_in("ink"), linewidth=1.1, linestyle=dash, label=label)
        return
    colour, dash = stand_in(f"line{which % 4}"), _DASHES[which // 4 % len(_DASHES)]
    axes.fill_between(x, values[1], values[2], color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, values[0], color=colour, linewidth=1.8, linestyle=dash, marker="o", markersize=4, label=label)


def _style(axes: Axes, shots: list[int]) -> None:
    ink = stand_in("ink")
    axes.patch.set_alpha(0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(n) for n in shots])
    axes.minorticks_off()
    axes.tick_params(colors=ink, labelsize=9, length=0, pad=4)
    axes.grid(True, axis="y", color=stand_in("grid"), linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.04, -0.1), "ncols": 2}
    axes.legend(**place, frameon=False, fontsize=8.5, labelcolor=ink, handlelength=3.2)
