"""The health section: every judged value has its place and its band, alarms between looks are told."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

from belvedere.measure.bands import RULES
from belvedere.report import curves
from belvedere.report.page import write_report
from belvedere.report.plots import Band
from belvedere.report.record import read_record
from belvedere.report.vitals import ELSEWHERE, VITALS

STEPS = 60
GUIDE = Path(__file__).parents[2] / "docs" / "health.md"


def test_every_judged_value_has_its_place() -> None:
    assert {rule.value for rule in RULES} <= set(VITALS) | ELSEWHERE
    assert all(vital.title and vital.note for vital in VITALS.values())


def test_the_guide_tells_every_value_its_word_and_its_bounds() -> None:
    rows = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    for rule in RULES:
        (at,) = [i for i, row in enumerate(rows) if row.startswith(f"| `{rule.value}`")]
        # A second rule of the same value may stand in the row below.
        told = rows[at] + "".join(row for row in rows[at + 1 : at + 2] if row.startswith("| |"))
        assert rule.word in told
        for bound in (rule.amber, rule.red):
            if math.isfinite(bound) and rule.value not in ELSEWHERE | {"gradient_spikes"}:
                assert any(text in told for text in {f"{bound:g}", f"{bound:g}".replace("0.", ".", 1)}), (rule, bound)


def test_values_of_steps_and_looks_stand_in_their_groups(make_run: Callable[..., Path]) -> None:
    scalars = {"kl": 0.2, "teacher_gap": 0.1, "projection_std": 0.01, "grad/last_block": 0.3, "center_max": 0.5}
    scalars |= {"momentum": 0.99, "teacher_temp": 0.04, "patch_teacher_temp": 0.05}
    record = read_record(make_run(scalars=scalars))
    groups = {heading: {panel.title: panel for panel in panels} for heading, panels in curves.health_panels(record)}
    collapsing, features, stable = groups.values()
    assert collapsing[VITALS["projection_std"].title].color == "red"
    assert collapsing[VITALS["kl"].title].color == "green"
    assert features[VITALS["mean_cosine"].title].color == "green"
    assert VITALS["teacher_gap"].title in stable
    assert "last block" in stable["Gradient norms, backbone"].alt
    assert "patches" in stable["Gradient norms, backbone"].alt
    beside = {panel.title for panel in curves.objective_panels(record)}
    assert "Largest centre" in beside
    assert {"Momentum of the teacher", "Temperature of the teacher", "Temperature of the teacher, patches"} <= beside
    assert not beside & {vital.title for vital in VITALS.values()}


def test_the_colour_is_that_of_the_value_that_was_judged(make_run: Callable[..., Path]) -> None:
    """One odd step does not colour a panel whose median lies in its band."""
    folder = make_run(scalars={"kl": 1e-9})
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    lines[-1]["judged"] = {"kl": 0.3}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    panels = dict(curves.health_panels(read_record(folder)))["Is the output collapsing?"]
    assert {panel.title: panel.color for panel in panels}[VITALS["kl"].title] == "green"


def test_bands_begin_where_their_rule_applies() -> None:
    rule = next(rule for rule in RULES if rule.value == "instance_recall")
    assert Band(rule, 1000).steps == (100, 250)


def test_an_alarm_between_two_looks_is_told(make_run: Callable[..., Path]) -> None:
    folder = make_run()
    alarm = {"step": STEPS, "health": "unstable", "color": "red", "why": ["patch_step is 0.2 (above 0.03): too long."]}
    with (folder / "metrics.jsonl").open("a") as log:
        log.write(json.dumps(alarm) + "\n")
    record = read_record(folder)
    assert record.looks[-1].word == "unstable"
    assert record.of_looks("head_std")[-1] == (STEPS, 0.9)
    page = write_report(folder).read_text()
    assert "patch_step is 0.2" in page
