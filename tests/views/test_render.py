"""Rendering: purity, backends against each other, gradients, and the meaning of the record (T2, T4, T7-T13)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from view_helpers import plain, psnr

from belvedere.views import native, reference
from belvedere.views.params import ViewParams
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot, ViewSettings, build_slots
from belvedere.views.views import Views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COMPILED = pytest.param("native", marks=pytest.mark.skipif(native.compiler() is None, reason="no C++ compiler"))
BACKENDS = ("reference", "eager", COMPILED)


def render(images: Tensor | list[Tensor], params: ViewParams, **settings: object) -> Views:
    return render_views(images, params, mean=MEAN, std=STD, **settings)


def levels(pixels: Tensor) -> Tensor:
    """Normalised pixels back to [0, 1]."""
    return pixels.float() * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_drawn_is_the_normalised_image(backend: str, photos: Tensor) -> None:
    for images in (photos, photos[:, :40, :32]):
        got = render(images, plain(images), backend=backend)["v"]
        expected = (images.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(
            1, 3, 1, 1
        )
        assert (got - expected).abs().max() <= 2e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_same_record_same_view_whatever_the_batch(
    backend: str, photos: Tensor, drawn: ViewParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = render(photos, drawn, backend=backend)
    again = render(photos, drawn, backend=backend)
    order = torch.tensor([5, 2, 7, 0, 1, 6, 3, 4])
    shuffled = render(photos[order], drawn.take(order), backend=backend)
    single = [render(photos[i : i + 1], drawn.take(torch.tensor([i])), backend=backend) for i in range(len(photos))]
    backwards = render(photos, drawn.select(drawn.slots[::-1]), backend=backend)
    monkeypatch.setattr("belvedere.views.eager.CHUNK_CPU", 1)
    chunked = render(photos, drawn, backend=backend)
    for name in drawn.slots:
        assert torch.equal(whole[name], again[name])
        assert (whole[name][order] - shuffled[name]).abs().max() <= 2e-5
        assert (whole[name] - torch.cat([views[name] for views in single])).abs().max() <= 2e-5
        assert (whole[name] - backwards[name]).abs().max() <= 2e-5
        assert (whole[name] - chunked[name]).abs().max() <= 2e-5


def test_thread_count_does_not_change_views(photos: Tensor, drawn: ViewParams) -> None:
    one = render(photos, drawn)
    torch.set_num_threads(2)
    two = render(photos, drawn)
    assert all((one[name] - two[name]).abs().max() <= 2e-5 for name in drawn.slots)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_eager_equals_reference_where_geometry_is_exact(channels: int, photos: Tensor) -> None:
    settings = ViewSettings(
        size=(40, 36),
        locals=1,
        local_size=(18, 20),
        jitter=(0.8, 0.8, 0.8, 0.5),
        blur_p=(0.5,) * 3,
        solarize_p=(0.5,) * 3,
    )
    images = torch.cat([photos, photos], -1)[:, :60, :56, :channels].contiguous().repeat(6, 1, 1, 1)
    record = sample_views(build_slots(settings, channels), range(len(images)), [(60, 56)] * len(images), 0, 1)
    constants = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    got = render_views(images, record, backend="eager", **constants)
    expected = render_views(images, record, backend="reference", **constants)
    for name in record.slots:
        # A pixel within rounding of the solarize threshold may fall on either side: bound all but one in 10^5.
        a, b = got[name] / 4 + 0.5, expected[name] / 4 + 0.5
        assert ((a - b).abs() > 1e-4).float().mean() <= 1e-5
        unsolarized = record.solarize[record.slot(name)] > 1
        assert psnr(a[unsolarized], b[unsolarized]) >= 90


def test_eager_on_native_uint8_geometry(photos: Tensor) -> None:
    """The accuracy targets of views above 48 px, whose geometry is rounded to whole levels."""
    slot = Slot("v", (64, 56), (0.2, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur_p=0.5)
    record = sample_views([slot], range(8), [photos.shape[1:3]] * 8, 0, 0)
    off = replace(record, jitter=record.jitter & False, gray=record.gray & False, sigma=record.sigma * 0)
    for interpolation, limit in (("bilinear", 1.01), ("bicubic", 10.0)):
        geometry = replace(off, interpolation=(interpolation,))
        gap = 255 * (
            levels(render(photos, geometry, backend="eager")["v"])
            - levels(render(photos, geometry, backend="reference")["v"])
        )
        assert gap.abs().max() <= limit
        assert gap.square().mean().sqrt() <= 0.37
    full, exact = (
        levels(render(photos, record, backend="eager")["v"]),
        levels(render(photos, record, backend="reference")["v"]),
    )
    assert psnr(full, exact) >= 57
    assert 255 * (full - exact).abs().mean() <= 0.25


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(32, 24), (64, 72)])
def test_flip_is_the_mirror_of_the_unflipped_view(backend: str, size: tuple[int, int], photos: Tensor) -> None:
    record = plain(photos, size)
    mirrored = replace(record, flip=~record.flip)
    straight, flipped = render(photos, record, backend=backend)["v"], render(photos, mirrored, backend=backend)["v"]
    assert (straight.flip(-1) - flipped).abs().max() <= 1e-5 / min(STD)


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_of_mixed_sizes_equal_single_renders(backend: str, photos: Tensor, slots: tuple[Slot, ...]) -> None:
    images = [photos[i, : 30 + 9 * i, : 75 - 8 * i].contiguous() for i in range(8)]
    record = sample_views(slots, range(8), [image.shape[:2] for image in images], 0, 0)
    together = render(images, record, backend=backend)
    canvas = torch.full_like(photos, 255)
    for i, image in enumerate(images):
        canvas[i, : image.shape[0], : image.shape[1]] = image
    padded = render(canvas, record, backend=backend)
    for name in record.slots:
        alone = [render(image[None], record.take(torch.tensor([i])), backend=backend) for i, image in enumerate(images)]
        assert (together[name] - torch.cat([views[name] for views in alone])).abs().max() <= 2e-5
        # What lies outside the valid part of a canvas is never seen.
        assert (together[name] - padded[name]).abs().max() <= 2e-5


@pytest.mark.parametrize("flip", [False, True])
def test_view_to_source_finds_a_painted_dot(flip: bool, slots: tuple[Slot, ...]) -> None:
    rng = np.random.default_rng(0)
    images = torch.zeros(16, 96, 80, 3, dtype=torch.uint8)
    record = sample_views([Slot("v", (48, 40), (0.3, 1.0))], range(16), [(96, 80)] * 16, 0, 0)
    record = replace(plain(images, (48, 40)), top=record.top, left=record.left, h=record.h, w=record.w)
    record = replace(record, flip=torch.full_like(record.flip, flip))
    dots = torch.stack(
        [
            record.left[0] + 3 + torch.from_numpy(rng.integers(0, 20, 16)),
            record.top[0] + 3 + torch.from_numpy(rng.integers(0, 20, 16)),
        ],
        1,
    )
    for i, (x, y) in enumerate(dots.tolist()):
        images[i, y, x] = 255
    seen = levels(render(images, record, backend="reference")["v"]).mean(1).clamp(min=0)
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(40.0), indexing="ij")
    mass = seen.sum((1, 2))
    centre = torch.stack([(seen * columns).sum((1, 2)) / mass, (seen * rows).sum((1, 2)) / mass, torch.ones(16)], 1)
    found = (record.view_to_source("v") @ centre[:, :, None])[:, :, 0]
    assert (found - dots).abs().max() <= 0.5


def test_gradients_agree_with_central_differences(photos: Tensor) -> None:
    """Box, factors and sigma in float64, on a smooth picture that keeps clear of clamps and kernel knots."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 40), torch.linspace(0, 2, 36), indexing="ij")
    waves = torch.stack([128 + 60 * torch.sin(rows * (1 + c) + columns * (2 - c / 2)) for c in range(3)], -1)
    images = waves[None].round().to(torch.uint8)
    base = plain(images, (12, 10))
    values = {"top": 3.3, "left": 4.6, "h": 29.4, "w": 27.7, "brightness": 1.1, "contrast": 0.8, "saturation": 1.2}
    values |= {"hue": 0.07, "sigma": 0.9}
    leaves = {name: torch.full((1, 1), value, dtype=torch.float64) for name, value in values.items()}
    weight = torch.randn(1, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(changed: dict[str, Tensor]) -> Tensor:
        record = replace(base, jitter=~base.jitter, order=torch.full_like(base.order, 7), **changed)
        return (reference.colour(reference.geometry(images, record, 0), record, 0) * weight).sum()

    for name, leaf in leaves.items():
        learned = leaf.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaves | {name: learned}), learned)
        step = 1e-5
        difference = (loss(leaves | {name: leaf + step}) - loss(leaves | {name: leaf - step})) / (2 * step)
        assert gradient.item() == pytest.approx(difference.item(), rel=2e-3, abs=1e-4), name


