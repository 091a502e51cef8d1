"""The reference operations against torchvision v2 on float32 photographs (specs/view_engine.md section 4, T5, T6)."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from view_helpers import plain, psnr

from belvedere.views import reference
from belvedere.views.render import (
    brightness,
    contrast,
    crop_resize,
    gaussian_blur,
    grayscale,
    hue,
    saturation,
    solarize,
)

PAIRS = {
    "brightness": (brightness, tv.adjust_brightness, (0.0, 0.6, 1.4, 2.0)),
    "contrast": (contrast, tv.adjust_contrast, (0.0, 0.6, 1.4, 2.0)),
    "saturation": (saturation, tv.adjust_saturation, (0.0, 0.6, 1.4, 2.0)),
    "hue": (hue, tv.adjust_hue, (-0.5, -0.34, -0.1, 0.0, 0.05, 0.2, 0.4, 0.5)),
}


@pytest.fixture(scope="module")
def pixels(photos: Tensor) -> Tensor:
    return photos.permute(0, 3, 1, 2).float() / 255


@pytest.fixture(scope="module")
def corners() -> Tensor:
    """Gray, constant, clipped and pure pixels: every combination of 0, a half and 1, and the images of one colour."""
    cube = torch.tensor(list(product((0.0, 0.25, 0.5, 1.0), repeat=3))).T.reshape(3, 8, 8)
    flat = cube[:, :2].reshape(3, 16).T[:, :, None, None].expand(16, 3, 8, 8)
    return torch.cat([cube[None], flat])


@pytest.mark.parametrize("name", PAIRS)
def test_colour_operations_equal_torchvision(name: str, pixels: Tensor, corners: Tensor) -> None:
    ours, theirs, factors = PAIRS[name]
    for images, factor in product((pixels, corners), factors):
        got = ours(images, torch.full((len(images),), factor))
        assert (got - theirs(images, factor)).abs().max() <= 5e-6


def test_grayscale_and_solarize_equal_torchvision(pixels: Tensor, corners: Tensor) -> None:
    for images in (pixels, corners):
        assert (grayscale(images) - tv.rgb_to_grayscale(images, 3)).abs().max() <= 1e-6
        threshold = torch.full((len(images),), 128 / 255)
        # uint8 levels: the threshold itself is inverted.
        assert torch.equal(solarize(images, threshold), torch.where((images * 255).round() >= 128, 1 - images, images))


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_blur_equals_torchvision(sigma: float, pixels: Tensor) -> None:
    got = gaussian_blur(pixels, torch.full((len(pixels),), sigma), radius=6)
    assert (got - tv.gaussian_blur(pixels, [13, 13], [sigma, sigma])).abs().max() <= 2e-6


def test_blur_uses_each_image_s_own_radius(pixels: Tensor) -> None:
    sigma = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.1, 1.4, 1.7, 2.0])
    together = gaussian_blur(pixels, sigma)
    alone = torch.cat([gaussian_blur(pixels[i : i + 1], sigma[i : i + 1]) for i in range(8)])
    assert (together - alone).abs().max() <= 1e-6
    assert torch.equal(together[0], pixels[0])
    assert gaussian_blur(pixels[:, :, :3, :2], sigma).isfinite().all()
    with pytest.raises(ValueError, match="radius 2"):
        gaussian_blur(pixels[:, :, :3, :2], sigma, radius=2)


# (top, left, h, w), output size: downscale over 2x on two borders, upscale, one-pixel sides, the whole image, tiny
# output.
BOXES = [
    ((0, 0, 90, 75), (32, 32)),
    ((40, 30, 56, 50), (20, 28)),
    ((10, 12, 20, 15), (48, 64)),
    ((50, 79, 30, 1), (16, 16)),
    ((95, 3, 1, 2), (8, 8)),
    ((0, 0, 96, 80), (96, 80)),
    ((0, 0, 96, 80), (7, 9)),
]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("flip", [False, True])
def test_geometry_equals_torchvision(interpolation: str, flip: bool, pixels: Tensor) -> None:
    mode = tv.InterpolationMode(interpolation)
    for (top, left, h, w), size in BOXES:
        box = (torch.full((len(pixels),), side) for side in (top, left, h, w))
        got = crop_resize(pixels, *box, size, interpolation, torch.full((len(pixels),), flip))
        expected = tv.resized_crop(pixels, top, left, h, w, list(size), mode, antialias=True).clamp(0, 1)
        expected = expected.flip(-1) if flip else expected
        assert (got - expected).abs().max() <= 5e-5
        assert psnr(got, expected) >= 120


def test_all_orders_equal_sequential_torchvision(photos: Tensor, pixels: Tensor) -> None:
    record = plain(photos)
    record.jitter.fill_(True)
    record.brightness.fill_(1.3)
    record.contrast.fill_(0.7)
    record.saturation.fill_(1.35)
    record.hue.fill_(-0.12)
    operations = (
        lambda x: tv.adjust_brightness(x, 1.3),
        lambda x: tv.adjust_contrast(x, 0.7),
        lambda x: tv.adjust_saturation(x, 1.35),
        lambda x: tv.adjust_hue(x, -0.12),
    )
    for rank, order in enumerate(reference.ORDERS):
        record.order.fill_(rank)
        expected = pixels
        for step in order:
            expected = operations[step](expected)
        got = reference.jitter(pixels, record, 0)
        assert psnr(got, expected) >= 110
    assert len(set(reference.ORDERS)) == 24


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_other_channel_counts(channels: int, pixels: Tensor) -> None:
    images = torch.cat([pixels, pixels], 1)[:, :channels]
    factor = torch.full((len(images),), 0.5)
    expected = 0.5 * images + 0.5 * images.mean((1, 2, 3), keepdim=True)
    assert (contrast(images, factor) - expected).abs().max() <= 5e-6
    assert brightness(images, factor).shape == gaussian_blur(images, factor).shape == images.shape
    with pytest.raises(ValueError, match="3 channels"):
        hue(images, factor)
