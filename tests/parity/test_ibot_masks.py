"""Block and random masks against the official data loader's (spec objectives 6.4)."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
from core_helpers import Load
from scipy import ndimage

from belvedere.views.draws import streams, substreams
from belvedere.views.masks import MaskLaw, block_masks, masks_of

DRAWS = 6000
NAMES = {"block": "block", "rand": "random"}


def as_list(x: Any) -> tuple[float, ...]:
    return tuple(x) if isinstance(x, list) else (x,)


def test_statistics(golden: Load) -> None:
    g = golden("ibot_block_mask")
    for case, (side, ratio, var, shape) in g.hparams["configs"].items():
        law = MaskLaw(NAMES[shape], as_list(ratio), as_list(var))
        keys = substreams(streams(0, 0, np.arange(DRAWS // 2), ["view/global_a", "view/global_b"]), "mask")
        first, second = (masks_of(law, own, (side, side)) for own in keys)
        masks = np.concatenate([first, second])
        fraction = masks.mean((1, 2))
        assert abs(fraction.mean() - g[f"{case}.mean_fraction"]) < 0.01, case
        assert abs(fraction.std() - g[f"{case}.std_fraction"]) < 0.01, case
        assert abs((fraction == 0).mean() - g[f"{case}.frac_empty"]) < 0.02, case
        assert np.abs(masks.mean(0) - g.arrays[f"{case}.cell_marginal"]).max() < 0.06, case
        assert abs(masks[:, :, 1:][masks[:, :, :-1]].mean() - g[f"{case}.p_right_masked_given_masked"]) < 0.01, case
        assert abs(masks[:, 1:][masks[:, :-1]].mean() - g[f"{case}.p_below_masked_given_masked"]) < 0.01, case
        counts = np.bincount(masks.sum((1, 2)), minlength=side**2 + 1) / DRAWS
        # The largest distance of two cumulative distributions of 6000 draws each; .036 has a chance of 1e-3.
        assert np.abs(np.cumsum(counts - g.arrays[f"{case}.count_hist"])).max() < 0.036, case
        components = [ndimage.label(mask)[1] for mask in masks if mask.any()]
        assert abs(np.mean(components) - g[f"{case}.mean_components"]) < 0.1, case
        if fraction.std() > 0:
            assert abs(np.corrcoef(first.sum((1, 2)), second.sum((1, 2)))[0, 1]) < 0.07, case


def by_hand(target: float, side: int, generator: random.Random) -> tuple[np.ndarray, list[list[float]]]:
    """The spec's algorithm for one mask, word by word, and each try's draws as numbers in [0, 1)."""
    mask, masked, tries = np.zeros((side, side), dtype=bool), 0, []
    low = (side // 3) ** 2
    while masked < target:
        room, new = target - masked, 0
        for _ in range(10):
            area_draw, aspect_draw = generator.random(), generator.random()
            area = low + (room - low) * area_draw
            aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * aspect_draw)
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h >= side or w >= side:
                tries.append([area_draw, aspect_draw, 0.0, 0.0])
                continue
            top, left = generator.randint(0, side - h), generator.randint(0, side - w)
            tries.append([area_draw, aspect_draw, (top + 0.5) / (side - h + 1), (left + 0.5) / (side - w + 1)])
            block = mask[top : top + h, left : left + w]
            if 0 < block.size - block.sum() <= room:
                new = int(block.size - block.sum())
                block[:] = True
                break
        if new == 0:
            break
        masked += new
    return mask, tries


def test_the_seeded_masks_come_from_the_same_draws(golden: Load) -> None:
    """The official generator's numbers, fed to our law: all masks at once and equal cell by cell."""
    g = golden("ibot_block_mask")
    h = g.hparams["seeded"]
    generator, side = random.Random(h["python_random_seed"]), h["grid"]
    targets, expected, tapes = [], [], []
    for _ in g.arrays["seeded_masks"]:
        shares = [
            generator.uniform(r - v, r + v) if v > 0 else r for r, v in zip(h["pred_ratio"], h["var"], strict=True)
        ]
        targets.append(generator.choice(shares) * side * side)
        mask, tape = by_hand(targets[-1], side, generator)
        expected.append(mask)
        tapes.append(tape)
    assert np.array_equal(np.stack(expected), g.arrays["seeded_masks"])
    assert sum(mask.any() for mask in expected) > 3

    def uniforms(chosen: np.ndarray, t: int) -> np.ndarray:
        return np.array([tapes[m][t] for m in chosen])

    assert np.array_equal(block_masks(np.array(targets), (side, side), uniforms), g.arrays["seeded_masks"])
