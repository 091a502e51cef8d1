"""Attention masks and their Jaccard indices against the golden `eval_attention_masks`."""

from __future__ import annotations

import pytest
import torch
from core_helpers import Load

from belvedere.evaluate.protocols.attention import object_masks, scores
from belvedere.images.masks import IGNORE
from belvedere.measure.attention import attention_masks


def test_masks_and_jaccard(golden: Load) -> None:
    g = golden("eval_attention_masks")
    maps = g["attn"].reshape(*g["attn"].shape[:2], *g["grid"].tolist())
    found = [attention_masks(one, float(g["mass"])) for one in maps]
    assert torch.equal(torch.stack(found), g["masks"])
    values = [scores(one, object_masks(gt, 0), gt == IGNORE) for one, gt in zip(maps, g["gt"], strict=True)]
    assert [one["best_head"] for one in values] == pytest.approx(g["jaccard_void_excluded"].tolist(), abs=1e-7)
    assert [one["best_ipvit"] for one in values] == pytest.approx(g["jaccard_ipvit"].tolist(), abs=1e-7)
