"""Facts of pairs of views, against a pair worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from belvedere.views.pairs import pair_facts
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots


def test_a_pair_by_hand() -> None:
    """In an image of 30 x 40 (diagonal 50), a crop of 10 x 10 at the origin and one of 20 x 10 at (0, 5)."""
    slots = build_slots(ViewSettings(size=(8, 8)), 3)
    drawn = sample_views(slots, [7], np.array([[30, 40]]), 0, 0)

    def both(a: float, b: float) -> torch.Tensor:
        return torch.tensor([[a], [b]])

    params = replace(
        drawn,
        top=both(0, 0).int(),
        left=both(0, 5).int(),
        h=both(10, 20).int(),
        w=both(10, 10).int(),
        brightness=both(1.0, 0.6),
        hue=both(-0.1, 0.1),
        gray=both(1, 0).bool(),
        sigma=both(1.5, 0.2),
    )
    facts = {name: float(fact[0]) for name, fact in pair_facts(params, "global_a", "global_b").items()}
    assert facts["iou"] == pytest.approx(50 / (100 + 200 - 50))
    assert (facts["area_small"], facts["area_large"]) == pytest.approx((100 / 1200, 200 / 1200))
    assert facts["distance"] == pytest.approx(np.hypot(5, 5) / 50)
    assert facts["corner_distance"] == pytest.approx(5 / 50)
    assert (facts["delta_brightness"], facts["delta_hue"]) == pytest.approx((0.4, 0.2))
    assert (facts["delta_gray"], facts["delta_blur"]) == (1.0, 0.0)
    assert "masked" not in facts
    shares = {"global_a": torch.tensor([0.0]), "global_b": torch.tensor([0.5])}
    assert float(pair_facts(params, "global_a", "global_b", shares)["masked"]) == 0.25
