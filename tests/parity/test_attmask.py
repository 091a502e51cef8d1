"""Masks by attention against the published code of writer retrieval (spec patch_and_pretext 8)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from core_helpers import Load

from belvedere.views.draws import streams
from belvedere.views.masks import AMONG, SHOWN, MaskLaw, by_attention


@pytest.mark.parametrize("shape", ["high", "low"])
def test_masks_are_those_attended_to_most_or_least(golden: Load, shape: str) -> None:
    g = golden("writer_attmask")
    law = MaskLaw(shape, (float(g["ratio"]),), (0.0,))
    keys = streams(0, 0, range(len(g["attention"])), ["a"])[0]
    masks = by_attention(law, keys, g["attention"][:, None])
    assert torch.equal(masks[:, 0], g[f"attmask_{shape}"])


def test_a_hint_shows_a_few_of_the_first(golden: Load) -> None:
    g = golden("writer_attmask")
    assert (float(g["hint_reveal_ratio"]), float(g["hint_max"])) == (SHOWN, AMONG)
    law = MaskLaw("hint", (float(g["ratio"]),), (0.0,))
    high, shown = g["attmask_high"], torch.zeros_like(g["attmask_high"])
    for draw, count in enumerate(g["hint_masked_count"].tolist()):
        keys = streams(draw, 0, range(len(high)), ["a"])[0]
        masks = by_attention(law, keys, g["attention"][:, None])[:, 0]
        assert masks.sum() == count
        assert not (masks & ~high).any()
        shown |= high & ~masks
    assert torch.equal(shown, g["hint_top_set"])  # in the end all of the first, and no other


def test_each_image_is_masked_half_the_time() -> None:
    law = MaskLaw("high", (0.0, 0.3), (0.0, 0.0))
    masks = by_attention(law, streams(0, 0, range(2000), ["a"])[0], torch.rand(2000, 4, 5))
    assert set(masks.sum((1, 2)).tolist()) == {0, 6}
    assert abs(float(np.mean(masks.any(2).any(1).numpy())) - 0.5) < 0.04
