"""Indices of clusterings against the golden `eval_classification` (scikit-learn; iBOT's published matching)."""

from __future__ import annotations

import pytest
from core_helpers import Load

from belvedere.evaluate.protocols.cluster import agreement, matching


def test_agreement_and_matched_accuracy(golden: Load) -> None:
    g = golden("eval_classification")
    truth, clusters = g["labels"].numpy(), g["clusters"].numpy()
    found = agreement(truth, clusters, seed=0)
    for name in ("nmi", "ari", "fmi"):
        assert found[name].value / 100 == pytest.approx(float(g[name]), abs=1e-6)
        assert found[name].low < found[name].value < found[name].high
    best = matching(truth, clusters, g["logits"].shape[1])
    assert (best[clusters] == truth).mean() == pytest.approx(float(g["cluster_acc"]), abs=1e-6)
