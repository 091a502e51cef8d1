"""Pieces of HTML. Whatever comes from a file is escaped here: names of files and classes are hostile."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from belvedere.report.curves import Panel
from belvedere.report.drawing import Picture

_KINDS = {".png": "image/png", ".webp": "image/webp", ".csv": "text/csv"}


def data_uri(path: Path) -> str:
    """A file as a data URI."""
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"


def own_file(folder: Path, name: str) -> Path | None:
    """The picture or table of this name in a folder; None where there is none.

    A run may come from a stranger: neither its list of pictures nor a link makes the page embed a file from elsewhere.
    """
    if Path(name).name != name or not name.isprintable():
        return None
    file = folder / name
    return file if file.is_file() and file.resolve().parent == folder.resolve() and file.suffix in _KINDS else None


def section(anchor: str, heading: str, lead: str, *parts: str) -> str:
    """A section of the page; `lead` is text, `parts` are HTML."""
    sentence = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f'<section id="{anchor}"><h2>{escape(heading)}</h2>{sentence}{"".join(parts)}</section>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str]) -> str:
    """A table of texts that scrolls inside itself."""
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{escape(name)}">{escape(x)}</td>' for name, x in zip(classes, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def folded(summary: str, content: str) -> str:
    """HTML that opens on a click."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def tile(name: str, value: str, about: str = "", color: str = "") -> str:
    """A key number."""
    return (
        f'<div class="tile"><dt>{escape(name)}</dt><dd><b class="{escape(color)}">{escape(value)}</b>'
        f"<span>{escape(about)}</span></dd></div>"
    )


def panels(heading: str, items: Sequence[Panel]) -> str:
    """A group of small plots, perhaps under a heading; nothing when there are none."""
    if not items:
        return ""
    above = f"<h3>{escape(heading)}</h3>" if heading else ""
    return f'{above}<div class="panels">{"".join(_panel(item) for item in items)}</div>'


def _panel(panel: Panel) -> str:
    dot = f'<i class="dot {escape(panel.color)}"></i>' if panel.color else ""
    return (
        f'<div class="panel"><header><b>{escape(panel.title)}</b><span>{dot}{escape(panel.value)}</span></header>'
        f'<p>{escape(panel.note)}</p><img src="{panel.svg}" alt="{escape(panel.alt)}" width="330" height="155"></div>'
    )


def picture(folder: Path, item: Picture, small: bool = False) -> str:
    """A picture with its caption and numbers, or the reason why there is none."""
    file, numbers = own_file(folder, item.file), own_file(folder, item.table)
    if item.skipped or file is None:
        why = item.skipped or f"{item.file} is missing"
        return f'<p class="card absent">Not drawn: {escape(why)}.</p>'
    name = escape(item.table)
    link = f' <a download="{name}" href="{data_uri(numbers)}">Its numbers as CSV</a>.' if numbers else ""
    return (
        f'<figure class="picture{" small" if small else ""}"><div class="pan"><img src="{data_uri(file)}" '
        f'alt="{escape(item.alt)}"></div><figcaption>{escape(item.caption)}{link}</figcaption></figure>'
    )


def code(text: str) -> str:
    """A block of code."""
    return f"<pre><code>{escape(text)}</code></pre>"
