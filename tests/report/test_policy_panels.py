"""The curves of hard and learned views over training, from logs with known numbers, and their place in the report."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from belvedere.report import curves
from belvedere.report.curves import Panel
from belvedere.report.hard_panels import expected_frequencies, overlap_panels
from belvedere.report.page import write_report
from belvedere.report.policy_panels import policy_groups, told_of_epochs
from belvedere.report.record import read_record

FACTS = ("iou", "area_small", "area_large", "distance", "corner_distance", "delta_hue", "delta_gray", "delta_blur")
CANDIDATES = ("global_a", "global_b", "global_a.1", "global_b.1")
HARD = {
    **{f"hard/{name}": 0.25 for name in FACTS},
    **{f"hard/{name}_others": 0.5 for name in FACTS},
    **{f"hard/chosen/{name}": 0.5 for name in CANDIDATES},
    **{f"hard/iou_bin/{k}": 0.5 * (k in (1, 2)) for k in range(10)},
    **{f"hard/iou_bin_others/{k}": 0.25 * (3 <= k < 7) for k in range(10)},
    **{f"hard/iou_bin_first/{k}": float(k == 3) for k in range(10)},
    "hard/corr/iou": -0.5,
    "hard/corr/delta_hue": 0.625,
    "hard/delta_blur": 0.0,
    "hard/delta_blur_others": 0.0,
    "hard/min_iou": 0.4,
    "hard/gain": 1.3,
    "hard/fidelity": 1.0,
    "hard/kept": 1.0,
    "hard/kept_all": 1.0,
    "view_cost": 1.7,
}
OPERATIONS = ("rotate", "solarize", "blur")
LEARNED = {
    **{f"policy/p/{name}": p for name, p in zip(OPERATIONS, (0.2, 0.5, 0.3), strict=True)},
    **{f"policy/m/{name}": 0.23 for name in OPERATIONS},
    **{f"policy/reward/{name}": r for name, r in zip(OPERATIONS, (-0.25, 0.125, 0.0), strict=True)},
    **{f"policy/reward_se/{name}": 0.05 for name in OPERATIONS},
    "policy/apply": 0.5,
    "policy/entropy": 1.03,
    "policy/lambda": 1.5,
    "policy/l_reg": 2.0,
    "policy/floor": 1.25,
    "policy/l_reg_share": 0.7,
    "policy/retention": 0.45,
    "policy/dead_views": 0.0,
    "view_cost": 1.2,
}
SETTLED = {
    "images.channels": 3,
    "views.blur_p": (0.0, 0.0, 0.0),
    "views.locals": 0,
    "views.local_size": 16,
    "views.global_scale": (0.2, 1.0),
    "views.local_scale": (0.05, 0.2),
}


def panels_of(folder: Path) -> dict[str, Panel]:
    return {panel.title: panel for _, panels in policy_groups(read_record(folder)) for panel in panels}


def texts(panel: Panel) -> list[str]:
    """What is written in a plot."""
    svg = base64.b64decode(panel.svg.partition(",")[2]).decode()
    return re.findall(r">([^<>\n]+)</text>", svg)


def test_every_curve_of_hard_views_is_there(make_run: Callable[..., Path]) -> None:
    panels = panels_of(make_run(scalars=HARD, given={"views.policy": "hard", **SETTLED}))
    assert set(panels) == {
        "Overlap of the two crops (IoU)",
        "Overlap over the run",
        "Images whose chosen pair overlaps least",
        "Areas of the chosen pair's two crops",
        "Distance of the crops' centres",
        "Distance of the crops' upper left corners",
        "What goes with a pair's loss",
        "Difference in hue",
        "Difference in grayscale",
        "How often each candidate is in the chosen pair",
        "How much harder the chosen pair is",
        "What the policy costs",
    }
    overlap = panels["Overlap of the two crops (IoU)"]
    assert overlap.value == "0.25 vs 0.50"
    assert {"chosen", "others"} <= set(texts(overlap))
    assert "0.345" in overlap.note
    assert "least about 0.33 near epoch 7" in overlap.note
    assert "0.33 ± 0.10 smaller" in panels["Areas of the chosen pair's two crops"].note
    assert "SimSiam, ResNet-50, ImageNet" in overlap.note
    histograms = panels["Overlap over the run"]
    assert {"chosen", "others", "first pair", "from step 0", "from step 50"} <= set(texts(histograms))
    told = "5 histograms; means of the last one: chosen 0.20, others 0.50, first pair 0.35."
    assert histograms.alt.endswith(told)
    assert "trained on where none are chosen" in histograms.note
    correlations = panels["What goes with a pair's loss"]
    assert correlations.value == "most: hue"
    assert {"hue", "0.62", "overlap (IoU)", "-0.50", "0"} <= set(texts(correlations))
    assert panels["Images whose chosen pair overlaps least"].value == "0.40"
    assert "chance" in texts(panels["Images whose chosen pair overlaps least"])
    assert panels["What the policy costs"].value == "1.70 on average"
    frequencies = panels["How often each candidate is in the chosen pair"]
    assert "0.50 for each" in frequencies.note
    numbered = {"1 (global_a)", "2 (global_b)", "3 (global_a.1)", "4 (global_b.1)"}
    assert numbered | {"0.50", "expected"} <= set(texts(frequencies))
    assert "One interval in twenty misses that by chance" in frequencies.note
    assert all(len(panel.note) > 15 and panel.alt for panel in panels.values())


def test_a_run_begun_by_an_earlier_version_has_the_other_histograms(make_run: Callable[..., Path]) -> None:
    folder = make_run(scalars=HARD, given={"views.policy": "hard", **SETTLED})
    record = read_record(folder)
    for entry in record.steps[: len(record.steps) // 2]:
        for k in range(10):
            entry.pop(f"hard/iou_bin_first/{k}", None)
    panels = {panel.title: panel for panel in overlap_panels(record)}
    assert "first pair" not in panels["Overlap over the run"].note + panels["Overlap over the run"].alt


def test_cheap_scoring_shows_what_it_keeps(make_run: Callable[..., Path]) -> None:
    scalars = HARD | {"hard/fidelity": 0.6, "hard/kept": 0.8, "hard/kept_all": 0.4}
    panels = panels_of(make_run(scalars=scalars, given={"views.policy": "hard", "views.scale": 0.5, **SETTLED}))
    assert panels["Choices that full scoring would make too"].value == "0.6"
    assert panels["Hardness that cheap scoring keeps"].value == "0.8"
    assert panels["Hardness kept over all steps and images"].value == "0.4"


def test_masks_are_shown_where_there_are_some(make_run: Callable[..., Path]) -> None:
    title, given = "Masked patches of the pair", {"views.policy": "hard", **SETTLED}
    masked = HARD | {"hard/masked": 0.3, "hard/masked_others": 0.1}
    assert panels_of(make_run("masked", scalars=masked, given=given))[title].value == "0.30 vs 0.10"
    none = HARD | {"hard/masked": 0.0, "hard/masked_others": 0.0}
    assert title not in panels_of(make_run("none", scalars=none, given=given))


@pytest.mark.parametrize(
    ("recipe", "candidates", "scorer", "expected"),
    [
        ("simclr", 4, "loss", [0.5, 0.5, 0.5, 0.5]),
        ("simclr", 3, "loss", [2 / 3, 2 / 3, 2 / 3]),
        ("simclr", 4, "anchor", [1, 1 / 3, 1 / 3, 1 / 3]),
        ("dino", 4, "loss", [1 / 2, 1 / 2, 1 / 2, 1 / 2]),
        ("dino", 3, "loss", [1 / 2, 1, 1 / 2]),
    ],
)
def test_expected_frequencies(
    make_run: Callable[..., Path], recipe: str, candidates: int, scorer: str, expected: list[float]
) -> None:
    """All pairs of n: 2 / n each; one of each law: what its family's size leaves."""
    config = read_record(make_run(recipe=recipe, given=SETTLED)).resolved.config
    found = expected_frequencies(config, candidates, scorer)
    assert [found[name] for name in CANDIDATES[:candidates]] == pytest.approx(expected)