def test_learned_parameters_reach_the_pixels(photos: Tensor, drawn: ViewParams) -> None:
    factor = torch.full_like(drawn.brightness, 0.9).requires_grad_()
    views = render(photos, replace(drawn, brightness=factor, jitter=drawn.jitter | True))
    sum(group.sum() for _, group in views.groups()).backward()
    assert factor.grad is not None
    assert factor.grad.isfinite().all()
    assert (factor.grad != 0).any()
    assert not render(photos, drawn).groups()[0][1].requires_grad
    assert not render(photos, replace(drawn, brightness=factor), backend="eager").groups()[0][1].requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_policy_s_program_replaces_the_colour_operations(backend: str, photos: Tensor, drawn: ViewParams) -> None:
    strength = torch.full(drawn.top.shape, 0.5).requires_grad_()
    record = replace(drawn, extras={"strength": strength})

    def darker(x: Tensor, params: ViewParams, slot: int) -> Tensor:
        return x * params.extras["strength"][slot][:, None, None, None]

    got = render(photos, record, program=darker, backend=backend)
    untouched = render(photos, drawn, program=lambda x, params, slot: x, backend=backend)
    for name in drawn.slots:
        assert (levels(got[name].detach()) - 0.5 * levels(untouched[name])).abs().max() <= 1e-5
    sum(group.sum() for _, group in got.groups()).backward()
    assert (strength.grad != 0).all()


