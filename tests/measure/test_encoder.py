"""The encoder: transform, readings, and what it leaves untouched."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torchvision.transforms import v2

from belvedere.backbones.build import build_backbone
from belvedere.errors import UserError
from belvedere.measure.encoder import Encoder

Make = Callable[..., Encoder]


@pytest.mark.parametrize("shape", [(300, 451), (451, 300), (256, 256), (80, 200)])
def test_transform_is_torchvisions(make_encoder: Make, shape: tuple[int, int]) -> None:
    encoder = make_encoder((112, 112))
    photo = torch.from_numpy(skimage.data.coffee()[: shape[0], : shape[1]].copy())
    resized = v2.functional.resize(photo.permute(2, 0, 1).float(), [128], v2.InterpolationMode.BICUBIC, antialias=True)
    expected = v2.functional.center_crop(resized, [112, 112]).clamp(0, 255)
    ours = 255 * (encoder.preprocess(photo[None])[0] * 0.25 + 0.5)
    torch.testing.assert_close(ours, expected, atol=0.501, rtol=0)  # ours are whole numbers, like a saved image


def test_transform_is_close_to_pillows(make_encoder: Make) -> None:
    encoder = make_encoder((112, 112))
    photo = skimage.data.coffee()
    small = Image.fromarray(photo).resize((int(128 * photo.shape[1] / photo.shape[0]), 128), Image.Resampling.BICUBIC)
    left = round((small.width - 112) / 2)
    expected = np.asarray(small.crop((left, 8, left + 112, 120))).astype(float)
    ours = (encoder.preprocess([torch.from_numpy(photo)])[0] * 0.25 + 0.5).permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - expected).mean() < 0.5


def test_small_images_are_not_cropped(make_encoder: Make, photos: np.ndarray) -> None:
    images = torch.from_numpy(photos)
    same = make_encoder((32, 32)).preprocess(images)
    assert torch.equal(same, (images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25)
    smaller = make_encoder((16, 16)).preprocess(images)
    assert smaller.shape == (60, 3, 16, 16)
    # The corner of the image is still in the corner.
    corner = (images[:, :4, :4].float().mean((1, 2)) / 255 - 0.5) / 0.25
    assert (smaller[:, :, :2, :2].mean((2, 3)) - corner).abs().mean() < 0.15


def test_rectangles_and_mixed_sizes(make_encoder: Make) -> None:
    encoder = make_encoder((64, 96))
    photo = torch.from_numpy(skimage.data.coffee())
    images = [photo[:100, :300], photo[:300, :100], photo[:20, :30]]
    pixels = encoder.preprocess(images)
    assert pixels.shape == (3, 3, 64, 96)
    assert torch.equal(pixels[1:2], encoder.preprocess([images[1]]))


def test_readings(make_encoder: Make) -> None:
    x = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    cls, avg, both = (make_encoder(reading=reading)(x) for reading in ("cls", "avg", "cls+avg"))
    assert torch.equal(both, torch.cat([cls, avg], 1))
    encoder = make_encoder()
    assert encoder.reading == "cls"
    assert torch.equal(encoder(x), cls)
    assert encoder.dim == 32
    patches = encoder.patches(x)
    assert patches.shape == (3, 32, 4, 4)
    torch.testing.assert_close(patches.mean((2, 3)), avg)
    attention = encoder.attention(x)
    torch.testing.assert_close(attention.sum(-1), torch.ones(3, 2, 17))


def test_without_class_token() -> None:
    backbone = build_backbone("resnet18", size=(32, 32), channels=1, seed=0)
    assert Encoder(backbone, (32, 32), [0.5], [0.2]).reading == "avg"
    with pytest.raises(UserError, match="reading=cls: resnet18 has no class token"):
        Encoder(backbone, (32, 32), [0.5], [0.2], "cls")
    with pytest.raises(UserError, match="attention"):
        Encoder(backbone, (32, 32), [0.5], [0.2]).attention(torch.zeros(1, 1, 32, 32))


def test_evaluation_mode_is_borrowed(make_encoder: Make) -> None:
    encoder = make_encoder()
    encoder.backbone.train()
    encoder.backbone.model.eval()
    flags = [m.training for m in encoder.backbone.modules()]
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    first, second = encoder(x), encoder(x)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert flags == [m.training for m in encoder.backbone.modules()]
    assert torch.equal(before, torch.random.get_rng_state())


def test_bf16_is_close_and_float32_out(make_encoder: Make) -> None:
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    exact, rough = make_encoder()(x), make_encoder(precision="bf16")(x)
    assert rough.dtype == torch.float32
    assert not torch.equal(exact, rough)
    assert torch.nn.functional.cosine_similarity(exact, rough).min() > 0.999


def test_refusals(make_encoder: Make) -> None:
    with pytest.raises(UserError, match="1 channels, the encoder was trained on 3"):
        make_encoder().preprocess(torch.zeros(2, 32, 32, 1, dtype=torch.uint8))
    with pytest.raises(UserError, match="mean and std hold 1 and 3"):
        Encoder(make_encoder().backbone, (32, 32), [0.5], [0.2, 0.2, 0.2])


def test_fingerprint_knows_weights_reading_and_transform(make_encoder: Make) -> None:
    encoder = make_encoder()
    assert encoder.fingerprint() == make_encoder().fingerprint()
    others = [make_encoder(seed=1), make_encoder(reading="avg"), make_encoder(precision="bf16")]
    others.append(Encoder(encoder.backbone, (32, 32), [0.5, 0.5, 0.4], [0.25] * 3))
    others.append(Encoder(encoder.backbone, (16, 16), [0.5] * 3, [0.25] * 3))
    assert len({one.fingerprint() for one in [encoder, *others]}) == 6
    with torch.no_grad():
        next(encoder.backbone.parameters()).view(-1)[0] += 1e-6
    assert encoder.fingerprint() != make_encoder().fingerprint()
