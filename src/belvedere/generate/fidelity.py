"""FID and KID of a finished run by torch-fidelity, in an encoder's features or in Inception's (spec evaluation 2.14).

Both sides are squares of the generator's size in 8 bits and, where there are enough real images, equally many. In the
features of Inception, with the weights that papers use, the numbers mean what papers' mean for as many images; in those
of an encoder they compare runs that were measured with it. The distance of real images to other real ones stands
beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from belvedere.errors import UserError
from belvedere.generate.generator import Generator
from belvedere.generate.quality import to_uint8
from belvedere.generate.trainer import latents, paint, squares
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.views.draws import permutation

WEIGHTS = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
INCEPTION = "inception-v3-compat"
KID_SUBSET = 1000
"""Images of each of the subsets that KID is a mean over, where there are so many."""
BATCH = 64


@dataclass(frozen=True)
class Judged:
    """Distances of generated to real images.

    Attributes:
        fid, kid, kid_std: Frechet distance, and mean and deviation of the kernel distance over subsets.
        inception_score: None unless Inception was asked.
        floor: FID of the real images to as many other ones; None where there are too few.
        generated, real: how many images.
    """

    fid: float
    kid: float
    kid_std: float
    inception_score: float | None
    floor: float | None
    generated: int
    real: int


class Levels(Dataset[Tensor]):
    """Images as torch-fidelity reads them: uint8 `[C, h, w]`."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


@torch.no_grad()
def judge(
    generator: Generator, size: int, canvases: Canvases, by: Encoder | Path, number: int, seed: int, device: str
) -> Judged:
    """Make `number` images and compare them with as many real ones, or with all where there are fewer.

    Args:
        generator: of a finished run, on the device; `size` is the side of its images.
        by: an encoder, or the file of Inception's weights; the latter sees gray images in three equal channels.

    Raises:
        UserError: when torch-fidelity is not installed, the weights are not Inception's, or channels do not fit.
    """
    name = _ours(by) if isinstance(by, Encoder) else _inception(by, canvases.channels)
    weights = None if isinstance(by, Encoder) else str(by)
    order = permutation(seed, 0, len(canvases), "fidelity")
    real, others = (_real(canvases, part, size) for part in (order[:number], order[number : 2 * number]))
    made = [
        to_uint8(paint(generator, latents(seed, 0, min(BATCH, number - first), generator.dim, "sample", first)))
        for first in range(0, number, BATCH)
    ]
    found = _metrics(name, weights, torch.cat(made), real, seed, device)
    floor = _metrics(name, weights, others, real, seed, device) if len(others) == number else None
    return Judged(
        fid=found["frechet_inception_distance"],
        kid=found["kernel_inception_distance_mean"],
        kid_std=found["kernel_inception_distance_std"],
        inception_score=found.get("inception_score_mean"),
        floor=None if floor is None else floor["frechet_inception_distance"],
        generated=number,
        real=len(real),
    )


def _real(canvases: Canvases, index: NDArray[np.int64], size: int) -> Tensor:
    """uint8 (n, size, size, C), as the discriminator saw them."""
    batches = np.split(np.sort(index), range(BATCH, len(index), BATCH)) if len(index) else []
    parts = [to_uint8(squares(canvases.batch(part), size, canvases.channels).clamp(0, 1)) for part in batches]
    return torch.cat(parts) if parts else torch.empty(0, size, size, canvases.channels, dtype=torch.uint8)


def _metrics(name: str, weights: str | None, first: Tensor, second: Tensor, seed: int, device: str) -> dict[str, float]:
    """torch-fidelity's numbers of two sets (n, h, w, C)."""
    sides = [x.permute(0, 3, 1, 2) for x in (first, second)]
    if name == INCEPTION and sides[0].shape[1] == 1:
        sides = [x.expand(-1, 3, -1, -1) for x in sides]
    found: dict[str, float] = library().calculate_metrics(
        input1=Levels(sides[0]),
        input2=Levels(sides[1]),
        fid=True,
        kid=True,
        isc=name == INCEPTION,
        kid_subset_size=min(KID_SUBSET, len(first), len(second)),
        feature_extractor=name,
        feature_extractor_weights_path=weights,
        cuda=device == "cuda",
        batch_size=BATCH,
        rng_seed=seed,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    return found


def library() -> Any:
    """torch-fidelity.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import torch_fidelity
    except ImportError as error:
        raise UserError('distances by torch-fidelity need an extra: pip install "belvedere[generation]"') from error
    return torch_fidelity


def _inception(weights: Path, channels: int) -> str:
    """The library's name for Inception, after a look at its weights.

    Raises:
        UserError: when the file is missing, damaged or holds more than tensors, or images are neither gray nor RGB.
    """
    library()
    if channels not in (1, 3):
        raise UserError(f"--inception: sees images of 1 or 3 channels, not {channels}; measure with --encoder")
    if not weights.is_file():
        raise UserError(f"--inception {weights}: no such file; save {WEIGHTS} there")
    try:
        # The library would run what is pickled in a file; one that loads so holds nothing to run.
        tensors = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged and unsafe files raise many kinds
        raise UserError(f"--inception {weights}: is damaged, or holds more than tensors") from error
    if not isinstance(tensors, dict) or "Mixed_7c.branch_pool.conv.weight" not in tensors:
        raise UserError(f"--inception {weights}: holds no weights of Inception; save {WEIGHTS} there")
    return INCEPTION


def _ours(encoder: Encoder) -> str:
    """The name under which the library finds an encoder of ours."""
    library()
    from torch_fidelity import register_feature_extractor, registry
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Ours(FeatureExtractorBase):  # type: ignore[misc]
        """Levels -> the encoder's vector."""

        def __init__(self, name: str, features_list: Sequence[str], **_: Any) -> None:
            super().__init__(name, list(features_list))
            self.encoder = encoder

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("vector",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "vector"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, levels: Tensor) -> tuple[Tensor, ...]:
            return (self.encoder(self.encoder.preprocess(levels.permute(0, 2, 3, 1))),)

    name = f"belvedere-{encoder.fingerprint()}"
    if name not in registry.FEATURE_EXTRACTORS_REGISTRY:
        register_feature_extractor(name, Ours)
    return name
