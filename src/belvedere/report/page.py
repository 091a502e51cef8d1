"""The report: one HTML file with everything in it, readable offline, on a phone, without scripts, in light and dark."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

from belvedere import __version__
from belvedere.atomic import write_text
from belvedere.report import sections
from belvedere.report.record import Record, read_record

_HERE = Path(__file__).parent
# A roof over three columns.
_MARK = (
    '<svg viewBox="0 0 16 16" fill="currentColor" aria-hidden="true"><path d="M8 1 15 5.5v1.6H1V5.5zM2.6 8.3h2v5h-2z'
    'm4.4 0h2v5H7zm4.4 0h2v5h-2zM1 14h14v1.4H1z"/></svg>'
)


def write_report(folder: Path) -> Path:
    """Write `folder/report.html` from what the folder holds, finished or not, and return its path.

    Raises:
        UserError: when the folder is no run, or cannot be written.
    """
    record = read_record(folder)
    page = folder / "report.html"
    write_page(page, render(record))
    return page


def write_page(path: Path, html: str) -> None:
    """Write a page; file names in it may hold bytes that are no text.

    Raises:
        UserError: when it cannot be written.
    """
    write_text(path, html)


def render(record: Record) -> str:
    """The page's HTML."""
    parts = [
        sections.health(record),
        sections.all_curves(record),
        sections.views(record),
        sections.pictures(record),
        sections.evaluation(record),
        sections.settings(record),
        sections.skipped(record),
        sections.how_to(record),
    ]
    return assemble(record, f"{sections.headline(record)}{sections.tiles(record)}", parts)


def assemble(record: Record, headline: str, parts: Sequence[str]) -> str:
    """A page about a run: its headline, links to the sections, and the sections; all HTML."""
    return document(record.folder.resolve().name, str(record.folder), headline, parts)


def document(title: str, source: str, headline: str, parts: Sequence[str]) -> str:
    """A page: its headline, links to the sections, and the sections, all HTML; title and what it is of are text."""
    main = "".join(parts)
    links = re.findall(r'<section id="([a-z]+)"><h2>([^<]*)</h2>', main)
    nav = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading in links)
    top = (
        f'<header class="top"><div class="brand">{_MARK}belvedere</div>{headline}'
        f'<nav aria-label="Sections">{nav}</nav></header>'
    )
    written = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    footer = f"<footer>Written by belvedere {__version__} on {written} from {escape(source)}.</footer>"
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        title=f"{escape(title)}, belvedere",
        version=__version__,
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        body=f"{top}<main>{main}</main>{footer}",
    )
