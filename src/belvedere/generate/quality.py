"""How far generated images are from real ones: Frechet and kernel distances in an encoder's features, and their spread.

FID: arXiv:1706.08500, in features of a network of ours in place of Inception's; KID: "Demystifying MMD GANs",
arXiv:1801.01401, section 4. Both sides have the same number of images, and the distance of real images to other real
ones stands beside, since it is not 0 for so few. Spec evaluation 2.14.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics.pairwise import polynomial_kernel
from torch import Tensor

from belvedere.evaluate.metrics.frechet import frechet_distance
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract
from belvedere.views.draws import permutation

Features = NDArray[np.float64]


def kernel_distance(first: Features, second: Features) -> float:
    """KID of (N, D) and (M, D) features: the unbiased squared MMD with the kernel (x.y / D + 1)^3.

    May be a little below 0 where the sets are alike.
    """
    within = [_mean_off_diagonal(polynomial_kernel(x, degree=3, coef0=1)) for x in (first, second)]
    return float(within[0] + within[1] - 2 * polynomial_kernel(first, second, degree=3, coef0=1).mean())


def _mean_off_diagonal(kernel: Features) -> float:
    count = len(kernel)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))


def spread(images: Tensor, real: Tensor) -> float:
    """How much generated images differ from each other, over how much real ones do: near 0 all samples look alike.

    Args:
        images, real: (N, C, H, W) and (M, C, H, W).
    """
    return float(images.std(0).mean() / real.std(0).mean().clamp(min=1e-6))


class Judge:
    """Distances of generated to real images in the features of one encoder.

    Attributes:
        count: images on either side.
        floor: the distances of the real images to as many other ones.
    """

    def __init__(self, encoder: Encoder, canvases: Canvases, count: int, seed: int, device: str) -> None:
        """Extract the real images' features; with few images both halves of them are compared."""
        self.encoder, self.device = encoder.to(device), device
        self.count = min(count, len(canvases) // 2)
        order = permutation(seed, 0, len(canvases), "distances")
        halves = [order[: self.count], order[self.count : 2 * self.count]]
        self.real, other = (
            extract(encoder, canvases.subset(np.sort(half)), device=device).double().numpy() for half in halves
        )
        self.floor = self._distances(other)

    def distances(self, images: Tensor) -> dict[str, float]:
        """`fid` and `kid` of `count` generated images `[count, C, H, W]` in [0, 1], rounded to 8 bits as files are."""
        levels = to_uint8(images)
        parts = [self.encoder(self.encoder.preprocess(part.to(self.device))).cpu() for part in torch.split(levels, 256)]
        return self._distances(torch.cat(parts).double().numpy())

    def _distances(self, features: Features) -> dict[str, float]:
        return {"fid": frechet_distance(features, self.real), "kid": kernel_distance(features, self.real)}


def to_uint8(images: Tensor) -> Tensor:
    """`[N, C, H, W]` in [0, 1] as uint8 `[N, H, W, C]`."""
    return (255 * images).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
