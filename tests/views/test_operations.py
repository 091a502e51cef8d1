"""The operation set: identity at 0, derivatives (A1 of spec view_policies 2.10), and what each operation does."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from belvedere.views import operations, reference
from belvedere.views.operations import Operation, space

SSL12 = [
    "brightness", "contrast", "saturation", "hue", "grayscale", "blur", "solarize", "sharpness", "autocontrast",
    "equalize", "posterize", "rotate",
]  # fmt: skip
AUTOAUGMENT = [
    "identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "contrast", "saturation",
    "sharpness", "posterize", "solarize", "autocontrast", "equalize",
]  # fmt: skip
EVERY = {f"{name}-{operation.name}": operation for name in ("ssl12", "autoaugment") for operation in space(name, 3)}
every = pytest.mark.parametrize("operation", EVERY.values(), ids=EVERY)


@pytest.fixture(scope="module")
def pixels(photos: Tensor) -> Tensor:
    return photos.permute(0, 3, 1, 2).double() / 255


def signs(count: int) -> Tensor:
    return torch.tensor([1.0, -1.0]).repeat(count)[:count]


def test_spaces_hold_what_the_spec_lists() -> None:
    assert [operation.name for operation in space("ssl12", 3)] == SSL12
    assert [operation.name for operation in space("autoaugment", 3)] == AUTOAUGMENT
    colours = {"saturation", "hue", "grayscale"}
    for channels in (1, 2, 5):
        assert [operation.name for operation in space("ssl12", channels)] == [n for n in SSL12 if n not in colours]
    assert {operation.name for operation in EVERY.values() if not operation.smooth} == {"solarize"}


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 2e-15)])
def test_magnitude_zero_is_the_identity(
    operation: Operation, dtype: torch.dtype, tolerance: float, pixels: Tensor
) -> None:
    large = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    for x in (pixels, pixels[:, :, :31, :17], large):
        x = x.to(dtype)
        assert (operation.apply(x, torch.zeros(len(x)), signs(len(x))) - x).abs().max() <= tolerance


@every
def test_derivative_by_the_magnitude_is_that_of_central_differences(operation: Operation, pixels: Tensor) -> None:
    """A1: float64, step 1e-5. Bilinear kinks, which a rotated grid has everywhere, cost accuracy."""
    x, target = pixels[:4, :, 20:44, 30:50], pixels[4:, :, 20:44, 30:50]
    if not operation.smooth or operation.name == "identity":
        return

    def loss(m: Tensor) -> Tensor:
        return (operation.apply(x, m, signs(4)) - target).square().sum((1, 2, 3))

    for level in (0.37, 0.5432, 0.77):
        m = torch.full((4,), level, dtype=torch.float64, requires_grad=True)
        (exact,) = torch.autograd.grad(loss(m).sum(), m)
        difference = (loss(m.detach() + 1e-5) - loss(m.detach() - 1e-5)) / 2e-5
        assert difference.abs().min() > 0
        relative = (exact - difference).norm() / difference.norm()
        assert relative <= (1e-2 if operation.name == "rotate" else 1e-5)


@pytest.mark.parametrize("name", ["posterize", "equalize"])
def test_steps_of_the_pixels_pass_gradients_through(name: str, pixels: Tensor) -> None:
    """Their blend stays inside [0, 1], so nothing is cut but black and white themselves."""
    x = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(getattr(operations, name)(x, torch.full((8,), 0.6), signs(8)).sum(), x)
    assert ((gradient == 1) | (pixels == 0) | (pixels == 1)).all()
    assert (gradient == 1).double().mean() > 0.9


def test_no_gradient_reaches_the_magnitude_of_solarize(pixels: Tensor) -> None:
    """The straight-through 1 in its place points the wrong way: more solarizing leads away from the photograph."""
    m = torch.full((8,), 0.3, dtype=torch.float64, requires_grad=True)
    assert not operations.solarize(pixels, m, signs(8)).requires_grad
    x = pixels.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(operations.solarize(x, m, signs(8)).sum(), m, allow_unused=True)
    assert gradient is None

    def away(level: float) -> Tensor:
        found = operations.solarize(pixels, torch.full((8,), level), signs(8))
        return (found - pixels).square().sum()

    straight_through = 2 * (operations.solarize(pixels, m.detach(), signs(8)) - pixels).sum()
    assert away(0.35) > away(0.25)
    assert straight_through < 0


@every
def test_a_batch_of_one_is_a_batch_of_many(operation: Operation, pixels: Tensor) -> None:
    x, m = pixels.float(), torch.linspace(0, 1, 8)
    together = operation.apply(x, m, signs(8))
    for n in range(8):
        alone = operation.apply(x[n : n + 1], m[n : n + 1], signs(8)[n : n + 1])
        assert (together[n] - alone[0]).abs().max() <= 1e-6
    assert torch.equal(operation.apply(x.flip(0), m.flip(0), signs(8).flip(0)).flip(0), together)


@settings(max_examples=60)
@given(
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels=st.sampled_from([1, 2, 3, 5]),
    m=st.lists(st.floats(0, 1), min_size=1, max_size=3),
    contrast=st.sampled_from([0.0, 1e-4, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_any_image_stays_in_range(
    height: int, width: int, channels: int, m: list[float], contrast: float, seed: int
) -> None:
    x = torch.rand(len(m), channels, height, width, generator=torch.Generator().manual_seed(seed))
    x = (0.5 + contrast * (x - 0.5)).requires_grad_()
    for name in ("ssl12", "autoaugment"):
        for operation in space(name, channels):
            magnitude = torch.tensor(m, requires_grad=True)
            y = operation.apply(x, magnitude, signs(len(m)))
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
            assert y.min() >= 0
            assert y.max() <= 1
            (gradient,) = torch.autograd.grad(y.sum(), x)
            assert gradient.isfinite().all()


# --- what they do -----------------------------------------------------------------------------------------------------


def full(function: object, x: Tensor, sign: float = 1.0, **reach: float) -> Tensor:
    """At magnitude 1."""
    return partial(function, **reach)(x, torch.ones(len(x)), torch.full((len(x),), sign))


def test_full_strength_equals_torchvision(pixels: Tensor) -> None:
    x = pixels.float()
    levels = (x * 255).round().byte()
    assert (full(operations.autocontrast, x) - tv.autocontrast(x)).abs().max() <= 1e-5
    # Pillow's equalize divides by whole numbers of pixels a level, 30 or so here.
    assert (full(operations.equalize, x) - tv.equalize(levels).float() / 255).abs().mean() <= 0.015
    inside = (..., slice(1, -1), slice(1, -1))
    for sign, factor in ((1, 1.9), (-1, 0.1)):
        sharp = full(operations.sharpness, x, sign, reach=0.9)
        assert (sharp - tv.adjust_sharpness(x, factor))[inside].abs().max() <= 2e-6
    assert (full(operations.grayscale, x) - tv.rgb_to_grayscale(x, 3)).abs().max() <= 1e-6
    assert (full(operations.solarize, x) - tv.invert(x)).abs().max() == 0
    blurred = reference.gaussian_blur(x, torch.full((8,), 0.05 + 2 * 80 / 224), radius=3)
    assert (full(operations.blur, x, sigma=2.0) - blurred).abs().max() <= 1e-6


def test_moves_go_where_they_say(pixels: Tensor) -> None:
    x = pixels[:, :, :40, :40]
    for sign, turns in ((1, 1), (-1, -1)):
        assert (full(operations.rotate, x, sign, degrees=90) - x.rot90(turns, (2, 3))).abs().max() <= 1e-9
    for sign in (1, -1):
        across, down = (full(getattr(operations, f"translate_{axis}"), x, sign, reach=0.25) for axis in "xy")
        kept = slice(0, 30) if sign == 1 else slice(10, 40)
        assert (across - x.roll(-10 * sign, 3))[..., kept].abs().max() <= 1e-9
        assert (down - x.roll(-10 * sign, 2))[..., kept, :].abs().max() <= 1e-9
    # Beyond the border the image is mirrored.
    assert (full(operations.translate_x, x, reach=0.25)[..., 30:] - x[..., 30:].flip(3)).abs().max() <= 1e-9
    x = pixels[:, :, :41, :41]
    sheared = full(operations.shear_x, x, reach=1.0)
    assert (sheared[:, :, 20] - x[:, :, 20]).abs().max() <= 1e-9
    assert (sheared[:, :, 25, :36] - x[:, :, 25, 5:]).abs().max() <= 1e-9
    assert (full(operations.shear_y, x.mT, reach=1.0).mT - sheared).abs().max() <= 1e-9


def test_hue_turns_the_chroma_and_keeps_the_luma(pixels: Tensor) -> None:
    x = 0.4 + 0.2 * pixels  # far from where values are cut
    turned = full(operations.hue, x, turns=0.25)
    assert (reference.luma(turned) - reference.luma(x)).abs().max() <= 1e-12
    assert (turned - x).abs().mean() > 0.01
    assert (full(operations.hue, turned, -1, turns=0.25) - x).abs().max() <= 1e-12
    assert (full(operations.hue, x, turns=1.0) - x).abs().max() <= 1e-12
    gray = operations.grayscale(x, torch.ones(8), signs(8))
    # Luma's weights sum to .9999.
    assert (full(operations.hue, gray, turns=0.25) - gray).abs().max() <= 2e-4


def test_posterize_and_equalize_level_the_values(pixels: Tensor) -> None:
    found = full(operations.posterize, pixels).unique()
    assert (found - torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64)).abs().max() <= 1e-15
    ranks = full(operations.equalize, pixels)
    assert ((pixels[:, :, :, :1] < pixels) <= (ranks[:, :, :, :1] < ranks)).all()
    assert (ranks.amin((2, 3)) == 0).all()
    assert (ranks.amax((2, 3)) == 1).all()
    flat = torch.full((2, 3, 8, 8), 0.3)
    for name in ("equalize", "autocontrast"):
        assert torch.equal(full(getattr(operations, name), flat), flat)


@pytest.mark.parametrize("side", [16, 32, 80])
def test_blur_shows_at_every_size(side: int, pixels: Tensor) -> None:
    """Neighbouring pixels differ by a fourth less at least."""
    x = pixels[:, :, :side, :side]
    blurred = full(operations.blur, x, sigma=2.0)
    assert blurred.diff(dim=3).square().sum() < 0.75 * x.diff(dim=3).square().sum()


def test_sign_and_magnitude_set_the_strength(pixels: Tensor) -> None:
    """Twice the magnitude does more, and the other sign does something else."""
    for operation in EVERY.values():
        if operation.name == "identity":
            continue
        half, whole, other = (
            operation.apply(pixels, torch.full((8,), m), torch.full((8,), sign))
            for m, sign in ((0.5, 1.0), (1.0, 1.0), (1.0, -1.0))
        )
        if operation.smooth:
            assert (half - pixels).abs().mean() < (whole - pixels).abs().mean(), operation.name
        assert torch.equal(other, whole) == (not operation.signed), operation.name
