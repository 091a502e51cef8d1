"""IRT's loss and memory against the goldens `irt_loss` and `koleo` (spec patch_and_pretext 6)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_helpers import Load
from torch import Tensor

from belvedere.objectives._koleo import EPS, koleo
from belvedere.objectives.contrastive_metric import ContrastiveMetric, ContrastiveMetricOptions, contrastive
from belvedere.schedules import Clock

CLOCK = Clock(0, 1, 1)


def whole_koleo(x: Tensor) -> Tensor:
    """The mean over a batch of vectors of any length."""
    z = F.normalize(x, dim=-1, eps=EPS)
    return koleo(z, z, torch.arange(len(z))).mean()


def gradient(loss: Tensor, x: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, x, retain_graph=True)
    return found


@pytest.mark.parametrize(
    ("vectors", "suffix", "atol"), [("x", "dinov2", 2e-5), ("x_with_duplicate", "duplicate", 1e-4)]
)
def test_koleo_is_dinov2s(golden: Load, vectors: str, suffix: str, atol: float) -> None:
    g = golden("koleo")
    x = g[vectors].requires_grad_()
    loss = whole_koleo(x)
    names = ("loss_dinov2", "grad_x_dinov2") if suffix == "dinov2" else ("loss_with_duplicate", "grad_with_duplicate")
    torch.testing.assert_close(loss, g[names[0]], atol=atol, rtol=1e-5)
    torch.testing.assert_close(gradient(loss, x), g[names[1]], atol=atol, rtol=1e-3)


def test_koleo_is_the_papers_and_spreading_vectors_but_for_a_constant(golden: Load) -> None:
    g = golden("koleo")
    x = g["x"].requires_grad_()
    loss = whole_koleo(x)
    torch.testing.assert_close(loss, g["loss_paper"].float(), atol=2e-5, rtol=0)
    torch.testing.assert_close(loss - math.log(len(x)), g["loss_spreading_vectors"], atol=2e-5, rtol=0)
    for name in ("grad_x_paper", "grad_x_spreading_vectors"):
        torch.testing.assert_close(gradient(loss, x), g[name].float(), atol=2e-5, rtol=1e-4)


def objective_of(g: Any) -> ContrastiveMetric:
    options = ContrastiveMetricOptions(margin=float(g["beta"]), koleo=float(g["koleo_lambda"]), memory=len(g["memory"]))
    objective = ContrastiveMetric(options, g["memory"].shape[1])
    objective.remember(F.normalize(g["memory"], dim=-1), g["memory_labels"])
    return objective


def test_the_loss_is_the_papers(golden: Load) -> None:
    g = golden("irt_loss")
    x, labels = g["embeddings"].requires_grad_(), g["labels"]
    z = F.normalize(x, dim=-1)
    margin = float(g["beta"])
    memory = F.normalize(g["memory"], dim=-1)
    batch = contrastive(z, labels, z, labels, margin).mean()
    past = contrastive(z, labels, memory, g["memory_labels"], margin).mean()
    torch.testing.assert_close(batch, g["paper_batch"], atol=2e-5, rtol=0)
    torch.testing.assert_close(past, g["paper_memory"], atol=2e-5, rtol=0)
    torch.testing.assert_close(whole_koleo(x), g["koleo"], atol=2e-5, rtol=0)
    objective = objective_of(g)
    whole = objective.per_image(objective.embed({"global_a": {"cls": z}}, {}, CLOCK, labels)).mean()
    torch.testing.assert_close(whole, g["paper_total"], atol=2e-5, rtol=0)
    torch.testing.assert_close(gradient(whole, x), g["grad_embeddings"], atol=2e-5, rtol=0)


def test_the_published_code_only_adds_the_margin_of_active_negatives(golden: Load) -> None:
    """Its loss is higher by a constant, so the gradient of the difference is 0."""
    g = golden("irt_loss")
    x, labels = g["embeddings"].requires_grad_(), g["labels"]
    z, margin = F.normalize(x, dim=-1), float(g["beta"])
    others = {"batch": (z, labels), "memory": (F.normalize(g["memory"], dim=-1), g["memory_labels"])}
    for place, (vectors, classes) in others.items():
        active = margin * int(g[f"n_neg_over_margin_{place}"]) / len(x)
        ours = contrastive(z, labels, vectors, classes, margin).mean()
        torch.testing.assert_close(ours + active, g[f"xbm_code_{place}"], atol=2e-5, rtol=0)
        # The code's form, written out: every active negative costs its cosine, which is the margin more.
        cosines = z @ vectors.T
        same = labels[:, None] == classes
        codes = ((1 - cosines) * same + cosines * (~same & (cosines > margin))).sum(1).mean()
        torch.testing.assert_close(gradient(codes - ours, x), torch.zeros_like(x), atol=1e-6, rtol=0)


def test_the_memory_is_xbms(golden: Load) -> None:
    g = golden("irt_loss")
    objective = ContrastiveMetric(ContrastiveMetricOptions(memory=10), 4)
    for step in range(4):
        objective.remember(g[f"queue.s{step}.feats"], g[f"queue.s{step}.labels"])
        filled = objective.memory_labels >= 0
        assert torch.equal(objective.memory[filled], g[f"queue.s{step}.get_feats"])
        assert torch.equal(objective.memory_labels[filled], g[f"queue.s{step}.get_labels"])
        assert int(objective.next) == int(g[f"queue.s{step}.ptr"])
