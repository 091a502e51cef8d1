"""The papers' own metrics against the benchmarks' code: retrieval, video, copies, boxes; each with its known trap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from core_helpers import Load, assert_close
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor

from belvedere.evaluate.metrics import coco, copy_detection, label_propagation, revisited
from belvedere.evaluate.metrics.coco import Objects, detection_precision

DIFFICULTIES: dict[str, revisited.Difficulty] = {"E": "easy", "M": "medium", "H": "hard"}


# --- revisited Oxford and Paris ---------------------------------------------------------------------------------------


def scores(g: Any, order: str, difficulty: revisited.Difficulty) -> revisited.Found:
    a = g.arrays
    return revisited.revisited(a[order].T, a["easy"], a["hard"], a["junk"], difficulty, a["ks"].tolist())


@pytest.mark.parametrize(("order", "prefix"), [("ranks", ""), ("rand_ranks", "rand_")])
@pytest.mark.parametrize("letter", DIFFICULTIES)
def test_revisited_retrieval(golden: Load, letter: str, order: str, prefix: str) -> None:
    g = golden("eval_retrieval_revisited")
    found = scores(g, order, DIFFICULTIES[letter])
    for value, name in (
        (found.mean_average_precision, "map"),
        (found.average_precision, "aps"),
        (found.mean_precision, "mpr"),
        (found.precision, "prs"),
    ):
        np.testing.assert_allclose(value, g.arrays[f"{prefix}{name}_{letter}"], rtol=0, atol=1e-12)


def test_retrieval_where_a_query_has_nothing_to_find(golden: Load) -> None:
    g = golden("retrieval_metrics")
    order = np.argsort(-g.arrays["sim_gallery_by_query"].T, axis=1)
    ok, junk = np.zeros((2, *order.shape), bool)
    for query in range(len(order)):
        ok[query, g.arrays[f"gnd{query}.ok"]] = True
        junk[query, g.arrays[f"gnd{query}.junk"]] = True
    found = revisited.revisited(order, ok, np.zeros_like(ok), junk, "easy", [1, 5, 10])
    assert np.isnan(found.average_precision[3])
    assert found.mean_average_precision == pytest.approx(g["map"].item(), abs=1e-6)
    np.testing.assert_allclose(found.average_precision, g.arrays["aps"], atol=1e-6)
    np.testing.assert_allclose(found.mean_precision, g.arrays["mpr_at_1_5_10"], atol=1e-6)


def test_neither_rectangles_nor_junk_left_in_give_the_benchmarks_number(golden: Load) -> None:
    g = golden("eval_retrieval_revisited")
    easy, hard, junk = (g.arrays[name] for name in ("easy", "hard", "junk"))
    asked = easy.any(1)
    ignored = junk | hard
    rectangles = [
        average_precision_score(easy[q, ~ignored[q]], g.arrays["sim"].T[q, ~ignored[q]]) for q in np.flatnonzero(asked)
    ]
    assert abs(np.mean(rectangles) - g["map_E"].item()) > 0.01
    with_junk = revisited.revisited(g.arrays["ranks"].T, easy, hard & False, junk & False, "easy", [1])
    assert abs(with_junk.mean_average_precision - g["map_E"].item()) > 0.01


# --- DAVIS: label propagation -----------------------------------------------------------------------------------------


def frames(g: Any) -> Tensor:
    """(T, D, h, w) patch features."""
    return g["feats"].transpose(1, 2).unflatten(2, tuple(g["grid"].tolist()))


def settings(g: Any) -> dict[str, Any]:
    return {
        "context": int(g["n_last_frames"]),
        "kept": int(g["topk"]),
        "radius": int(g["size_mask_neighborhood"]),
        "temperature": g["temperature"].item(),
    }


def test_labels_propagate(golden: Load) -> None:
    g = golden("eval_label_propagation")
    truth = g.arrays["gt_masks"]
    first = label_propagation.patch_labels(truth[0], tuple(g["grid"].tolist()), objects=2)
    assert torch.equal(first, g["first_seg"][0])
    soft = list(label_propagation.propagate(frames(g), first, **settings(g)))
    assert_close(torch.stack(soft), g["seg"], 1e-5)
    masks = [label_propagation.to_mask(labels, int(g["patch_size"]), truth.shape[1:]) for labels in soft]
    assert (np.stack(masks) == g.arrays["pred_masks"][1:]).mean() >= 0.999


def test_video_scores(golden: Load) -> None:
    g = golden("eval_label_propagation")
    found = label_propagation.score(g.arrays["pred_masks"], g.arrays["gt_masks"])
    np.testing.assert_allclose(found.region, g.arrays["J"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.boundary, g.arrays["F"], rtol=0, atol=1e-9)
    assert found.mean == pytest.approx(g["JF_mean"].item(), abs=1e-9)
    for values, name in ((found.region, "J_stats"), (found.boundary, "F_stats")):
        for row, expected in zip(values, g.arrays[name], strict=True):
            told = label_propagation.statistics(row)
            np.testing.assert_allclose((told.mean, told.recall, told.decay), expected, rtol=0, atol=1e-9)


def test_soft_labels_are_carried_on_and_not_their_arg_max(golden: Load) -> None:
    g = golden("eval_label_propagation")
    video = frames(g)
    labels = g["first_seg"][0]
    for t in range(1, 3):
        (labels,) = label_propagation.propagate(video[t - 1 : t + 1], labels, **settings(g))
        labels = torch.nn.functional.one_hot(labels.argmax(0), len(labels)).permute(2, 0, 1).float()
    assert (labels - g["seg"][1]).abs().max() > 0.1


# --- copies -----------------------------------------------------------------------------------------------------------


def described(g: Any) -> dict[str, Tensor]:
    power, eps = int(g["gem_power"]), g["gem_eps"].item()
    tokens = {name: g[f"tokens_{whole}"] for name, whole in (("db", "db"), ("q", "q"), ("w", "whiten"))}
    return {name: copy_detection.descriptors(x[:, 0], x[:, 1:], power, eps) for name, x in tokens.items()}


def test_copy_descriptors(golden: Load) -> None:
    g = golden("eval_copy_detection")
    for name, found in described(g).items():
        assert_close(found, g[f"desc_{name}"], 1e-6)


def test_copies_are_found(golden: Load) -> None:
    g = golden("eval_copy_detection")
    x, original, top = described(g), g.arrays["positive"], int(g["topk"])
    raw = copy_detection.copy_average_precision(x["q"], x["db"], original, top)
    np.testing.assert_array_equal(raw, g.arrays["ap_raw"])
    whiten = copy_detection.Whitening.learn(x["w"])
    queries, database = whiten(x["q"]), whiten(x["db"])
    assert_close(copy_detection.similarities(queries, database), g["sim_whitened"], 1e-5)
    whitened = copy_detection.copy_average_precision(queries, database, original, top)
    np.testing.assert_array_equal(whitened, g.arrays["ap_whitened"])
    assert whitened.mean() == pytest.approx(g["map_whitened"].item(), abs=1e-12)
    # Whitening learned on images of another kind can ruin a ranking, so both numbers are always shown.
    assert whitened.mean() < raw.mean() == pytest.approx(g["map_raw"].item(), abs=1e-12)


def test_a_covariance_about_the_mean_is_another_whitening(golden: Load) -> None:
    g = golden("eval_copy_detection")
    x = described(g)
    centred = copy_detection.Whitening.learn(x["w"] - x["w"].mean(0))
    centred = copy_detection.Whitening(x["w"].double().mean(0), centred.map)
    similarity = copy_detection.similarities(centred(x["q"]), centred(x["db"]))
    assert (similarity - g["sim_whitened"]).abs().max() > 0.01


# --- boxes ------------------------------------------------------------------------------------------------------------


def objects(g: Any, kind: str) -> list[Objects]:
    """What is in every image ("gt"), or was found there ("dt")."""
    images: NDArray[np.int64] = g.arrays[f"{kind}_image"]
    found = []
    for image in np.union1d(g.arrays["gt_image"], g.arrays["dt_image"]):
        rows = torch.from_numpy(np.flatnonzero(images == image))
        score = g["dt_score"][rows] if kind == "dt" else None
        found.append(Objects(g[f"{kind}_box_xywh"][rows], g[f"{kind}_cat"][rows], score))
    return found


def test_coco_boxes(golden: Load) -> None:
    g = golden("eval_coco_box")
    found = detection_precision(objects(g, "dt"), objects(g, "gt"))
    assert list(found) == list(coco.NAMES)
    np.testing.assert_allclose(list(found.values()), g.arrays["stats"], rtol=0, atol=1e-6)


def test_the_librarys_own_thresholds_miss_a_level_of_recall(golden: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    g = golden("eval_coco_box")
    monkeypatch.setattr(coco, "OVERLAPS", None)
    monkeypatch.setattr(coco, "RECALLS", None)
    found = detection_precision(objects(g, "dt"), objects(g, "gt"))
    assert np.abs(np.array(list(found.values())) - g.arrays["stats"]).max() > 1e-4
