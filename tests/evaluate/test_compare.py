"""Runs side by side: paired differences by hand, the page, and runs that cannot be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import binom

import belvedere
from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.evaluate.compare import Comparison, compare_runs, difference, mcnemar
from belvedere.evaluate.contract import Number, Result
from belvedere.evaluate.intervals import mean_percent, resample
from belvedere.evaluate.records import write_results
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.report.comparison import render, verdicts
from twist import JUNK, twisted, ways

Make = Callable[..., Canvases]
THREE = dict.fromkeys(("astronaut", "coffee", "retina"), 16)
METRICS = {"knn": ["top1"], "fewshot": ["shots1", "shots8", "shots16"], "retrieval": ["recall1", "map_r"]}
SUBJECTS = ("run", "untrained", "pixels")


SETTINGS = {
    "test": {"files": "t", "images": 60},
    "train": {"files": "a", "images": 90},
    "classes": 3,
    "seed": 0,
    "temperature": 0.07,
}


def evaluation(folder: Path, seed: int, **settings: Any) -> Path:
    """A run's folder with results as protocols give them, of made-up answers."""
    rng = np.random.default_rng(seed)
    counts = resample(60, 0)
    results = []
    for protocol, names in METRICS.items():
        items = {subject: {name: rng.integers(2, size=60).astype(float) for name in names} for subject in SUBJECTS}
        if protocol == "retrieval":
            items = {subject: {name: x / 2 for name, x in numbers.items()} for subject, numbers in items.items()}
        metrics = {
            subject: {name: mean_percent(x, counts) for name, x in numbers.items()}
            for subject, numbers in items.items()
        }
        metrics["run"]["balanced"] = Number(50.0, 40.0, 60.0)
        results.append(Result(protocol, metrics, {}, {**SETTINGS, "reading": f"r{seed}", **settings}, items))
    write_results(results, folder / "evaluation.json")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Three run folders that were evaluated on the same images."""
    return [evaluation(tmp_path / name, seed) for seed, name in enumerate(("first", "second", "<b>third"))]


@settings(max_examples=40)
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
    assert difference(first / 2, np.full(n, 0.25)).p is None


def test_what_is_hard_for_both_takes_no_part() -> None:
    rng = np.random.default_rng(0)
    first = rng.integers(2, size=400).astype(float)
    second = first.copy()
    second[np.flatnonzero(first == 0)[:20]] = 1
    found = difference(first, second)
    assert found.sure
    assert found.points.value == pytest.approx(5)
    assert found.points.high - found.points.low < 5  # a single accuracy of 400 has an interval of about 10


def test_draws_of_labels_count_beside_the_items() -> None:
    """Five draws, of which each gives another difference, tell less than their mean over many items would say."""
    rng = np.random.default_rng(0)
    gain = np.array([0.0, 0.1, 0.2, 0.3, 0.4])[:, None]
    first = rng.random((5, 2000))
    found, of_means = difference(first, first + gain), difference(first.mean(0), (first + gain).mean(0))
    assert found.points.value == pytest.approx(of_means.points.value) == pytest.approx(20)
    assert of_means.points.high - of_means.points.low < 1e-6
    # The mean of five values drawn with replacement from 0, 10, ... 40 has a standard deviation of 14.1 / sqrt(5).
    assert found.points.high - found.points.low == pytest.approx(2 * 1.96 * 14.1 / 5**0.5, rel=0.1)
    assert difference(np.zeros((1, 4)), np.ones((1, 4))).p is None


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
    assert compare_runs(runs).differences == found.differences


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
    assert "Accuracy in percent with 1, 8, 16 labelled images a class: first " in images[0]
    for word in ("raw pixels", "untrained network", "McNemar"):
        assert word in html
    for run in found.runs:
        for protocol in METRICS:
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
            "second": {("knn", "top1"): replace(n, points=points), ("fewshot", "shots8"): replace(n, points=points)}
        }
        return verdicts(Comparison(found.runs, only, []))[0]

    where = "in k-NN and {} points {} with 8 labels a class than first."
    assert said(2.0) == "second is 2.0 ± 1.5 points better " + where.format("2.0 ± 1.5", "better")
    assert said(-2.0) == "second is 2.0 ± 1.5 points worse " + where.format("2.0 ± 1.5", "worse")
    told = "second and first cannot be told apart in k-NN (-1.0 ± 1.5) and with 8 labels a class (-1.0 ± 1.5)."
    assert said(-1.0) == told
    none = verdicts(Comparison(found.runs, {"second": {}}, []))[0]
    assert none.startswith("second and first have no headline number in common")


def test_other_settings_are_noticed_and_encoders_may_differ(runs: list[Path], tmp_path: Path) -> None:
    unlike = evaluation(tmp_path / "unlike", 4, temperature=0.5)
    found = compare_runs([runs[0], unlike])
    assert found.notices == [
        f"{name} was measured with temperature = 0.5 in unlike and 0.07 in first." for name in sorted(METRICS)
    ]
    assert found.notices[0] in render(found)


def test_what_cannot_be_compared_is_said_in_a_line(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="give two or more different runs"):
        compare_runs([runs[0], runs[0]])
    (tmp_path / "young").mkdir()
    with pytest.raises(UserError, match="young: was not evaluated yet; run `belvedere evaluate"):
        compare_runs([runs[0], tmp_path / "young"])
    far = evaluation(tmp_path / "far", 4, test={"files": "elsewhere", "images": 60})
    with pytest.raises(UserError, match="far: was evaluated with other test images than first"):
        compare_runs([runs[0], far])
    (runs[1] / "evaluation.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be read; run `belvedere evaluate` again"):
        compare_runs(runs[:2])
    np.savez(runs[2] / "evaluation.npz", **{"knn/run/top1": np.full(60, 0.123)})
    with pytest.raises(UserError, match=r"is not what evaluation\.json says"):
        compare_runs([runs[2], runs[0]])


def test_two_networks_on_real_images(make_folder: Make, encoder: Encoder, tmp_path: Path) -> None:
    backbone = build_backbone("vit_tiny", size=(24, 24), channels=3, patch=8, width=32, depth=1, heads=2, seed=5)
    smaller = Encoder(backbone, (24, 24), [0.5] * 3, [0.25] * 3)
    given = Given(make_folder(THREE), make_folder(THREE, "test", first=1), other=make_folder({"rocket": 9}, "other"))
    for name, one in (("one", encoder), ("two", smaller)):
        write_results(evaluate_encoder(one, given, ["knn", "ood"]), tmp_path / name / "evaluation.json")
    found = compare_runs([tmp_path / "one", tmp_path / "two"])
    assert found.notices == []
    assert {("knn", "top1"), ("ood", "knn_auroc")} <= found.differences["two"].keys()
    assert "in k-NN" in verdicts(found)[0]


def test_runs_without_a_common_protocol(runs: list[Path]) -> None:
    for run, kept in zip(runs, ("knn", "retrieval"), strict=False):
        data = json.loads((run / "evaluation.json").read_text())
        data["results"] = [result for result in data["results"] if result["protocol"] == kept]
        (run / "evaluation.json").write_text(json.dumps(data))
    found = compare_runs(runs[:2])
    assert found.differences == {"second": {}}
    assert "no headline number in common" in render(found)


@pytest.mark.slow
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), junk=st.sampled_from(JUNK), how=st.sampled_from(["out", "replaced"]))
def test_a_strangers_evaluation_is_compared_or_refused(
    data: st.DataObject, junk: Any, how: str, runs: list[Path], tmp_path: Path
) -> None:
    content = json.loads((runs[1] / "evaluation.json").read_text())
    twist = twisted(content, data.draw(st.sampled_from(list(ways(content)))), junk, how)
    stranger = tmp_path / "stranger"
    stranger.mkdir(exist_ok=True)
    (stranger / "evaluation.json").write_text(json.dumps(twist))
    (stranger / "evaluation.npz").write_bytes((runs[1] / "evaluation.npz").read_bytes())
    try:
        told = render(compare_runs([runs[0], stranger]))
    except UserError as error:
        told = str(error)
    assert "stranger" in told


@pytest.mark.parametrize("values", [np.array(1.0), np.array(["a", "b"]), np.zeros(0), np.zeros((2, 2, 2))])
def test_items_that_are_no_numbers_are_refused(runs: list[Path], values: Any) -> None:
    np.savez(runs[1] / "evaluation.npz", **{"knn/run/top1": values})
    with pytest.raises(UserError, match=r"it or its \.npz cannot be read"):
        compare_runs(runs[:2])
