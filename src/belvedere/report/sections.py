"""The sections of the page in its order: each turns a run's record into HTML, empty when there is nothing to show."""

from __future__ import annotations

import itertools
import shlex
from html import escape
from typing import Any

from belvedere import config as configuration
from belvedere.evaluate.records import twins_told
from belvedere.report import curves, markup
from belvedere.report.commands import commands, python_lines
from belvedere.report.numbers import (
    ENCODERS,
    METRICS,
    PROTOCOLS,
    in_order,
    metric_name,
    number_cell,
    selected_on_test,
    subjects_in_order,
)
from belvedere.report.plots import short
from belvedere.report.policy_panels import policy_groups, told_of_epochs
from belvedere.report.record import Look, Record
from belvedere.report.verdict import answer

_SKIPPED_SHOWN = 20


def headline(record: Record) -> str:
    """Name, verdict, and what the reader must know before reading on."""
    found = answer(record)
    advice = f"<small>{escape(found.advice)}</small>" if found.advice else ""
    notices = list(record.damaged)
    if not record.finished:
        of = f" of {record.planned:,}" if record.planned else ""
        why = f" because {record.ended}" if record.ended else ""
        notices.append(f"This run is not finished{why}: {record.done:,}{of} steps are done. Continue it with --resume.")
    if record.resolved.config.learns_labels:
        notices.append(
            "This run learned from labels. Its online k-NN is of training images whose labels it was shown, so it says "
            "little of new images; evaluate it on images that it was not trained on (--test)."
        )
    told = "".join(f'<p class="notice">{escape(notice)}</p>' for notice in notices)
    name = record.folder.resolve().name
    tone = escape(found.color)
    return f'<h1>{escape(name)}</h1><p class="verdict {tone}">{escape(found.sentence)}{advice}</p>{told}'


def tiles(record: Record) -> str:
    """Key numbers."""
    config = record.resolved.config
    items = []
    if record.knn is not None:
        about = ", ".join(f"{name} {level:.1f}" for name, level in record.floors().items())
        items.append(markup.tile("k-NN accuracy", f"{record.knn:.1f} %", about))
    if record.looks:
        look = record.looks[-1]
        items.append(markup.tile("Health", look.word, f"at step {look.step:,}", _tone(look)))
    if record.images is not None:
        aside = "" if record.skipped is None else f"{len(record.skipped):,} set aside"
        items.append(markup.tile("Images", f"{record.images:,}", aside))
    loss = record.of_steps("loss")
    if loss:
        items.append(markup.tile("Loss", short(curves.smoothed(loss)[-1]), f"from {short(loss[0][1])}"))
    items.append(
        markup.tile("Steps", f"{record.done:,}", f"of {record.planned or '?'}, {config.train.batch} images each")
    )
    if record.seconds_a_step is not None:
        items.append(
            markup.tile("Training", _duration(record.done * record.seconds_a_step), f"{config.train.precision}")
        )
    size = " x ".join(map(str, config.views.size)) if isinstance(config.views.size, tuple) else config.views.size
    about = f"{config.backbone.name}, {size} px, patch {config.backbone.patch}"
    amount = "not written yet" if record.parameters is None else short(record.parameters)
    items.append(markup.tile("Parameters", amount, about))
    items.append(markup.tile("Recipe", _stem(config.recipe), f"{config.objective.name}, {config.views.policy} views"))
    return f'<dl class="tiles">{"".join(items)}</dl>'


