"""View parameters and operations against the official implementations (specs/objectives.md 1.6)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.views import render
from belvedere.views.sample import sample_views
from belvedere.views.slots import SOLARIZE_THRESHOLD, Slot


def pixels(image: Tensor) -> Tensor:
    """uint8 [h, w, 3] to [1, 3, h, w] in [0, 1]."""
    return image.permute(2, 0, 1)[None].float() / 255


def levels(x: Tensor) -> Tensor:
    """[1, 3, h, w] in [0, 1] to whole levels [h, w, 3]."""
    return (x[0].permute(1, 2, 0) * 255).round()


def test_simclr_s_own_blur(golden: Callable[[str], Any]) -> None:
    g = golden("simclr_blur")
    names = [name for name in g.names if name.startswith("blur_")]
    assert names
    for name in names:
        kernel, sigma = re.fullmatch(r"blur_k(\d+)_s([\d.]+)", name).groups()
        got = render.gaussian_blur(
            pixels(g["image"]), torch.tensor([float(sigma)]), radius=int(kernel) // 2, border="zeros"
        )
        assert (got[0].permute(1, 2, 0) - g[name]).abs().max() <= 1e-5


def test_dino_operations(golden: Callable[[str], Any]) -> None:
    """Solarize and flip are exact; the others were made by PIL on whole levels: mean gap below 2 levels."""
    g = golden("aug_ops")
    x = pixels(g["image"])
    threshold = torch.tensor([SOLARIZE_THRESHOLD])
    assert torch.equal(levels(render.solarize(x, threshold)), g["solarize"].float())
    height, width = x.shape[2:]
    whole = (torch.tensor([side]) for side in (0, 0, height, width))
    mirrored = render.crop_resize(x, *whole, (height, width), flip=torch.tensor([True]))
    assert torch.equal(levels(mirrored), g["hflip"].float())

    got = {"grayscale": render.grayscale(x)}
    for name in ("brightness", "contrast", "saturation", "hue"):
        got[name] = getattr(render, name)(x, torch.tensor([float(g.hparams[name])]))
    for name in g.names:
        if name.startswith("blur_"):
            got[name] = render.gaussian_blur(x, torch.tensor([float(name[5:])]))
        if name.startswith("rrc_"):
            _, interpolation, side = name.split("_")
            box = [torch.tensor([edge]) for edge in g.hparams["crop_box_top_left_h_w"]]
            got[name] = render.crop_resize(x, *box, (int(side), int(side)), interpolation)
    assert len(got) == 5 + 5 + 4
    for name, result in got.items():
        gap = (levels(result) - g[name].float()).abs().mean()
        assert gap < 2, (name, gap)


def test_box_statistics(golden: Callable[[str], Any]) -> None:
    g = golden("rrc_stats")
    count, quantiles = int(g.hparams["n"]), np.array(g.hparams["quantile_levels"])
    cases = {name.split(".area")[0] for name in g.names if name.endswith("area_quantiles")}
    assert cases
    for case in cases:
        height, width, low, high = re.fullmatch(r"(\d+)x(\d+)_s([\d.]+)-([\d.]+)", case).groups()
        slot = Slot("global_a", (8, 8), (float(low), float(high)), ratio=tuple(g.hparams["ratio"]))
        drawn = sample_views([slot], range(count), [(int(height), int(width))] * count, epoch=0, seed=0)
        h, w = drawn.h[0].double().numpy(), drawn.w[0].double().numpy()
        area, shape = h * w / (int(height) * int(width)), np.log(w / h)
        # The two extremes are single draws, not quantiles: they only have to be near.
        inner = slice(1, -1)
        assert np.abs(np.quantile(area, quantiles) - g[f"{case}.area_quantiles"].numpy())[inner].max() <= 0.02
        assert np.abs(np.quantile(shape, quantiles) - g[f"{case}.logratio_quantiles"].numpy())[inner].max() <= 0.02
        mean = g[f"{case}.mean_h_w"].numpy()
        assert np.abs(np.array([h.mean(), w.mean()]) / mean - 1).max() <= 0.02
        y = (drawn.top[0].double().numpy() + h / 2) / int(height)
        x = (drawn.left[0].double().numpy() + w / 2) / int(width)
        centre = np.array([y.mean(), x.mean(), y.std(), x.std()])
        assert np.abs(centre - g[f"{case}.center_yx_mean_std"].numpy()).max() <= 0.01
