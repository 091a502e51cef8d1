"""A run's folder from anywhere: what no run writes is left out of the page, or refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from belvedere.measure.encoder import Encoder
from belvedere.report import sections
from belvedere.report.card import model_card
from belvedere.report.page import render, write_report
from belvedere.report.record import read_record
from belvedere.report.verdict import answer
from twist import JUNK, every_twist, twisted, ways

NUMBER = {"value": 61.5, "low": 58.0, "high": 65.0}
TOLD = {"split": "a tenth", "reading": "cls", "test": {"images": 90}, "twins": {"images": 1, "pairs": [["a", "b"]]}}
EVALUATION: dict[str, Any] = {
    "results": [
        {"protocol": "knn", "metrics": {"run": {"top1": NUMBER}}, "chosen": {"k": {"run": 10}}, "settings": TOLD},
        {"protocol": "linear", "metrics": {}, "chosen": {}, "settings": {"error": "ValueError: no"}},
    ],
    "verdict": ["It gains 3 points."],
    "seconds": {"knn": 1.0},
}
PICTURE = {"name": "a", "title": "b", "caption": "c", "alt": "d", "file": "own.png", "table": ""}
DRAWN: dict[str, Any] = {"images": 40, "labelled": 40, "pictures": [PICTURE]}


@pytest.mark.slow
def test_every_twist_of_an_evaluation_is_left_out(
    make_run: Callable[..., Path], make_encoder: Callable[..., Encoder]
) -> None:
    folder, encoder = make_run(), make_encoder()

    def shown(content: Any) -> tuple[str, list[str]]:
        (folder / "evaluation.json").write_text(json.dumps(content))
        record = read_record(folder)
        card = model_card(record, encoder, "safetensors")
        return sections.evaluation(record) + card + answer(record).sentence, record.damaged

    told = "61.5 [58.0, 65.0]"
    text, damaged = shown(EVALUATION)
    assert told in text
    assert not damaged
    for content in every_twist(EVALUATION["results"][0]):
        text, damaged = shown({**EVALUATION, "results": [content]})
        assert damaged or content["metrics"] != {"run": {"top1": NUMBER}} or told in text
    for content in every_twist({"results": [], "verdict": ["It gains 3 points."]}):
        shown(content)


@pytest.mark.parametrize(
    "number", [{"value": 61.5}, {**NUMBER, "low": "58"}, {**NUMBER, "low": None}, {**NUMBER, "value": 10**400}, [], 5]
)
def test_a_number_that_is_none_is_named(make_run: Callable[..., Path], number: Any) -> None:
    folder = make_run()
    results = [{**EVALUATION["results"][0], "metrics": {"run": {"top1": number}}}, EVALUATION["results"][1]]
    (folder / "evaluation.json").write_text(json.dumps({**EVALUATION, "results": results}))
    page = render(read_record(folder))
    assert "evaluation.json is damaged: what is not as an evaluation writes it is left out of its results." in page
    assert "Linear probe" in page
    assert "k-NN</h3>" not in page


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("evaluation.json", "[" * 100_000),
        ("skipped.csv", "path,reason\n" + "a" * 200_000 + ",b\n"),
    ],
)
def test_files_that_their_readers_refuse_are_named(make_run: Callable[..., Path], name: str, content: str) -> None:
    folder = make_run()
    (folder / name).write_text(content)
    assert f"{name} is damaged" in render(read_record(folder))


@pytest.fixture
def whole(make_run: Callable[..., Path]) -> tuple[Path, dict[str, Any]]:
    """A run's folder, and what each of its files holds that is JSON; a log is a list of its lines."""
    folder = make_run(done=12)
    for place in ("pictures", "evaluation"):
        (folder / place).mkdir()
        Figure(figsize=(1, 1)).savefig(folder / place / "own.png")
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    pictures = {"pictures/pictures.json": DRAWN, "evaluation/pictures.json": {"knn": [PICTURE]}}
    return folder, {"metrics.jsonl": log, "evaluation.json": EVALUATION, **pictures}


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), junk=st.sampled_from(JUNK), how=st.sampled_from(["out", "replaced"]))
def test_a_twisted_folder_is_reported(
    data: st.DataObject, junk: Any, how: str, whole: tuple[Path, dict[str, Any]]
) -> None:
    folder, files = whole
    changed = data.draw(st.sampled_from(sorted(files)))
    way = data.draw(st.sampled_from(list(ways(files[changed]))))
    for name, content in files.items():
        found = twisted(content, way, junk, how) if name == changed else content
        text = "".join(f"{json.dumps(line)}\n" for line in found) if name == "metrics.jsonl" else json.dumps(found)
        (folder / name).write_text(text)
    assert "</html>" in write_report(folder).read_text()
