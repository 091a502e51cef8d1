"""The page of `belvedere analyze`: which views a run chose or learned, and what its network would choose now.

Spec view_policies 5: V1 to V11, A1 to A4, A6; A5 is in benchmarks/views.py. What the log tells is in `policy_panels`,
what the network tells in `selection`, `factors`, `savings` and `gallery`; here it becomes a page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.knn import half_width
from belvedere.pretrain.trainer import Trainer
from belvedere.report import charts, factors, markup, savings
from belvedere.report.attention import draw_comparison
from belvedere.report.charts import Bar, Point
from belvedere.report.curves import Panel
from belvedere.report.drawing import Picture
from belvedere.report.factors import Importance, Predictability
from belvedere.report.gallery import draw_candidates, draw_learned
from belvedere.report.hard_panels import FACTS, REFERENCE, expected_frequencies, numbered
from belvedere.report.page import assemble
from belvedere.report.plots import Line, plot
from belvedere.report.policy_panels import policy_groups, told_of_epochs
from belvedere.report.record import Record
from belvedere.report.savings import Setting
from belvedere.report.selection import Replay, names_by_turns, operations_of, policy_of, replay

CLOSE_UP = 8
"""Images of the comparison of attention."""
UNFAIR = 0.001
"""Frequencies of pairs that chance makes so seldom are called a bug."""
_FACTORS_SHOWN = 12
_UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}


@dataclass(frozen=True)
class Findings:
    """What the network's own choices tell.

    Attributes:
        known, held_out: pairs of two draws, for models to learn on and to judge them on.
        faithful: candidates -> resolution -> {"fidelity", "kept"} of choosing at that resolution.
        settings: every way to save, the cheapest first, relative to full choosing.
    """

    known: Replay
    held_out: Replay
    importance: Importance
    predictability: Predictability
    faithful: dict[int, dict[float, dict[str, float]]]
    settings: list[Setting]

    @property
    def candidates(self) -> int:
        """How many candidates an image had."""
        return savings.len_candidates(self.known)


def find(trainer: Trainer, canvases: Canvases, index: NDArray[np.int64], candidates: int) -> Findings:
    """Replay choices of some images twice, and all that follows from them.

    Args:
        trainer: with the policy that `selection.as_hard` gives.
        candidates: how many of them compete; cheaper and dearer choosing is compared with theirs.
    """
    wide = replay(trainer, canvases, index, 0, savings.scales_of(trainer))
    known = wide.among(candidates)
    held_out = replay(trainer, canvases, index, 1, candidates=candidates)
    seed = trainer.config.train.seed
    return Findings(
        known,
        held_out,
        factors.importance(known, held_out, seed),
        factors.predictability(known, held_out, seed),
        savings.faithfulness(wide, savings.counts(savings.len_candidates(wide))),
        savings.settings(trainer, wide, candidates),
    )


def draw(folder: Path, trainer: Trainer, encoder: Encoder, canvases: Canvases, found: Findings) -> list[Picture]:
    """The galleries, into `folder`."""
    pictures = [draw_candidates(folder, trainer, encoder, canvases, found.known)]
    if operations_of(policy_of(trainer)):
        pictures.append(draw_learned(folder, trainer, encoder, canvases, found.known))
    return pictures


def compare(
    folder: Path, encoders: Sequence[tuple[str, Encoder]], canvases: Canvases, index: NDArray[np.int64], device: str
) -> Picture:
    """Attention of two runs on the same images, into `folder`, or the reason why there is none."""
    close = canvases.subset(index[:CLOSE_UP])
    images: list[Tensor] = [torch.from_numpy(close.pixels(i).copy()).to(device) for i in range(len(close))]
    twice = [(name, _at_twice_the_size(encoder).to(device).eval()) for name, encoder in encoders]
    try:
        return draw_comparison(folder, twice, images, close.names)
    except UserError as error:
        return Picture("comparison", "Attention of both runs", skipped=str(error))


def _at_twice_the_size(encoder: Encoder) -> Encoder:
    size = (2 * encoder.size[0], 2 * encoder.size[1])
    return Encoder(encoder.backbone, size, encoder.mean, encoder.std, encoder.reading, encoder.precision)


# --- the page ---------------------------------------------------------------------------------------------------------


def render(
    record: Record,
    found: Findings,
    folder: Path,
    pictures: Sequence[Picture],
    told: str,
    runs: Sequence[tuple[str, Record]] = (),
) -> str:
    """The page's HTML.

    Args:
        folder: where the pictures lie; they become part of the page.
        told: a sentence on the images and the weights.
        runs: by name, those whose accuracy is shown over time: this one, and perhaps another.
    """
    parts = [
        _training(record, runs),
        _choices(record, found, told),
        _savings(found),
        *(markup.section(item.name, item.title, "", markup.picture(folder, item)) for item in pictures),
    ]
    name = escape(record.folder.resolve().name)
    headline = f'<h1>Views of {name}</h1><p class="verdict">{escape(summary(found))}</p>'
    return assemble(record, headline, parts)


def summary(found: Findings) -> str:
    """The findings in three sentences."""
    chosen, others = float(found.known.of_chosen("iou").mean()), float(found.known.of_others("iou").mean())
    model, guess = found.predictability.model, found.predictability.chance
    pair = "The pair of views that this network finds hardest"
    if abs(chosen - others) < 0.02:
        overlap = f"{pair} overlaps as much as the others (IoU {chosen:.2f} and {others:.2f})."
    else:
        how = "less" if chosen < others else "more"
        overlap = f"{pair} overlaps {how} than the others (IoU {chosen:.2f} and {others:.2f})."
    foretold = (
        f"Which one it is can be foretold from the record for {100 * model:.0f} % of the images "
        f"(guessing: {100 * guess:.0f} %)."
    )
    if found.importance.explained <= 0 or not found.importance.factors:
        return f"{overlap} {foretold} No fact of the record explains the losses."
    first = [label(bar.label) for bar in found.importance.factors[:2]]
    return f"{overlap} {foretold} What counts most: {' and '.join(first)}."


def label(fact: str) -> str:
    """A fact of a pair in plain words."""
    return FACTS.get(fact, fact.removeprefix("op_"))


def _training(record: Record, runs: Sequence[tuple[str, Record]]) -> str:
    groups = policy_groups(record)
    lead = "From the run's own log: what was chosen or learned, step by step."
    if groups:
        lead += told_of_epochs(record)
    else:
        lead = f"Nothing was chosen: the policy {record.resolved.config.views.policy} neither chooses nor learns."
    parts = [markup.panels(*group) for group in groups]
    return markup.section(
        "training", "Over training", lead, markup.panels("Accuracy for its time", accuracy(runs)), *parts
    )


def accuracy(runs: Sequence[tuple[str, Record]]) -> list[Panel]:
    """V10: k-NN over wall-clock and not over steps, since a policy's steps take longer; none without labels."""
    known = {name: series for name, record in runs if (series := record.over_time("knn"))}
    if not known:
        return []
    seconds = max(series[-1][0] for series in known.values())
    unit, size = next((unit, size) for unit, size in _UNITS.items() if seconds >= 3 * size or size == 1)
    lines = [
        Line(name if len(name) <= 14 else f"{name[:13]}…", [x / size for x, _ in series], [y for _, y in series])
        for name, series in known.items()
    ]
    told = ", ".join(
        f"{name} {line.y[-1]:.1f} % after {line.x[-1]:.3g}" for name, line in zip(known, lines, strict=True)
    )
    title = f"k-NN over {unit} of wall-clock"
    note = "Of the labelled images, looks and checkpoints included in the time."
    note += " Two runs can be compared if they had the same images and machine." if len(known) > 1 else ""
    svg = plot(lines, last_step=math.ceil(seconds / size))
    return [Panel(title, " vs ".join(f"{line.y[-1]:.1f} %" for line in lines), note, f"{title}: {told}.", svg)]