def health(record: Record) -> str:
    """The diagnosis in words, and how it went along the run."""
    if not record.looks:
        return ""
    last = record.looks[-1]
    rows = "".join(
        f'<div class="health"><span class="chip {_tone(last)}">{escape(last.word)}</span>{escape(why)}</div>'
        if i == 0
        else f'<div class="health"><span class="chip">and</span>{escape(why)}</div>'
        for i, why in enumerate([*last.why, *filter(None, [record.not_finite])])
    )
    history = []
    for (word, tone), group in itertools.groupby(record.looks, key=lambda look: (look.word, _tone(look))):
        steps = [look.step for look in group]
        when = f"step {steps[0]:,}" if len(steps) == 1 else f"steps {steps[0]:,} to {steps[-1]:,}"
        history.append(f'<span class="chip {tone}">{escape(word)}</span>{when}')
    along = f'<div class="history">{" ".join(history)}</div>' if len(history) > 1 else ""
    lead = (
        "Judged without labels, from the steps and on images that stay the same for the whole run. Yellow and red "
        "areas are where a value asks for attention; they begin at the step from which it is judged. Bands advise, "
        "they stop nothing."
    )
    groups = [markup.panels(heading, panels) for heading, panels in curves.health_panels(record)]
    return markup.section("health", "Health", lead, f'<div class="card">{rows}{along}</div>', *groups)


def _tone(look: Look) -> str:
    """The colour of a diagnosis on the page; one that is too early has none."""
    return "" if look.word == "too early" else escape(look.color)


def all_curves(record: Record) -> str:
    """The numbers of the log beside the health's as small plots."""
    parts = (
        markup.panels("Does it learn?", curves.learning_panels(record)),
        markup.panels("What the objective does", curves.objective_panels(record)),
        markup.panels("How it trains", curves.training_panels(record)),
    )
    return markup.section("curves", "Curves", "Over steps.", *parts) if any(parts) else ""


def views(record: Record) -> str:
    """What the network was shown, and what the policy chose or learned over training."""
    picture, groups = _views_picture(record), policy_groups(record)
    if not picture and not groups:
        return ""
    lead = "What the network was shown. Boxes on the image are where its views were cut; below each view, how."
    more = [markup.panels(heading, panels) for heading, panels in groups]
    if epochs := told_of_epochs(record) if groups else "":
        more.insert(0, f'<p class="lead">Curves are over steps.{epochs}</p>')
    if groups:
        run = shlex.quote(str(record.folder))
        more.append(f'<p class="lead">More on them: <code>belvedere analyze {escape(run)}</code></p>')
    return markup.section("views", "Views", lead if picture else "", picture, *more)


def _views_picture(record: Record) -> str:
    file = markup.own_file(record.folder, "views.png")
    if file is None:
        return ""
    alt = "Source images with the boxes of their crops, and beside each its views with their parameters."
    image = f'<img src="{markup.data_uri(file)}" alt="{alt}">'
    caption = (
        "Look for views that no longer show what the image is about, and for colours that no photo has: "
        "both mean that the augmentation is too strong."
    )
    return f'<figure class="picture paper"><div class="pan">{image}</div><figcaption>{caption}</figcaption></figure>'


def pictures(record: Record) -> str:
    """Neighbours, attention, patches in colour, spectrum."""
    folder = record.folder / "pictures"
    return "".join(
        markup.section(escape(item.name), item.title, "", markup.picture(folder, item, small=item.name == "spectrum"))
        for item in record.pictures
    )


def evaluation(record: Record) -> str:
    """Every protocol's numbers, the floors in the same table."""
    if not record.evaluation:
        return ""
    lead = "Each number with its 95 % interval over the test images. The floors went through the same protocol."
    parts = [f'<p class="lead"><b>{escape(sentence)}</b></p>' for sentence in record.verdict]
    known = list(PROTOCOLS)
    for result in sorted(record.evaluation, key=lambda one: [*known, one.get("protocol")].index(one.get("protocol"))):
        drawn = record.evaluation_pictures.get(str(result.get("protocol")), [])
        pictures = [markup.picture(record.folder / "evaluation", picture) for picture in drawn]
        parts.append(_protocol(result) + "".join(pictures))
    return markup.section("evaluation", "Evaluation", lead, *parts)


