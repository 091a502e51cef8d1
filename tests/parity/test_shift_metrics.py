"""Outliers, calibration, Frechet distance and Inception score against the goldens `eval_ood_msp` and `eval_fid_is`."""

from __future__ import annotations

import numpy as np
import pytest
from core_helpers import Load

from belvedere.evaluate.metrics.frechet import frechet_distance
from belvedere.evaluate.metrics.inception import inception_score
from belvedere.evaluate.metrics.outliers import Ranked, aurra, rms_calibration_error
from belvedere.evaluate.protocols.ood import confidence, masked


def test_masked_softmax_tells_outliers_as_published(golden: Load) -> None:
    g = golden("eval_ood_msp")
    kept = g["class_mask"].numpy()
    inside, outside = (confidence(masked(g[name].numpy(), kept)) for name in ("logits_in", "logits_out"))
    assert np.allclose(inside, g["conf_in"].numpy(), atol=1e-6)
    assert np.allclose(outside, g["conf_out"].numpy(), atol=1e-6)
    # The published numbers are of float32 softmax, whose ties the stored confidences keep.
    found = Ranked(-g["conf_in"].numpy(), -g["conf_out"].numpy()).measure()
    assert found.aupr_out == pytest.approx(float(g["aupr"]), abs=1e-6)
    assert found.auroc == pytest.approx(float(g["auroc"]), abs=1e-6)
    assert found.fpr95_published == pytest.approx(float(g["fpr95"]), abs=1e-6)


def test_a_softmax_before_the_mask_gives_the_wrong_number(golden: Load) -> None:
    g = golden("eval_ood_msp")
    wrong = float(g["aupr_without_class_mask"])
    inside, outside = (confidence(g[name].numpy()) for name in ("logits_in", "logits_out"))
    assert Ranked(-inside, -outside).measure().aupr_out == pytest.approx(wrong, abs=1e-6)
    assert abs(wrong - float(g["aupr"])) > 0.05


def test_calibration_as_published(golden: Load) -> None:
    g = golden("eval_ood_msp")
    answers = masked(g["logits_in"].numpy(), g["class_mask"].numpy()).argmax(1)
    truth = np.flatnonzero(g["class_mask"].numpy())[g["labels_in"].numpy()]
    right, sure = (answers == truth).astype(np.float64), g["conf_in"].numpy()
    assert right.mean() == pytest.approx(float(g["acc_in"]))
    assert rms_calibration_error(sure, right, published=True) == pytest.approx(float(g["rms_calib_err"]), abs=1e-6)
    # Ours also counts the most confident bin.
    assert rms_calibration_error(sure, right) > float(g["rms_calib_err"]) + 0.01
    assert aurra(sure, right) == pytest.approx(float(g["aurra"]), abs=1e-6)


def test_frechet_distance(golden: Load) -> None:
    g = golden("eval_fid_is")
    first, second, few = (g[name].numpy() for name in ("feats_a", "feats_b", "feats_rank_deficient"))
    assert frechet_distance(first, second) == pytest.approx(float(g["fid"]), rel=1e-5)
    assert frechet_distance(second, few) == pytest.approx(float(g["fid_rank_deficient"]), rel=1e-5)
    assert frechet_distance(few, second) == pytest.approx(float(g["fid_rank_deficient"]), rel=1e-5)


def test_inception_score(golden: Load) -> None:
    g = golden("eval_fid_is")
    probabilities, splits = g["probs"].double().numpy(), int(g["splits"])
    mean, std = inception_score(probabilities, splits)
    assert mean == pytest.approx(float(g["is_mean"]), abs=1e-5)
    assert std == pytest.approx(float(g["is_std"]), abs=1e-5)


def test_inception_score_at_its_ends() -> None:
    """One class each, told with certainty, is the number of classes; the same answer for every image is 1."""
    assert inception_score(np.tile(np.eye(5), (4, 1)), splits=2) == pytest.approx((5, 0))
    assert inception_score(np.full((20, 5), 0.2)) == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="3 rows for 10 parts"):
        inception_score(np.eye(3))
