"""Recall@k against the golden `eval_recall_at_k`: leave-one-out, and queries against a gallery."""

from __future__ import annotations

import numpy as np
import torch
from core_helpers import Load

from belvedere.evaluate.protocols.retrieval import found, recall_at
from belvedere.measure.knn import top_neighbours


def test_leave_one_out(golden: Load) -> None:
    g = golden("eval_recall_at_k")
    x, labels = g["X"], g["T"]
    same = found(x, labels, torch.arange(len(x)), int(max(g["loo_ks"])))
    assert np.array_equal([recall_at(same, int(k)).mean() for k in g["loo_ks"]], g["loo_recall"])


def test_queries_and_gallery(golden: Load) -> None:
    g = golden("eval_recall_at_k")
    x, labels, n = g["X"], g["T"], int(g["n_query"])
    _, index = top_neighbours(x[n:], x[:n], int(max(g["inshop_ks"])))
    same = labels[n:][index] == labels[:n, None]
    assert np.array_equal([recall_at(same, int(k)).mean() for k in g["inshop_ks"]], g["inshop_recall"])
