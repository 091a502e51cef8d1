"""A trained backbone as users and protocols see it: uint8 images in, one feature vector an image out.

The test transform, the reading of the tokens and the numbers of the pretraining run (size, mean, std) travel together,
because features made with any other ones are not comparable (spec evaluation, section 0).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from belvedere.backbones.contract import Backbone, Features
from belvedere.errors import UserError
from belvedere.measure.readings import Reading, read, settle, width

Precision = Literal["fp32", "bf16"]
# An image no larger than this is neither enlarged first nor cropped: its border is too much of it.
SMALL = 64
# The classic 256 -> 224 of ImageNet's test transform, for any size.
BORDER = 256 / 224


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient inside; the training flag of every submodule is restored after."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for m, training in flags:
            m.training = training


class Encoder(nn.Module):
    """A backbone with the transform and the reading that its features are made with.

    Attributes:
        size: (h, w) of the pixels the backbone sees.
        mean, std: C numbers each, of pixels in [0, 1].
        channels: C.
        reading: which vector of an image is read, see `measure/readings.py`.
        dim: width of the features.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        reading: Reading = "auto",
        precision: Precision = "fp32",
    ) -> None:
        """Wrap a backbone; it is not copied, so the encoder of a live student follows its training.

        Args:
            reading: "auto" is "cls" where the backbone has a class token, or a global vector that is wider than the
                mean of its patches; else "avg".
            precision: "bf16" runs the backbone under autocast; features are float32 either way.

        Raises:
            UserError: when the backbone has no such reading, or mean and std do not fit its channels.
        """
        super().__init__()
        self.reading: Reading = settle(backbone, reading)
        if not len(mean) == len(std) == backbone.channels:
            raise UserError(
                f"mean and std hold {len(mean)} and {len(std)} numbers, the backbone has {backbone.channels} channels"
            )
        self.backbone = backbone
        self.size = size
        self.mean, self.std = tuple(mean), tuple(std)
        self.channels = backbone.channels
        self.precision: Precision = precision
        self.dim = width(backbone, self.reading)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, D) float32 features of (N, C, H, W) normalised pixels."""
        return read(self._encode(pixels, need=("blocks",) if "last4" in self.reading else ()), self.reading)

    def reading_as(self, reading: Reading) -> Encoder:
        """The same network and transform, with another reading.

        Raises:
            UserError: when the backbone has no such reading.
        """
        return Encoder(self.backbone, self.size, self.mean, self.std, reading, self.precision)

    def patches(self, pixels: Tensor) -> Tensor:
        """(N, D, h, w) float32 map of the patch tokens after the final norm."""
        features = self._encode(pixels)
        return features.patches.float().transpose(1, 2).reshape(len(pixels), -1, *features.grid)

    def attention(self, pixels: Tensor) -> Tensor:
        """(N, heads, tokens, tokens) attention of the last block; rows sum to 1.

        Raises:
            UserError: when the backbone has no attention to give.
        """
        self.backbone.refuse(attention=True)
        attention = self._encode(pixels, need=("attention",)).attention
        assert attention is not None
        return attention.float()

    def _encode(self, pixels: Tensor, need: tuple[str, ...] = ()) -> Features:
        autocast = torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with evaluating(self.backbone), autocast:
            features: Features = self.backbone(pixels, need=need)
        return features

    def preprocess(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """The test transform: shorter side to round(S * 256/224), bicubic with antialias, centre crop S, normalise.

        Images of at most 64 pixels are resized straight to S, and left alone when they have that size.

        Args:
            images: uint8 (n, h, w, C), or n of (h, w, C) with sizes of their own.

        Returns:
            (n, C, *size) float32 on the images' device.

        Raises:
            UserError: when the images have another number of channels than the backbone.
        """
        return preprocess(images, self.size, self.mean, self.std)

    def preprocess_whole(self, images: Tensor, size: tuple[int, int]) -> Tensor:
        """The transform for dense reading: whole images, nothing cropped, resized straight to `size` and normalised.

        Args:
            images: uint8 (n, h, w, C).
            size: (h, w) of the pixels; multiples of the backbone's `unit`.

        Returns:
            (n, C, *size) float32 on the images' device.

        Raises:
            UserError: when the images have another number of channels than the backbone.
        """
        return _normalise(_resize(_levels(images, self.channels), size), self.mean, self.std)

    def fingerprint(self) -> str:
        """Hash of weights, architecture, transform and reading: what the features of an image depend on."""
        digest = hashlib.sha256(repr(sorted(self.describe().items())).encode())
        for name, value in sorted(self.backbone.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]

    def describe(self) -> dict[str, Any]:
        """What a result records about how its features were made, as plain data."""
        return {
            "architecture": self.backbone.architecture,
            "model_args": {name: repr(value) for name, value in sorted(self.backbone.model_args.items())},
            "reading": self.reading,
            "size": list(self.size),
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": self.precision,
            "transform": f"shorter side x {BORDER:.4f}, bicubic, centre crop; up to {SMALL} px straight to size",
        }


def preprocess(
    images: Tensor | Sequence[Tensor], size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    """The test transform of `Encoder.preprocess`, for a network of `len(mean)` channels."""
    if not isinstance(images, Tensor):
        return torch.cat([preprocess(torch.as_tensor(image)[None], size, mean, std) for image in images])
    return _normalise(_resize_and_crop(_levels(images, len(mean)), size), mean, std)


def _levels(images: Tensor, channels: int) -> Tensor:
    """uint8 (n, h, w, C) as float32 (n, C, h, w) in 0..255."""
    if images.shape[-1] != channels:
        raise UserError(
            f"the images have {images.shape[-1]} channels, the encoder was trained on {channels}: "
            "convert the images or choose another run"
        )
    return images.permute(0, 3, 1, 2).float()


def _normalise(levels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    x = levels / 255
    shift, scale = (x.new_tensor(numbers).view(1, -1, 1, 1) for numbers in (mean, std))
    return (x - shift) / scale


def _resize_and_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Float images (n, C, h, w) of one size in 0..255 to (n, C, *size)."""
    height, width = x.shape[-2:]
    if max(height, width) <= SMALL:
        return _resize(x, size)
    # Smallest aspect-keeping size that covers the crop with its border; torchvision's rounding (long side cut off).
    tall, wide = round(size[0] * BORDER), round(size[1] * BORDER)
    if tall * width >= wide * height:
        wide = int(tall * width / height)
    else:
        tall = int(wide * height / width)
    x = _resize(x, (tall, wide))
    top, left = round((tall - size[0]) / 2), round((wide - size[1]) / 2)
    return x[..., top : top + size[0], left : left + size[1]]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == size:
        return x
    # Rounded like an 8-bit image, which is what the papers' transforms crop.
    resized = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0, 255).round()
