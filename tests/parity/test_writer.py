"""Pages as vectors against the published code of writer retrieval (spec patch_and_pretext 8)."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Load, assert_close
from torch import Tensor

from belvedere.evaluate.metrics.vlad import foreground, reranked, vlad, whitened
from belvedere.evaluate.protocols.retrieval import average_precision, found, recall_at


def scores(vectors: Tensor, writer: Tensor) -> tuple[float, float]:
    """Top-1 and mAP, every page with a partner asking all others."""
    partners = torch.bincount(writer)[writer] - 1
    asked = (partners > 0).nonzero().squeeze(1)
    same = found(vectors, writer, asked, len(writer) - 1)
    return float(recall_at(same, 1).mean()), float(average_precision(same, partners[asked]).mean())


@pytest.mark.parametrize(("name", "tolerance"), [("vlad", 1e-5), ("vlad_gmp", 5e-3)])
def test_residuals_are_pooled_centre_by_centre(golden: Load, name: str, tolerance: float) -> None:
    g = golden("writer_vlad")
    gamma = float(g["gmp_gamma"]) if name == "vlad_gmp" else None
    pages = g["descriptors"].tensor_split(g["doc_offsets"][1:-1])
    assert_close(torch.stack([vlad(page, g["centers"], gamma) for page in pages]), g[name], tolerance)


def test_whitening_and_reranking_give_the_published_cosines(golden: Load) -> None:
    g = golden("writer_vlad")
    white = whitened(g["vlad"][:: int(g["pca_fit_rows_step"])], g["vlad"], int(g["pca_dims"]), seed=0)
    assert_close(white @ white.T, g["pca_whitened_cosine"], 1e-3)
    for name, reciprocal in (("krnn_cosine", True), ("knn_nonreciprocal_cosine", False)):
        again = reranked(white, int(g["krnn_k"]), reciprocal)
        assert_close(again @ again.T, g[name], 1e-3)
    again = reranked(white, int(g["krnn_k"]))
    for vectors, which in ((g["vlad"], "raw"), (white, "pca"), (again, "krnn")):
        top1, mean = scores(vectors, g["writer"])
        assert (top1, mean) == pytest.approx((float(g[f"top1_{which}"]), float(g[f"map_{which}"])), abs=1e-6)


def test_a_page_without_partner_is_found_but_does_not_ask(golden: Load) -> None:
    g = golden("writer_vlad")
    writer = g["writer"].clone()
    writer[0] = 6  # the distractor
    expected = float(g["top1_with_distractor"]), float(g["map_with_distractor"])
    assert scores(g["vlad"], writer) == pytest.approx(expected, abs=1e-6)


def test_patches_on_ink_are_kept(golden: Load) -> None:
    g = golden("writer_attmask")
    least, patch = int(g["foreground_threshold"]), int(g["patch_size"])
    windows = 255 * g["binary_window"][:, None]
    grid = windows.shape[2] // patch, windows.shape[3] // patch
    assert torch.equal(foreground(windows, grid, least, 128, "light"), g["foreground"])
    assert torch.equal(foreground(255 - windows, grid, least, 128, "dark"), g["foreground"])
    assert foreground(windows, grid, 0, 128, "dark").all()