def test_every_curve_of_learned_views_is_there(make_run: Callable[..., Path]) -> None:
    given = {"views.policy": "learned", "views.retention": 0.43, **SETTLED}
    panels = panels_of(make_run(scalars=LEARNED, given=given))
    assert set(panels) == {
        "Probability of each operation",
        "Mean strength of each operation",
        "What each operation brings",
        "How hard views are to recognise",
        "Weight of recognisability (lambda)",
        "Views that show nothing",
        "Variety of the operations (entropy)",
        "Probability of a second operation",
        "Loss of finding a view's own image",
        "What the policy costs",
    }
    assert panels["Probability of each operation"].value == "most: solarize"
    assert {*OPERATIONS, "0.5", "0.3", "0.2", "all alike"} <= set(texts(panels["Probability of each operation"]))
    assert panels["What each operation brings"].value == "best: solarize"
    assert {"0.125", "-0.250", "0.000"} <= set(texts(panels["What each operation brings"]))
    assert "asked for" in texts(panels["How hard views are to recognise"])
    assert "0: no harder than the crop alone" in panels["How hard views are to recognise"].note
    assert "all alike" in texts(panels["Variety of the operations (entropy)"])
    assert {"off", "from 1.0", "to 1.8"} <= set(texts(panels["Weight of recognisability (lambda)"]))
    recognition = panels["Loss of finding a view's own image"]
    assert {"chance", "alarm", "views", "crops alone"} <= set(texts(recognition))
    assert recognition.alt.endswith("2 at the end, chance 2.86, of crops alone 1.25.")
    assert "start" in texts(panels["Mean strength of each operation"])
    assert "a policy starts, 0.24" in panels["Mean strength of each operation"].note
    assert "start" in texts(panels["Probability of a second operation"])


