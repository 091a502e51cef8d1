"""What the protocols found, drawn once by `belvedere evaluate`: one file a protocol, named as the protocol is."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from belvedere.atomic import write_text
from belvedere.evaluate.contract import EvalData, Result
from belvedere.report.drawing import Picture

PICTURES = "pictures.json"


def draw_results(folder: Path, results: Sequence[Result], data: EvalData, before: Collection[str] = ()) -> None:
    """Draw results into `folder`, with a `pictures.json` of what was drawn for which protocol.

    A protocol `name` is drawn by `report/protocols/name.py`: `draw(folder, result, data) -> list[Picture]`; one that
    failed, or has no such file, is only a table of the report.

    Args:
        before: protocols whose pictures of an earlier call stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: pictures for name, pictures in _drawn(folder / PICTURES).items() if name in before}
    for result in results:
        drawing = f"{__name__}.{result.protocol}"
        if result.metrics and find_spec(drawing) is not None:
            pictures: list[Picture] = import_module(drawing).draw(folder, result, data)
            drawn[result.protocol] = [asdict(picture) for picture in pictures]
    text = json.dumps(drawn, indent=2)
    write_text(folder / PICTURES, text)


def _drawn(file: Path) -> dict[str, list[dict[str, str]]]:
    """What is listed in a `pictures.json`; nothing where it is missing or damaged."""
    try:
        found: dict[str, list[dict[str, str]]] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found
