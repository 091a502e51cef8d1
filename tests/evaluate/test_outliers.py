"""Outliers: the measures against scikit-learn and by hand, the protocol on real images, and sets users really have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from belvedere.evaluate.metrics.outliers import Ranked, aurra, rms_calibration_error
from belvedere.evaluate.protocols.ood import knn_distance, mahalanobis
from belvedere.evaluate.suite import Given, evaluate_encoder
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder

Make = Callable[..., Canvases]
THREE = dict.fromkeys(("astronaut", "coffee", "retina"), 12)
SCORES = {"knn", "mahalanobis", "softmax", "energy"}


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), known=st.integers(1, 30), outliers=st.integers(1, 30), levels=st.integers(1, 40))
def test_measures_are_scikit_learns_with_ties_and_in_draws(seed: int, known: int, outliers: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    inside, outside = (rng.integers(levels, size=n).astype(float) for n in (known, outliers))
    n, m = rng.integers(3, size=known).astype(np.uint8), rng.integers(3, size=outliers).astype(np.uint8)
    n[0], m[0] = 1, 1
    ranked, truth = Ranked(inside, outside), np.repeat([0, 1], (known, outliers))
    both = np.concatenate([inside, outside])
    for found, weight in ((ranked.measure(), None), (ranked.measure(n, m), np.concatenate([n, m]).astype(float))):
        assert found.auroc == pytest.approx(roc_auc_score(truth, both, sample_weight=weight))
        assert found.aupr_out == pytest.approx(average_precision_score(truth, both, sample_weight=weight))
        assert found.aupr_in == pytest.approx(average_precision_score(1 - truth, -both, sample_weight=weight))
    thresholds = np.unique(both)
    passing = [(inside >= t).mean() for t in thresholds if (outside >= t).mean() >= 0.95]
    assert ranked.measure().fpr95 == pytest.approx(min(passing))


def test_the_two_conventions_of_fpr95_differ_where_no_threshold_finds_95_percent() -> None:
    inside = np.array([9.0, 10.0, 10.5, 30.0])
    # Thresholds find 93 % at a false alarm for 30, then for 10.5 too, or everything at three.
    found = Ranked(inside, np.append(np.full(93, 15.0), np.full(7, 10.0))).measure()
    assert found.fpr95 == pytest.approx(3 / 4)
    assert found.fpr95_published == pytest.approx(2 / 4)


def test_a_classifier_that_knows_itself_is_calibrated() -> None:
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, 5000)
    right = (rng.uniform(size=5000) < sure).astype(float)
    assert rms_calibration_error(sure, right) < 0.08
    assert rms_calibration_error(sure, np.zeros(5000)) > 0.7
    assert aurra(sure, right) > right.mean() > aurra(-sure, right)
    few = rms_calibration_error(np.array([0.9, 0.8]), np.array([1.0, 0.0]))
    assert few == pytest.approx(0.35)  # one bin: mean confidence .85, accuracy .5


def test_distances_by_hand() -> None:
    train = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert knn_distance(train, torch.tensor([[2.0, 0.0]]), 1) == pytest.approx([0.0], abs=1e-3)
    assert knn_distance(train, torch.tensor([[2.0, 0.0]]), 9) == pytest.approx([np.sqrt(2)], rel=1e-6)
    rng = np.random.default_rng(1)
    spread = torch.from_numpy(rng.standard_normal((400, 6)) * [1, 1, 1, 1, 1, 0.01] + [0, 0, 0, 0, 8, 0])
    away = mahalanobis(spread, torch.tensor([[0, 0, 0, 0, 8, 1.0], [1.0, 0, 0, 0, 8, 0]]))
    assert away[0] > 3 * away[1]  # a step where nothing varies is a long one


def test_outliers_of_other_photographs(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(THREE), make_folder(THREE, "test", first=1)
    other = make_folder({"immunohistochemistry": 15}, "other")
    (result,) = evaluate_encoder(encoder, Given(train, test, other=other), ["ood"])
    assert "error" not in result.settings
    for name, numbers in result.metrics.items():
        assert {key.split("_")[0] for key in numbers if key.endswith("auroc")} == SCORES
        for key, number in numbers.items():
            assert 0 <= number.low <= number.value <= number.high <= 100, (name, key)
    for name, values in result.items.items():
        for metric, one in values.items():
            assert 100 * one.mean() == pytest.approx(result.metrics[name][metric].value), metric
    assert result.metrics["pixels"]["knn_auroc"].value > 60
    again = evaluate_encoder(encoder, Given(train, test, other=other), ["ood"])[0]
    assert again.metrics == result.metrics


def test_without_labels_the_two_distances_remain(make_folder: Make, encoder: Encoder) -> None:
    train, other = make_folder({"coffee": 20}), make_folder({"retina": 8}, "other")
    (result,) = evaluate_encoder(encoder, Given(train, other=other), ["ood"])
    assert {key.split("_")[0] for key in result.metrics["run"]} == {"knn", "mahalanobis"}
    assert result.chosen == {}


def test_known_classes_as_imagenet_o_has_them(make_folder: Make, encoder: Encoder) -> None:
    train, test = make_folder(THREE), make_folder(THREE, "test", first=1)
    given_all = {"train": train, "test": test, "other": make_folder({"rocket": 9}, "other")}
    options = {"ood": {"classes": ["coffee", "retina"]}}
    (result,) = evaluate_encoder(encoder, Given(**given_all, options=options), ["ood"])
    assert result.settings["known_images"] == 24
    assert len(result.items["run"]["top1"]) == 24
    (every,) = evaluate_encoder(encoder, Given(**given_all), ["ood"])
    assert result.metrics["run"]["top1"].value >= 100 * every.items["run"]["top1"][12:].mean()
    options = {"ood": {"classes": ["cofee"]}}
    (result,) = evaluate_encoder(encoder, Given(**given_all, options=options), ["ood"])
    assert result.settings["error"] == "ood.classes: no class 'cofee', did you mean 'coffee'?"


@pytest.mark.parametrize("labelled", [True, False])
def test_tiny_sets_of_outliers_give_a_result(make_folder: Make, encoder: Encoder, labelled: bool) -> None:
    train = make_folder({"coffee": 2, "rocket": 1} if labelled else {"coffee": 3})
    test = make_folder({"coffee": 2, "chelsea": 1}, "test", first=1)
    (result,) = evaluate_encoder(encoder, Given(train, test, other=make_folder({"retina": 2}, "other")), ["ood"])
    assert "error" not in result.settings
    assert all(0 <= n.low <= n.value <= n.high <= 100 for n in result.metrics["run"].values())