def _choices(record: Record, found: Findings, told: str) -> str:
    views = record.resolved.config.views
    by = views.policy if views.policy != "hard" else (views.model_extra or {})["inner"]
    lead = (
        f"The network was shown {found.candidates} candidate views of each image, drawn by the policy "
        f"{by}, and asked how hard it finds each of their {len(found.known.pairs)} pairs. {told}"
    )
    panels = [
        _overlaps(found),
        _differences(found),
        _importance(found),
        _predictability(found),
        _frequencies(record, found),
    ]
    return markup.section("choices", "What the network would choose", lead, markup.panels("", panels))


def _overlaps(found: Findings) -> Panel:
    """V5, and what the candidates themselves allow: the mean of any pair and of the one that overlaps least."""
    overlap = found.known.facts["iou"]
    chosen, first = found.known.of_chosen("iou").numpy(), overlap[0].numpy()
    every, least = float(overlap.mean()), float(overlap.min(0).values.mean())
    svg = charts.histogram(
        [("chosen", chosen), ("first pair", first)],
        (0.0, 1.0),
        "overlap (IoU) of the two crops",
        [("least of the image", least)],
    )
    title = "Overlap of the chosen pair and of a random one"
    way = (every - float(chosen.mean())) / max(every - least, 1e-12)
    note = (
        "Share of the images by overlap. The first pair is what would be trained on without choosing. The dotted line "
        f"is what taking the pair that overlaps least would give; the choice goes {100 * way:.0f} % of the way there "
        f"from the mean of all pairs ({REFERENCE}: two thirds)."
    )
    alt = f"{title}: means {chosen.mean():.2f} and {first.mean():.2f}; of all pairs {every:.2f}, at least {least:.2f}."
    return Panel(title, "", note, alt, svg)


