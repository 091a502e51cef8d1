"""Scattering networks: a stem that has nothing to learn, names, sizes and channels, and a run's folder without timm."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from belvedere.backbones.build import build_backbone
from belvedere.backbones.export import export_timm
from belvedere.backbones.scattering import ScatNet, Scattering
from belvedere.distributed import has_batchnorm
from belvedere.errors import UserError
from belvedere.measure.encoder import Encoder
from belvedere.measure.floors import untrained
from belvedere.pretrain.gradients import GradientGroups
from belvedere.pretrain.optim import layer_scales
from belvedere.scatnet import BLOCKS, ScatNetName, read_name
from tiny import tiny_trainer, train

SMALL = {"backbone__patch": "auto", "backbone__width": None, "backbone__depth": None, "backbone__heads": None}


def small(size: tuple[int, int] = (32, 32), channels: int = 3, name: str = "scatnet8_l4", **options: object) -> ScatNet:
    backbone = build_backbone(name, size=size, channels=channels, seed=0, **options)
    assert isinstance(backbone, ScatNet)
    return backbone


def photograph(size: int) -> torch.Tensor:
    """(1, 3, size, size) of a real photograph, its grain along no direction in particular."""
    pixels = torch.from_numpy(skimage.data.astronaut()[:256, 100:356]).permute(2, 0, 1)[None].float() / 255
    return torch.nn.functional.interpolate(pixels, (size, size), mode="area")


@given(
    blocks=st.sampled_from(sorted(BLOCKS)),
    angles=st.integers(1, 32),
    scales=st.integers(1, 6),
    normalise=st.booleans(),
)
def test_a_name_says_the_shape(blocks: int, angles: int, scales: int, normalise: bool) -> None:
    name = ScatNetName(blocks, angles, scales, normalise)
    assert read_name(str(name)) == name


def test_names_that_are_short_foreign_or_wrong() -> None:
    assert read_name("scatnet30") == ScatNetName(30, angles=16, scales=2)
    assert read_name("resnet18") is None
    for wrong in ("scatnet", "scatnet9", "scatnet8_l0", "scatnet8_j7", "scatnet8_x3"):
        with pytest.raises(UserError, match=f"backbone.name '{wrong}'"):
            read_name(wrong)


@pytest.mark.parametrize("name", ["scatnet8_l4", "scatnet8_l4_norm"])
def test_the_stem_has_nothing_to_train(name: str) -> None:
    backbone = small(name=name)
    stem = backbone.model.get_submodule("scattering")
    assert isinstance(stem, Scattering)
    assert not list(stem.parameters())
    backbone(torch.zeros(2, 3, 32, 32)).cls.sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert not any("tensor" in key for key in backbone.state_dict()), "filters are no weights"
    assert has_batchnorm(backbone)


@settings(max_examples=6)
@given(height=st.integers(4, 10), width=st.integers(4, 10), channels=st.integers(1, 5), scales=st.integers(1, 2))
def test_any_channels_and_sizes_that_the_stride_divides(height: int, width: int, channels: int, scales: int) -> None:
    stride = 2**scales
    backbone = small((height * stride, width * stride), channels, f"scatnet8_l2_j{scales}").eval()
    pixels = torch.randn(2, channels, height * stride, width * stride, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = backbone(pixels, need=("stages",))
    assert found.cls.shape == (2, backbone.dim) == (2, 2048)
    assert found.patches.shape == (2, 16, backbone.patch_dim)
    assert found.grid == backbone.grid((height * stride, width * stride)) == (4, 4)
    assert [tuple(stage.shape[2:]) for stage in found.stages or []] == [(height, width)] * 9
    assert backbone.coefficients(pixels).shape == (
        2,
        channels,
        read_name(backbone.architecture).coefficients,
        height,
        width,
    )


def test_views_of_other_memory_and_precision_give_the_same() -> None:
    backbone = small().eval()
    pixels = photograph(32)
    with torch.no_grad():
        expected = backbone.coefficients(pixels)
        assert torch.equal(backbone.coefficients(pixels.to(memory_format=torch.channels_last)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(backbone.coefficients(pixels), expected)
            assert backbone(pixels).cls.isfinite().all()


@pytest.mark.parametrize("angles", [4, 8])
def test_a_quarter_turn_shifts_energy_of_order_one_by_half_the_angles(angles: int) -> None:
    backbone = small((64, 64), name=f"scatnet8_l{angles}_j2")
    # Faded towards the border, which is reflected there, and so that a turn about pixel (32, 32) loses nothing.
    fade = torch.hann_window(64)
    pixels = (photograph(64) - 0.5) * fade * fade.unsqueeze(1)
    quarter = pixels.rot90(1, (2, 3)).roll(1, 2)

    def energies(images: torch.Tensor) -> torch.Tensor:
        """(J, L) of order 1."""
        found = backbone.coefficients(images)[0, :, 1 : 1 + 2 * angles]
        return found.square().sum((0, 2, 3)).reshape(2, angles)

    upright, turned = energies(pixels), energies(quarter)
    torch.testing.assert_close(turned, upright.roll(angles // 2, 1), rtol=0.01, atol=0)
    assert ((turned - upright).abs() / upright).max() > 0.1, "without a direction in the photograph nothing is tested"


def test_normalised_coefficients_weigh_the_same() -> None:
    """Without, channels of order 2 are much smaller than order 0; with, all have variance 1 over the batch."""
    pixels = torch.cat([photograph(32), photograph(32).rot90(1, (2, 3)), photograph(32).flip(3)])
    plain, normed = small().train(), small(name="scatnet8_l4_norm").train()
    spread = [backbone.model.get_submodule("scattering")(pixels).std((0, 2, 3)) for backbone in (plain, normed)]
    assert spread[0].max() > 5 * spread[0].min()
    assert spread[1].max() < 1.1 * spread[1].min()


def test_what_makes_no_sense_is_refused() -> None:
    for option, value in (("width", 64), ("depth", 3), ("heads", 2), ("freeze_patch", True), ("class_token", True)):
        with pytest.raises(UserError, match=f"backbone.{option}: a convolutional network"):
            small(**{option: value})
    with pytest.raises(UserError, match=r"backbone\.patch=8: scatnet8_l4_j2 has a fixed stride of 4"):
        small(patch=8)
    assert small(patch=4).patch == 4
    with pytest.raises(UserError, match="no patches to mask"):
        small(mask_token=True)
    with pytest.raises(UserError, match="the stride 4 of scatnet8_l4_j2 does not divide it"):
        small((30, 32))
    backbone = small()
    with pytest.raises(UserError, match="divisible by 4, not 32 x 30"):
        backbone(torch.zeros(1, 3, 32, 30))
    with pytest.raises(UserError, match="reads 3 channels, the images have 1"):
        backbone(torch.zeros(1, 1, 32, 32))
    with pytest.raises(UserError, match="cannot give 'attention'"):
        backbone(torch.zeros(1, 3, 32, 32), need=("attention",))


def test_a_missing_extra_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kymatio.scattering2d.frontend.torch_frontend", None)
    with pytest.raises(UserError, match=r'pip install "belvedere\[scatter\]"'):
        small()


def test_timm_cannot_express_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="export timm: scatnet8_l4_j2 is no network that timm has"):
        export_timm(small(), tmp_path / "out", mean=[0.5] * 3, std=[0.2] * 3)
    assert not (tmp_path / "out").exists()


def test_an_encoder_reads_the_whole_map() -> None:
    backbone = small()
    encoder = Encoder(backbone, (32, 32), [0.5] * 3, [0.2] * 3)
    pixels = photograph(32)
    assert encoder.reading == "cls"
    assert torch.equal(encoder(pixels), backbone.eval()(pixels).cls.detach())
    for reading, width in (("cls", 2048), ("avg", 128), ("cls+avg", 2176)):
        read = Encoder(backbone, (32, 32), [0.5] * 3, [0.2] * 3, reading=reading)
        assert read.dim == read(pixels).shape[1] == width
    floor = untrained(encoder, seed=3)
    assert floor.backbone.architecture == backbone.architecture
    assert floor(pixels).shape == encoder(pixels).shape
    assert not torch.allclose(floor(pixels), encoder(pixels))


def test_layers_and_gradients_have_their_names() -> None:
    backbone = small(drop_path=0.1)
    scales = layer_scales(backbone.model, 0.5)
    assert set(scales) == {name for name, _ in backbone.model.named_parameters()}
    assert scales["first.0.weight"] < scales["blocks.0.conv1.weight"] < scales["blocks.7.conv1.weight"]
    trainer, feed = tiny_trainer("simclr", backbone__name="scatnet8_l2", **SMALL, train__steps=2)
    assert trainer.config.backbone.patch == 4
    train(trainer, feed, 0, 1)
    groups = {group for _, group in GradientGroups(trainer.method)._parameters}
    assert {"first_block", "middle_block", "last_block", "head_body", "last_layer"} <= groups
