"""What the protocols found, drawn once by `belvedere evaluate`: one file a protocol, named as the protocol is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from belvedere.evaluate.contract import EvalData, Result
from belvedere.pretrain.checkpoint import write_atomically
from belvedere.report.drawing import Picture


def draw_results(folder: Path, results: Sequence[Result], data: EvalData) -> None:
    """Draw results into `folder`, with a `pictures.json` of what was drawn for which protocol.

    A protocol `name` is drawn by `report/protocols/name.py`: `draw(folder, result, data) -> list[Picture]`; one that
    failed, or has no such file, is only a table of the report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, list[dict[str, str]]] = {}
    for result in results:
        drawing = f"{__name__}.{result.protocol}"
        if result.metrics and find_spec(drawing) is not None:
            pictures: list[Picture] = import_module(drawing).draw(folder, result, data)
            drawn[result.protocol] = [asdict(picture) for picture in pictures]
    text = json.dumps(drawn, indent=2)
    write_atomically(folder / "pictures.json", lambda beside: _write(beside, text))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
