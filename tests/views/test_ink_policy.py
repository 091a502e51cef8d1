"""Strokes made thinner and thicker: against SciPy's morphology, its law, its order, and the same draws again."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
import torch
from scipy.ndimage import grey_dilation, grey_erosion

from belvedere.config import resolve
from belvedere.images.binarize import sauvola
from belvedere.views.policies.ink import DILATION, EROSION, Ink, InkOptions, dilate, erode
from belvedere.views.render import render_views
from belvedere.views.slots import ViewSettings, build_slots

PLAIN = ViewSettings(size=(40, 40), locals=2, local_size=(24, 24), flip=0, jitter_p=0, gray_p=0, solarize_p=(0, 0, 0))
SIZES = [(64, 64)] * 8


def policy(**options: float) -> Ink:
    return Ink(InkOptions(**options), build_slots(PLAIN, 1), 1)


def pages() -> torch.Tensor:
    page = sauvola(skimage.data.page())
    return torch.from_numpy(np.stack([page[40:104, 40 * i : 40 * i + 64] for i in range(8)]))[..., None]


def rendered(views: Ink, epoch: int = 0, images: slice = slice(None)) -> list[torch.Tensor]:
    params = views.propose(range(8)[images], SIZES[images], epoch, seed=3)
    done = render_views(pages()[images], params, mean=[0.0], std=[1.0], program=views.program)
    return [done[name] for name in params.slots]


def test_erosion_and_dilation_are_scipys() -> None:
    rng = np.random.default_rng(0)
    x, kernel = rng.random((6, 2, 11, 13)), rng.random((6, 9)) < 0.4
    kernel[:, 4] = True
    for ours, theirs in ((dilate, grey_dilation), (erode, grey_erosion)):
        found = ours(torch.from_numpy(x), torch.from_numpy(kernel)).numpy()
        for image, mask, result in zip(x, kernel.reshape(6, 3, 3), found, strict=True):
            # SciPy mirrors a dilation's footprint; outside nothing is larger (smaller) than what is there.
            footprint = mask[::-1, ::-1] if ours is dilate else mask
            outside = -np.inf if ours is dilate else np.inf
            for channel, out in zip(image, result, strict=True):
                expected = theirs(channel, footprint=footprint, mode="constant", cval=outside)
                assert np.array_equal(out, expected)


def test_the_law_of_the_kernels() -> None:
    params = policy().propose(range(3000), [(64, 64)] * 3000, 0, seed=0)
    kernels = {name: params.extras[name].float() for name in (EROSION, DILATION)}
    for kernel in kernels.values():
        assert kernel.shape == (4, 3000, 9)
        assert kernel[..., 4].all()
        assert kernel[..., [0, 3, 8]].mean((0, 1)) == pytest.approx(torch.tensor([0.15] * 3), abs=0.015)
    both = [(kernel.sum(-1) > 1).float().flatten() for kernel in kernels.values()]
    assert abs(torch.corrcoef(torch.stack(both))[0, 1]) < 0.04
    off = policy(erosion_p=0, dilation_p=0).propose(range(9), [(64, 64)] * 9, 0, 0)
    assert off.extras[EROSION].sum() == off.extras[DILATION].sum() == 4 * 9


def test_views_are_blurred_then_stroked_and_the_second_in_the_other_order() -> None:
    ink = policy(erosion_p=1, dilation_p=1)
    params = ink.propose(range(8), SIZES, 0, seed=3)
    blurred = render_views(pages(), params, mean=[0.0], std=[1.0])
    for slot, (name, view) in enumerate(zip(params.slots, rendered(ink), strict=True)):
        thin, thick = params.extras[EROSION][slot], params.extras[DILATION][slot]
        x = blurred[name]
        expected = erode(dilate(x, thick), thin) if name == "global_b" else dilate(erode(x, thin), thick)
        assert torch.allclose(view, expected, atol=1e-5)
        assert not torch.allclose(view, x, atol=1e-2)
    thinner, thicker = rendered(policy(erosion_p=1, dilation_p=0)), rendered(policy(erosion_p=0, dilation_p=1))
    assert all(thin.mean() < thick.mean() for thin, thick in zip(thinner, thicker, strict=True))


def test_a_view_is_the_same_whatever_stands_beside_it() -> None:
    whole, part, later = rendered(policy()), rendered(policy(), images=slice(2, 5)), rendered(policy(), epoch=1)
    for a, b, c in zip(whole, part, later, strict=True):
        assert torch.equal(a[2:5], b)
        assert not torch.equal(a, c)


def test_the_recipe_is_the_papers() -> None:
    config = resolve("writer", {}).config
    assert (config.views.policy, config.views.flip, config.images.mean, config.images.std) == ("ink", 0, (0.0,), (1.0,))
    assert (config.objective.mask_shape, config.objective.mask_ratio_var) == ("high", [0.0, 0.0])
    assert (config.images.cutting.tile, config.images.cutting.step, config.images.binarize) == (256, 128, "sauvola")