def test_the_report_shows_them_under_views(make_run: Callable[..., Path]) -> None:
    folder = make_run(scalars=HARD | LEARNED, given={"views.policy": "hard", "views.inner": "learned", **SETTLED})
    page = write_report(folder).read_text()
    views = page[page.index('<section id="views">') :]
    views = views[: views.index("</section>")]
    assert "Overlap of the two crops (IoU)" in views
    assert "Probability of each operation" in views
    assert "belvedere analyze" in views
    assert page.count("<b>What the policy costs</b>") == 1
    beside = {panel.title for panel in curves.objective_panels(read_record(folder))}
    assert not any(title.startswith(("hard", "policy", "view")) for title in beside)


def test_an_epoch_is_told_in_steps_where_the_images_are_known(make_run: Callable[..., Path]) -> None:
    record = read_record(make_run(given={"views.policy": "hard", **SETTLED}))
    assert told_of_epochs(record) == ""
    assert told_of_epochs(replace(record, images=40_000)) == " 2,500 steps = 1 epoch."
    assert told_of_epochs(replace(record, images=3)) == " 1 step = 1 epoch."


def test_random_views_have_no_such_curves(make_run: Callable[..., Path]) -> None:
    folder = make_run(scalars={"view_cost": 1.0})
    assert policy_groups(read_record(folder)) == []
    assert 'id="views"' not in write_report(folder).read_text()


def test_a_hostile_operation_is_text(make_run: Callable[..., Path]) -> None:
    scalars: dict[str, Any] = {"policy/p/<script>$x$": 0.5, "policy/m/<script>$x$": 0.1}
    folder = make_run(scalars=scalars, given=SETTLED)
    assert "<script" not in write_report(folder).read_text()
    assert "&lt;script&gt;$x$" in texts(panels_of(folder)["Probability of each operation"])