def _protocol(result: dict[str, Any]) -> str:
    settings, metrics = result.get("settings", {}), result.get("metrics", {})
    name = str(result.get("protocol", "protocol"))
    heading = f"<h3>{escape(PROTOCOLS.get(name, name))}</h3>"
    if "error" in settings:
        return f'{heading}<p class="card absent">Failed: {escape(str(settings["error"]))}</p>'
    names = in_order(METRICS, {name for numbers in metrics.values() for name in numbers})
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *map(metric_name, names)))
    rows = []
    for encoder in subjects_in_order(set(metrics)):
        cells = "".join(number_cell(metrics[encoder].get(name)) for name in names)
        own = ' class="own"' if encoder == "run" else ""
        rows.append(f"<tr{own}><td>{escape(ENCODERS.get(encoder, encoder))}</td>{cells}</tr>")
    told = [f"Test: {settings['split']}." if "split" in settings else ""]
    told += [f"Reading: {settings['reading']}." if "reading" in settings else ""]
    chosen = result.get("chosen", {}).get("k")
    neighbours = name == "knn" and isinstance(chosen, dict) and "run" in chosen
    told += [f"k = {chosen['run']} neighbours." if neighbours else ""]
    told += ["Settings selected on test, so the numbers flatter." if selected_on_test(result) else ""]
    twins = twins_told(settings)
    told += [f"{twins}." if twins else ""]
    about = escape(" ".join(part for part in told if part))
    return (
        f'{heading}<p class="lead">{about}</p><div class="scroll"><table class="numbers"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def settings(record: Record) -> str:
    """What was chosen for these images, with the reasons; all other values folded."""
    flat = configuration.flatten(record.resolved.config)
    rows = [(key, _setting(value), record.resolved.origin.get(key, "default")) for key, value in flat.items()]
    plain = [row for row in rows if row[2] == "default" or row[2].startswith("recipe ")]
    chosen = [row for row in rows if row not in plain]
    chosen.sort(key=lambda row: row[2].startswith("command line"))
    classes = ("key", "value", "")
    return markup.section(
        "settings",
        "Settings",
        "What was derived from the images, the machine and the budget, and what was asked for.",
        markup.table(("setting", "value", "where it comes from"), chosen, classes),
        markup.folded(
            f"All {len(plain)} others, from the recipe and defaults",
            markup.table(("setting", "value", "where it comes from"), plain, classes),
        ),
    )


def skipped(record: Record) -> str:
    """Files that could not be used."""
    if record.skipped is None:
        return ""
    count = len(record.skipped)
    if not count:
        return markup.section("skipped", "Skipped files", "None: every file could be read.")
    first = record.skipped[:_SKIPPED_SHOWN]
    more = f", the first {len(first)}" if count > len(first) else ""
    content = markup.table(("file", "reason"), first, ("value", ""))
    lead = f"{count:,} files were set aside and the run went on without them; all are named in skipped.csv."
    return markup.section("skipped", "Skipped files", lead, markup.folded(f"{count:,} files{more}", content))


def how_to(record: Record) -> str:
    """Code and commands."""
    cards = ""
    if record.parameters is not None:
        cards = "".join(
            f'<div class="card"><b>With {escape(name)}</b>{markup.code(text)}</div>'
            for name, text in python_lines(record)
        )
    images = record.resolved.config.images
    statistics = f"mean {_setting(images.mean)}, std {_setting(images.std)}"
    lines = "".join(f"<div><b>{escape(what)}</b>{markup.code(text)}</div>" for what, text in commands(record))
    return markup.section(
        "use",
        "How to use it",
        f"DATA is the folder, list or array of images that was given. The model's pixels have {statistics}.",
        f'<div class="how">{cards}</div>' if cards else "",
        f'<div class="card commands">{lines}</div>',
    )


def _setting(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_setting(x) for x in value) + "]"
    return f"{value:.6g}" if isinstance(value, float) else "none" if value is None else str(value)


def _stem(recipe: str) -> str:
    return recipe.rsplit("/", 1)[-1].removesuffix(".yaml")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