def _differences(found: Findings) -> Panel:
    """V1, V3, V4 and V6 on the same scale."""
    rows = []
    for name in factors.varying(found.known):
        fact = found.known.facts[name]
        gap = found.known.of_chosen(name).mean() - found.known.of_others(name).mean()
        rows.append(Bar(label(name), float(gap / fact.std())))
    rows = sorted(rows, key=lambda bar: -abs(bar.value))[:_FACTORS_SHOWN]
    title = "How the chosen pair differs from the others"
    note = (
        "Its mean minus that of the other pairs, in standard deviations. Left of 0: the chosen pair has less of it. "
        "Colours are differences between its two views."
    )
    alt = f"{title}: " + ", ".join(f"{bar.label} {bar.value:.2f}" for bar in rows) + "."
    return Panel(title, "", note, alt, charts.bars(rows))


def _importance(found: Findings) -> Panel:
    """V6."""
    share = max(0.0, found.importance.explained)
    rows = [Bar(label(bar.label), bar.value, bar.error) for bar in found.importance.factors[:_FACTORS_SHOWN]]
    title = "What makes a pair hard"
    note = (
        f"A model that knows these facts explains {100 * share:.0f} % of how losses differ between pairs of an image "
        "that it has not seen. Bars: by how much that share falls when one fact is shuffled, with 95 % intervals. The "
        "paper names colour as the dominating factor."
    )
    alt = f"{title}: " + ", ".join(f"{bar.label} {bar.value:.3f}" for bar in rows) + "."
    return Panel(title, f"{share:.2f} explained", note, alt, charts.bars(rows))


def _predictability(found: Findings) -> Panel:
    """V7, and V2 as a rule."""
    told = found.predictability
    rows = [
        Bar("from all facts", told.model, half_width(100 * told.model, told.images) / 100),
        Bar("least overlap", told.least_overlap, half_width(100 * told.least_overlap, told.images) / 100),
        Bar("guessing", told.chance),
    ]
    title = "Can the choice be foretold without the network?"
    note = (
        "Share of images whose chosen pair is named from the record alone, on draws that were not learned from. Near "
        "1, a fixed rule could replace choosing; near guessing, the choice depends on what the images show."
    )
    alt = f"{title}: " + ", ".join(f"{bar.label} {bar.value:.2f}" for bar in rows) + "."
    return Panel(title, f"{told.model:.2f}", note, alt, charts.bars(rows, ("chance", told.chance)))


