"""The report of a run of `belvedere generate`: what it makes, how its two networks went, its settings."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from belvedere.generate.health import CHANCE
from belvedere.generate.settings import from_yaml
from belvedere.pretrain.folder import RunFolder
from belvedere.report import markup
from belvedere.report.curves import Panel
from belvedere.report.drawing import Picture
from belvedere.report.page import document, write_page
from belvedere.report.plots import Line, plot, short

SAMPLES = "samples"
# Names in the log, heading, how to read it.
_STEPS = (
    (("real", "fake"), "Logits", "What the discriminator says of real and of generated images; above 0 is real."),
    (("loss_generator",), "Loss of the generator", "Rises when the discriminator gets ahead."),
    (("r1",), "Penalty R1", "On the discriminator's gradient at real images, with its weight."),
    (("consistency",), "Consistency", "How differently the discriminator judges two augmentations, with its weight."),
)
_LOOKS = (
    ("fid", "Frechet distance", "In the encoder's features; the dashed line is real images to other real ones."),
    ("kid", "Kernel distance", "As above, and the same for any number of images."),
    ("spread", "Spread of samples", "How much they differ from each other, over how much real images do."),
)


def write(folder: RunFolder) -> Path:
    """Write `report.html` from what the folder holds, and return its path."""
    found = from_yaml(folder.config)
    log = list(folder.read_log())
    steps = [entry for entry in log if "look" not in entry and "loss" in entry]
    looks = [entry for entry in log if "look" in entry]
    parts = [_samples(folder.path, looks), _curves(steps, looks)]
    flat = [line.partition("  # ") for line in folder.config.read_text(encoding="utf-8").splitlines()[1:]]
    rows = [(*line.strip().split(": ", 1), why) for line, _, why in flat]
    told = markup.table(["setting", "value", "from"], rows, ["", "", ""])
    parts.append(markup.section("settings", "Settings", "", told))
    page = folder.path / "report.html"
    title = folder.path.resolve().name
    write_page(page, document(title, str(folder.path), _headline(title, found.settings.train.steps, looks), parts))
    return page


def _headline(name: str, planned: Any, looks: Sequence[dict[str, Any]]) -> str:
    last = looks[-1]
    sentences = " ".join(last["why"])
    tiles = [markup.tile("Steps", f"{last['step']:,}", f"of {planned}")]
    tiles += [markup.tile(title, short(last["look"][key]), "") for key, title, _ in _LOOKS if key in last["look"]]
    return (
        f'<h1>{escape(name)}</h1><p class="verdict {escape(last["color"])}">{escape(last["health"].capitalize())}.'
        f'<small>{escape(sentences)}</small></p><dl class="tiles">{"".join(tiles)}</dl>'
    )


def _samples(folder: Path, looks: Sequence[dict[str, Any]]) -> str:
    """The newest picture, and those before it."""

    def drawn(step: int) -> str:
        caption = f"Samples after {step:,} steps: the same noise in every picture, of the averaged generator."
        item = Picture("samples", "", caption, f"A grid of generated images after {step} steps.", name_of(step), "")
        return markup.picture(folder / SAMPLES, item)

    steps = [entry["step"] for entry in looks]
    earlier = "".join(drawn(step) for step in reversed(steps[:-1]))
    before = markup.folded("Earlier ones", earlier) if earlier else ""
    return markup.section("samples", "Samples", "", drawn(steps[-1]), before)


def _curves(steps: Sequence[dict[str, Any]], looks: Sequence[dict[str, Any]]) -> str:
    last = looks[-1]["step"]
    items = []
    for key, title, note in _LOOKS:
        series = [(entry["step"], entry["look"][key]) for entry in looks if key in entry["look"]]
        floor = looks[0].get("floor", {}).get(key)
        if series:
            items.append(_panel(title, note, {key: series}, last, () if floor is None else [("real", floor)]))
    if steps:
        loss = _series(steps, "loss")
        note = "At the dashed line it tells nothing apart, near 0 everything."
        items.append(_panel("Loss of the discriminator", note, {"loss": loss}, last, [("chance", CHANCE)]))
        for names, title, note in _STEPS:
            items.append(_panel(title, note, {name: _series(steps, name) for name in names}, last))
    return markup.section("curves", "Training", "", markup.panels("", items))


def _series(steps: Sequence[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[name]) for entry in steps if entry.get(name) is not None]


def _panel(
    title: str,
    note: str,
    series: dict[str, list[tuple[int, float]]],
    last: int,
    floors: Sequence[tuple[str, float]] = (),
) -> Panel:
    lines = [Line(name, [x for x, _ in points], [y for _, y in points]) for name, points in series.items()]
    ends = ", ".join(f"{line.label} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in lines if line.y)
    svg = plot(lines, floors=floors, last_step=last)
    newest = short(lines[0].y[-1]) if lines[0].y else ""
    return Panel(title, newest, note, f"{title} over {last} steps: {ends}.", svg)


def name_of(step: int) -> str:
    """File of the picture after `step` steps."""
    return f"{step:08}.png"
