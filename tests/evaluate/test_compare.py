"""Runs side by side: paired differences by hand, the page, and runs that cannot be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import belvedere
from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.compare import Comparison, compare_runs, difference, mcnemar
from belvedere.evaluate.suite import Given, evaluate_encoder, write_results
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.report.comparison import render, verdicts

Make = Callable[..., Canvases]
THREE = dict.fromkeys(("astronaut", "coffee", "retina"), 16)
PROTOCOLS = ["knn", "fewshot", "retrieval"]


def another(seed: int) -> Encoder:
    backbone = build_backbone("vit_tiny", size=(32, 32), channels=3, patch=8, width=32, depth=1, heads=2, seed=seed)
    return Encoder(backbone, (32, 32), [0.5] * 3, [0.25] * 3)


@pytest.fixture
def runs(make_folder: Make, encoder: Encoder, tmp_path: Path) -> list[Path]:
    """Three run folders that were evaluated on the same images."""
    given = Given(make_folder(THREE), make_folder(THREE, "test", first=1))
    folders = []
    for name, one in (("first", encoder), ("second", another(5)), ("<b>third", another(6))):
        write_results(evaluate_encoder(one, given, PROTOCOLS), tmp_path / name / "evaluation.json")
        folders.append(tmp_path / name)
    return folders


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(5, 60))
def test_paired_difference_and_mcnemar_by_hand(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(2, size=(2, n)).astype(float)
    found = difference(first, second)
    assert found.points.value == pytest.approx(100 * (second.mean() - first.mean()))
    back = difference(second, first)
    assert (back.points.value, back.points.low) == pytest.approx((-found.points.value, -found.points.high))
    gained, lost = int((second > first).sum()), int((second < first).sum())
    by_hand = min(1.0, 2 * binom.cdf(min(gained, lost), gained + lost, 0.5)) if gained + lost else 1.0
    assert found.p == pytest.approx(by_hand)
    assert mcnemar(first, second) == mcnemar(second, first)
    same = difference(first, first)
    assert (same.points.low, same.points.high, same.p, same.sure) == (0, 0, 1, False)
    assert difference(first / 2, second / 2).p is None


def test_what_is_hard_for_both_takes_no_part() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(2, size=400).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:20]] = 1
    found = difference(first, second)
    assert found.sure
    assert found.points.value == pytest.approx(5)
    assert found.points.high - found.points.low < 5  # a single accuracy of 400 has an interval of about 10


def test_runs_on_the_same_items(runs: list[Path]) -> None:
    found = compare_runs(runs)
    assert [run.name for run in found.runs] == ["first", "second", "<b>third"]
    assert found.notices == []
    keys = found.differences["second"].keys()
    assert {("knn", "top1"), ("fewshot", "shots8"), ("retrieval", "map_r")} <= keys
    assert ("knn", "balanced") not in keys  # is no mean of items
    for name, run in zip(("second", "<b>third"), found.runs[1:], strict=True):
        for (protocol, metric), one in found.differences[name].items():
            numbers = run.number(protocol, metric), found.runs[0].number(protocol, metric)
            assert one.points.value == pytest.approx(numbers[0].value - numbers[1].value)
    assert compare_runs(runs) == found or render(compare_runs(runs))


def test_the_page_holds_everything_and_nothing_of_others(runs: list[Path], tmp_path: Path) -> None:
    page = belvedere.compare(*runs, out=tmp_path / "pages" / "compare.html")
    html = page.read_text()
    found = compare_runs(runs)
    assert "<b>third" not in html
    assert "&lt;b&gt;third" in html
    assert not re.search(r'(src|href)="(?!data:|#)', html)
    assert "<script" not in html
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 1
    assert "Accuracy in percent with 1, 2, 4, 8, 16 labelled images a class: first " in images[0]
    for word in ("raw pixels", "untrained network", "majority class", "McNemar"):
        assert word in html
    for run in found.runs:
        for protocol in PROTOCOLS:
            for metric in found.metrics(protocol):
                assert f"{run.number(protocol, metric).value:.1f}<small>" in html
    for tag in ("section", "table", "tr", "td", "figure", "p"):
        assert html.count(f"<{tag}>") + html.count(f"<{tag} ") == html.count(f"</{tag}>"), tag


def test_verdicts_say_who_is_better_where(runs: list[Path]) -> None:
    found = compare_runs(runs[:2])
    n = found.differences["second"]["knn", "top1"]

    def said(value: float) -> str:
        points = replace(n.points, value=value, low=value - 1.5, high=value + 1.5)
        only = {
            "second": {("knn", "top1"): replace(n, points=points), ("fewshot", "shots16"): replace(n, points=points)}
        }
        return verdicts(Comparison(found.runs, only, []))[0]

    where = "in k-NN and {} points {} with 16 labels a class than first."
    assert said(2.0) == "second is 2.0 ± 1.5 points better " + where.format("2.0 ± 1.5", "better")
    assert said(-2.0) == "second is 2.0 ± 1.5 points worse " + where.format("2.0 ± 1.5", "worse")
    told = "second and first cannot be told apart in k-NN (-1.0 ± 1.5) and with 16 labels a class (-1.0 ± 1.5)."
    assert said(-1.0) == told
    none = verdicts(Comparison(found.runs, {"second": {}}, []))[0]
    assert none.startswith("second and first have no headline number in common")


def test_other_settings_are_noticed_and_encoders_may_differ(
    make_folder: Make, encoder: Encoder, runs: list[Path], tmp_path: Path
) -> None:
    data = json.loads((runs[1] / "evaluation.json").read_text())
    data["results"][0]["settings"]["temperature"] = 0.5
    data["results"][0]["settings"]["reading"] = "avg"
    (runs[1] / "evaluation.json").write_text(json.dumps(data))
    (notice,) = compare_runs(runs[:2]).notices
    assert notice == "knn was measured with temperature = 0.5 in second and 0.07 in first."
    assert notice in render(compare_runs(runs[:2]))


def test_what_cannot_be_compared_is_said_in_a_line(
    make_folder: Make, encoder: Encoder, runs: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="give two or more different runs"):
        compare_runs([runs[0], runs[0]])
    (tmp_path / "young").mkdir()
    with pytest.raises(UserError, match="young: was not evaluated yet; run `belvedere evaluate"):
        compare_runs([runs[0], tmp_path / "young"])
    elsewhere = Given(make_folder(THREE, "train2"), make_folder({"coffee": 9, "rocket": 9}, "test2", first=1))
    write_results(evaluate_encoder(encoder, elsewhere, ["knn"]), tmp_path / "far" / "evaluation.json")
    with pytest.raises(UserError, match="far: was evaluated with other test images than first"):
        compare_runs([runs[0], tmp_path / "far"])
    (runs[1] / "evaluation.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read; run `belvedere evaluate` again"):
        compare_runs(runs[:2])
    np.savez(runs[2] / "evaluation.npz", **{"knn/run/top1": np.zeros(48)})
    with pytest.raises(UserError, match=r"is not what evaluation\.json says"):
        compare_runs([runs[2], runs[0]])


def test_runs_without_a_common_protocol(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    given = Given(make_folder(THREE), make_folder(THREE, "test", first=1))
    for name in ("knn", "retrieval"):
        write_results(evaluate_encoder(encoder, given, [name]), tmp_path / name / "evaluation.json")
    found = compare_runs([tmp_path / "knn", tmp_path / "retrieval"])
    assert found.differences == {"retrieval": {}}
    assert "no headline number in common" in render(found)