def _frequencies(record: Record, found: Findings) -> Panel:
    """V8."""
    pairs, images = found.known.pairs, len(found.known.index)
    expected = expected_frequencies(record.resolved.config, found.candidates, "loss")
    names, rows = names_by_turns(pairs), []
    for name, known_as in zip(names, numbered(names), strict=True):
        inside = torch.tensor([name in pair for pair in pairs])
        share = float(inside[found.known.chosen].float().mean())
        rows.append(Bar(known_as, share, half_width(100 * share, images) / 100))
    levels = set(expected.values())
    title = "How often each candidate is in the chosen pair"
    note = (
        f"With 95 % intervals. Expected: {', '.join(f'{level:.2f}' for level in sorted(levels))}, since candidates for "
        f"a place are drawn alike. {told_of_fairness(fairness(found.known))}"
    )
    alt = f"{title}: " + ", ".join(f"{bar.label} {bar.value:.2f}" for bar in rows) + "."
    level = ("expected", levels.pop()) if len(levels) == 1 else None
    return Panel(title, "", note, alt, charts.bars(rows, level))


def fairness(known: Replay) -> float:
    """p of a chi-square test that all pairs are chosen equally often, as all are drawn alike; 1 if there is but one."""
    if len(known.pairs) < 2:
        return 1.0
    counts = torch.bincount(known.chosen, minlength=len(known.pairs)).numpy()
    return float(chisquare(counts).pvalue)


def told_of_fairness(p: float) -> str:
    """The test in a sentence."""
    test = f"All pairs at once (chi-square): p = {p:.2g}, "
    if p < UNFAIR:
        return f"{test}which chance hardly does: look for a bug in the policy or in the views."
    return (
        f"{test}so nothing says that a candidate is preferred for its place; one interval in twenty misses by chance."
    )


def _savings(found: Findings) -> str:
    """V9."""
    lead = (
        "Cheaper ways to choose, judged by what full choosing would have taken: all candidates at the training "
        "resolution in every step. Cost is counted in forward passes; 1 is training on random views. In a small trial "
        "on images of 32 px, half the size kept 0.37 of the choices (guessing: 0.17) and 0.40 of the hardness."
    )
    panels = [
        *_faithful(
            found,
            "fidelity",
            "Choices that stay the same",
            "Share of images where small views choose the pair that full ones choose.",
            (f"chance of {found.candidates}", 1 / len(found.known.pairs)) if len(found.known.pairs) > 1 else None,
        ),
        *_faithful(
            found, "kept", "Hardness that is kept", "1: as hard as the full choice, 0: no harder than a random pair."
        ),
        _frontier(found),
    ]
    rows = [
        (setting.words, f"{setting.cost:.2f}", f"{setting.kept:.2f}")
        for setting in savings.best(found.settings)
        if setting.kept > 0
    ]
    table = markup.table(("settings", "cost of a step", "hardness kept"), rows, ("key", "value", "value"))
    words = f"Hardness 1 is that of {found.candidates} candidates. Listed are the settings that no cheaper one equals."
    return markup.section(
        "cost", "What choosing could cost", lead, markup.panels("", panels), f'<p class="lead">{words}</p>', table
    )


def _faithful(found: Findings, key: str, title: str, note: str, level: tuple[str, float] | None = None) -> list[Panel]:
    lines = [
        Line(f"{n} candidates", list(by_scale), [numbers[key] for numbers in by_scale.values()])
        for n, by_scale in found.faithful.items()
        if len(by_scale) > 1
    ]
    if not lines:
        return []
    alt = "; ".join(
        f"{line.label} " + ", ".join(f"{y:.2f} at {x:g}" for x, y in zip(line.x, line.y, strict=True)) for line in lines
    )
    svg = charts.lines(lines, "resolution of scoring, 1 = that of training", (0.0, 1.0), level)
    return [Panel(title, "", note, f"{title}: {alt}.", svg)]


def _frontier(found: Findings) -> Panel:
    best = [setting for setting in savings.best(found.settings) if setting.kept > 0]
    points = [Point(setting.cost, setting.kept) for setting in found.settings]
    svg = charts.frontier(points, [Point(s.cost, s.kept, s.label) for s in best], "cost of a step", "hardness kept")
    note = (
        "Every way to save is a dot, the best are joined: candidates, x resolution, 1/n for every n-th step, 50 % of "
        "the images, reuse of the teacher's outputs. Take the point where the line bends."
    )
    alt = "; ".join(f"{s.words}: cost {s.cost:.2f}, kept {s.kept:.2f}" for s in best)
    return Panel("Hardness for its price", "", note, f"{alt}.", svg)
