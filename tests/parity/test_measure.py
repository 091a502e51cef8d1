"""k-NN and diagnostics against the official implementations' numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere.evaluate.intervals import f1_scores, resample
from belvedere.evaluate.metrics.voc import voc11_map
from belvedere.evaluate.scores import classification
from belvedere.measure import health, knn
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot

Load = Callable[[str], Any]
EXACT = {"rtol": 0.0, "atol": 1e-8}


def settings(g: Any) -> list[tuple[str, int, float]]:
    """(prefix, k, T) of every setting stored in `knn_classifier`."""
    prefixes = sorted({name.rsplit(".", 1)[0] for name in g.names if name.endswith(".votes")})
    found = [(p, re.fullmatch(r"k(\d+)_T([\d.]+)", p)) for p in prefixes]
    return [(p, int(m.group(1)), float(m.group(2))) for p, m in found if m]


def test_knn_classifier(golden: Load) -> None:
    g = golden("knn_classifier")
    assert len(settings(g)) == 5
    for prefix, k, temperature in settings(g):
        classes = g.hparams["num_classes"]
        votes = knn.knn_votes(
            g["train_features"], g["train_labels"], g["test_features"], k, temperature, num_classes=classes
        )
        torch.testing.assert_close(votes, g[f"{prefix}.votes"], rtol=1e-4, atol=1e-4)
        best = knn.best_classes(votes, 5)
        assert torch.equal(best[:, 0], g[f"{prefix}.pred"])
        hits = best == g["test_labels"][:, None]
        assert 100 * hits[:, 0].double().mean().item() == pytest.approx(g[f"{prefix}.top1"].item())
        # The official code looks at min(5, k) classes, and below k = 5 at classes without a vote in any order.
        if k > 5:
            assert 100 * hits.any(1).double().mean().item() == pytest.approx(g[f"{prefix}.top5"].item())
        accuracy = knn.knn_accuracy(
            g["train_features"],
            g["train_labels"],
            g["test_features"],
            g["test_labels"],
            k,
            temperature,
            num_classes=classes,
        )
        assert accuracy == pytest.approx(g[f"{prefix}.top1"].item())


def test_knn_ties(golden: Load) -> None:
    g = golden("eval_knn_ties")
    ties = 0
    for row, k in enumerate(g["ks"].tolist()):
        cosines, index = knn.ordered_topk(g["sims"], k)
        votes = knn.count_votes(cosines, g["gallery_labels"][index], int(g["num_classes"]), g["temperature"].item())
        defined = g["row_is_defined"][row]
        torch.testing.assert_close(votes[defined].double(), g["votes"][row][defined], rtol=1e-5, atol=1e-5)
        best = knn.best_classes(votes).squeeze(1)
        assert g["top1_allowed"][row].gather(1, best[:, None]).squeeze(1)[defined].all()
        # Where the tie survives rounding, the lowest class index wins.
        tied = defined & ((votes == votes.amax(1, keepdim=True)).sum(1) > 1)
        assert torch.equal(best[tied], g["top1_lowest_index"][row][tied])
        ties += int(tied.sum())
        if defined.all():
            # The official code breaks a tie of votes by chance, and stays within what any rule could score.
            right = g["top1_allowed"][row].gather(1, g["query_labels"][:, None]).squeeze(1)
            certain = right & (g["top1_allowed"][row].sum(1) == 1)
            official = g["official_top1_percent"][row].item()
            assert 100 * certain.double().mean() - 1e-6 <= official <= 100 * right.double().mean() + 1e-6
    assert ties > 0


def test_spectra(golden: Load) -> None:
    g = golden("eval_diagnostics")
    for name in ("Z", "Zlow", "Zconst"):
        assert health.rankme(g[name]) == pytest.approx(g[f"rankme_{name}"].item(), abs=1e-8)
    assert health.rankme(g["Z"], eps=1e-5) == pytest.approx(g["rankme_Z_eps1e-5"].item(), abs=1e-8)
    spectrum = health.covariance_spectrum(g["Z"])
    torch.testing.assert_close(spectrum, g["eig"], **EXACT)
    fit = health.alpha_req(spectrum, g["powerlaw_range"])
    assert fit.alpha == pytest.approx(g["alpha_req"].item(), abs=1e-8)
    assert health.participation_ratio(spectrum) == pytest.approx(g["participation_ratio"].item(), abs=1e-8)


def test_lidar(golden: Load) -> None:
    g = golden("eval_diagnostics")
    groups = g["lidar_emb"].unflatten(0, (int(g["lidar_n_classes"]), int(g["lidar_q"])))
    value = health.lidar(groups, delta=g["lidar_delta"].item(), eps=g["lidar_eps"].item())
    assert value == pytest.approx(g["lidar"].item(), abs=1e-8)


def test_sphere(golden: Load) -> None:
    g = golden("eval_diagnostics")
    assert health.alignment(g["au_x"], g["au_y"]) == pytest.approx(g["align"].item(), abs=1e-8)
    assert health.uniformity(g["au_x"]) == pytest.approx(g["uniform"].item(), abs=1e-8)
    for name in ("Z", "Zlow", "Zconst"):
        std = health.feature_std(g[name]) / g[name].shape[1] ** 0.5
        assert std == pytest.approx(g[f"std_{name}"].item(), abs=1e-8)


def test_entropies(golden: Load) -> None:
    g = golden("eval_diagnostics")
    split = health.entropy_split(
        g["teacher_logits"], g["student_logits"], g["center"], g["tau_t"].item(), g["tau_s"].item()
    )
    expected: dict[str, Tensor] = {"ce": g["ce"], "entropy": g["teacher_entropy"], "kl": g["kl"]}
    for name, value in expected.items():
        torch.testing.assert_close(getattr(split, name), value, **EXACT)
    torch.testing.assert_close(health.attention_entropy(g["attn"]), g["attn_entropy"], **EXACT)


def test_overlap_of_crops(golden: Load) -> None:
    g = golden("eval_diagnostics")
    width, height, left, top, w, h = torch.stack([g["crop1"], g["crop2"]]).unbind(-1)
    slots = [Slot(name, (8, 8), (0.5, 1.0)) for name in ("a", "b")]
    sizes = list(zip(height[0].tolist(), width[0].tolist(), strict=True))
    record = replace(sample_views(slots, range(len(sizes)), sizes, 0, 0), left=left, top=top, w=w, h=h)
    torch.testing.assert_close(record.iou("a", "b").double(), g["crop_iou"], rtol=0.0, atol=1e-5)


def test_classification_scores(golden: Load) -> None:
    g = golden("eval_classification")
    truth = g.arrays["labels"]
    ranking = knn.best_classes(g["logits"], 5).numpy()
    counts = resample(len(truth), 0, draws=10)
    found = classification(ranking, truth, g["logits"].shape[1], counts)
    names = {name: name for name in ("top1", "top5", "macro_f1", "weighted_f1")} | {"balanced": "mean_per_class"}
    assert found.keys() == names.keys() | {"macro_precision"}
    for metric, name in names.items():
        assert found[metric].value / 100 == pytest.approx(g[name].item(), abs=1e-6)
        assert found[metric].low < found[metric].value < found[metric].high


def test_macro_scores_are_of_the_classes_that_are_there(golden: Load) -> None:
    g = golden("malware_macro_metrics")
    macro, _, precision = f1_scores(g.arrays["y_true"], g.arrays["y_pred"], resample(len(g["y_true"]), 0, draws=10))
    assert macro.value / 100 == pytest.approx(g["macro_f1"].item(), abs=1e-6)
    assert precision.value / 100 == pytest.approx(g["macro_precision"].item(), abs=1e-6)
    assert precision.low < precision.value < precision.high


def test_eleven_points_of_voc(golden: Load) -> None:
    g = golden("eval_classification")
    scores, truth = g.arrays["ml_scores"], g.arrays["multilabel"]
    assert voc11_map(scores, truth) == pytest.approx(g["voc11_map"].item(), abs=1e-6)
    # A class that no image shows takes no part.
    more = np.pad(truth, ((0, 0), (0, 1))), np.pad(scores, ((0, 0), (0, 1)), constant_values=0.5)
    assert voc11_map(more[1], more[0]) == pytest.approx(g["voc11_map"].item(), abs=1e-6)