def test_global_random_state_is_untouched(photos: Tensor, slots: tuple[Slot, ...]) -> None:
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    record = sample_views(slots, range(8), [photos.shape[1:3]] * 8, 0, 0)
    for backend in ("reference", "eager", "auto"):
        render(photos, record, backend=backend)
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["eager", "triton"])
def test_cuda_equals_the_reference_without_waiting_for_the_device(
    backend: str, photos: Tensor, drawn: ViewParams
) -> None:
    on_device = photos.cuda()
    render(on_device, drawn, backend=backend)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = render(on_device, drawn, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    expected = render(photos, drawn, backend="reference")
    for name in drawn.slots:
        unsolarized = drawn.solarize[drawn.slot(name)] > 1
        assert psnr(levels(got[name].cpu())[unsolarized], levels(expected[name])[unsolarized]) >= 70


@pytest.mark.parametrize("jittered", [False, True])
def test_half_size_is_nearly_the_averaged_full_view(jittered: bool, photos: Tensor) -> None:
    slot = Slot("v", (48, 40), (0.2, 1.0), jitter_p=float(jittered), gray_p=0, blur_p=1.0, sigma=(0.5, 2.0))
    record = sample_views([slot], range(8), [photos.shape[1:3]] * 8, 0, 0)
    full, half = render(photos, record), render(photos, record, scale=0.5)
    assert half["v"].shape[2:] == (24, 20)
    assert half.params.size == ((24, 20),)
    gap = 255 * (torch.nn.functional.avg_pool2d(levels(full["v"]), 2) - levels(half["v"]))
    assert gap.square().mean((1, 2, 3)).sqrt().mean() <= 3
    assert torch.equal(render(photos, record, scale=1.0)["v"], full["v"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.02), (torch.float16, 0.003)])
def test_half_precision_output(dtype: torch.dtype, tolerance: float, photos: Tensor, drawn: ViewParams) -> None:
    full, half = render(photos, drawn), render(photos, drawn, dtype=dtype)
    assert all(half[name].dtype == dtype for name in drawn.slots)
    assert all((half[name].float() - full[name]).abs().max() <= tolerance for name in drawn.slots)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_geometry_stays_finite(backend: str) -> None:
    for source, size in (((1, 1), (8, 8)), ((2, 90), (4, 64)), ((64, 3), (1, 1)), ((90, 90), (64, 2))):
        images = torch.randint(0, 256, (3, *source, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
        slot = Slot("v", size, (0.01, 1.0), blur_p=1.0, solarize_p=0.5)
        views = render(images, sample_views([slot], range(3), [source] * 3, 0, 0), backend=backend)
        assert views["v"].shape == (3, 3, *size)
        assert ((levels(views["v"]) > -1e-5) & (levels(views["v"]) < 1 + 1e-5)).all()


def test_groups_are_slices_of_consecutive_slots(photos: Tensor, drawn: ViewParams) -> None:
    views = render(photos, drawn)
    assert [names for names, _ in views.groups()] == [("global_a", "global_b"), ("local_1", "local_2")]
    group = views.groups()[1][1]
    assert views["local_2"].data_ptr() == group[8:].data_ptr()
    blank = torch.zeros_like(views["local_2"])
    changed = views.replace(pixels={"local_2": blank}, mask={"global_a": torch.ones(8, 6, 5)})
    assert torch.equal(changed["local_2"], blank)
    assert torch.equal(changed["local_1"], views["local_1"])
    assert changed["global_a"].data_ptr() == views["global_a"].data_ptr()
    assert changed.mask is not None
    assert views.mask is None
    with pytest.raises(KeyError, match="local_9"):
        views["local_9"]
    with pytest.raises(ValueError, match="expected"):
        views.replace(pixels={"local_2": blank[:3]})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda images: images[:3], "3 images"),
        (lambda images: images.float(), "uint8"),
        (lambda images: images[..., :2], "2 channels"),
        (lambda images: images[:, :40], "larger images than there are"),
        (lambda images: [*images[:7], images[7, ..., :1]], "of the same channels"),
        (lambda images: [*images[:7], images[7].float()], "uint8"),
        (lambda images: [*images[:7], images[7, :, :-1]], "larger images than there are"),
    ],
)
def test_mistakes_are_refused(
    mistake: Callable[[Tensor], Tensor], message: str, photos: Tensor, drawn: ViewParams
) -> None:
    with pytest.raises(ValueError, match=message):
        render(mistake(photos), drawn)
