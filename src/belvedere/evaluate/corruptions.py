"""Pictures made worse on purpose: blur, noise, JPEG and contrast, rendered with the view engine's own operations.

The default strengths are our severity scale. Its twenty numbers are those of ImageNet-C's functions gaussian_noise,
gaussian_blur, contrast and jpeg_compression ("Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations", Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261; read in the package imagecorruptions 1.1.2), but
the pictures are not: ImageNet-C corrupts crops of 224 px, these are the images as they were decoded; its blur is in
pixels of that crop, this one in proportion to the image; its contrast keeps the mean of each channel, this one the mean
gray. So an accuracy here is none on ImageNet-C, and its mean corruption error, relative to an AlexNet's errors on its
own files, is not offered.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from belvedere.images.canvases import Canvases
from belvedere.views import reference
from belvedere.views.draws import uniform

Pixels = NDArray[np.uint8]
# The short side that blur's strengths are given for, and the least that they are in proportion to. There the mildest
# is 0.4 px; a smaller one changes nothing on a grid of pixels.
SIDE, LEAST = 224, 90


def blur(image: Pixels, sigma: float, seed: int, i: int) -> Pixels:
    """Gaussian blur of `sigma` pixels at a short side of 224, in proportion at others down to 90."""
    scaled = torch.tensor([sigma * max(min(image.shape[:2]), LEAST) / SIDE])
    return _bytes(reference.gaussian_blur(_floats(image), scaled))


def noise(image: Pixels, std: float, seed: int, i: int) -> Pixels:
    """Gaussian noise of standard deviation `std` on values in [0, 1], drawn for image `i` from the seed."""
    draws = uniform(seed, 0, [i], "corruption noise", (2, *image.shape))[0]
    # Box and Muller; 1 - u lies in (0, 1].
    normal = np.sqrt(-2 * np.log(1 - draws[0])) * np.cos(2 * np.pi * draws[1])
    noisy: Pixels = np.rint((image / 255 + std * normal).clip(0, 1) * 255).astype(np.uint8)
    return noisy


def jpeg(image: Pixels, quality: float, seed: int, i: int) -> Pixels:
    """JPEG of a quality from 1 to 95; channels that are not three are written one by one as gray pictures."""
    if image.shape[2] != 3:
        return np.stack([_recode(image[..., channel], quality) for channel in range(image.shape[2])], axis=2)
    return _recode(image, quality)


def contrast(image: Pixels, factor: float, seed: int, i: int) -> Pixels:
    """Contrast times `factor`, about the image's own mean gray."""
    return _bytes(reference.contrast(_floats(image), torch.tensor([factor])))


CORRUPTIONS: dict[str, Callable[[Pixels, float, int, int], Pixels]] = {
    "blur": blur,
    "noise": noise,
    "jpeg": jpeg,
    "contrast": contrast,
}
"""Name -> (image [h, w, C], strength, seed, number of the image) -> image of the same shape."""


def corrupted(canvases: Canvases, name: str, strength: float, seed: int, folder: Path) -> Canvases:
    """The same images, each corrupted, in a file of `folder` that the caller removes.

    Every subject then reads the same pixels, and a set is rendered once, however many they are.
    """
    path = folder / f"{name}-{strength:g}.bin"
    with path.open("wb") as file:
        for i in range(len(canvases)):
            file.write(CORRUPTIONS[name](canvases.pixels(i), strength, seed, i).tobytes())
    lengths = canvases.sizes.astype(np.int64).prod(1) * canvases.channels
    offsets = np.concatenate([[0], lengths.cumsum()[:-1]]).astype(np.int64)
    mark = f"{canvases.fingerprint} {name} {strength!r} {seed}"
    return replace(canvases, path=path, offsets=offsets, fingerprint=mark)


def _floats(image: Pixels) -> Tensor:
    return torch.from_numpy(image.copy()).movedim(2, 0)[None].float() / 255


def _bytes(pixels: Tensor) -> Pixels:
    found: Pixels = (pixels[0].movedim(0, 2) * 255).round().to(torch.uint8).numpy()
    return found


def _recode(image: Pixels, quality: float) -> Pixels:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file, formats=["JPEG"]))
