"""What papers train their linear probes on: features of random crops, drawn anew every epoch, by the frozen network.

Crops and flips have torchvision's law (RandomResizedCrop of 8 to 100 % of the area, ratio 3/4 to 4/3; half of them
mirrored, but none where the run never mirrored its views) and are rendered by the view engine; a crop depends on the
seed, the epoch and the image alone. The network is in evaluation mode without gradient, so that its statistics do not
move.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.evaluate.contract import Subject
from belvedere.images.canvases import Canvases
from belvedere.measure.features import PIXELS_SIDE, without_mean
from belvedere.measure.readings import Reading
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Interpolation, Slot

AT_ONCE = 256
"""Crops that go through the network together; papers' batches are up to 16,384."""
CROP = Slot("probe", (PIXELS_SIDE, PIXELS_SIDE), scale=(0.08, 1.0), jitter_p=0.0, gray_p=0.0)


@dataclass(frozen=True)
class Crops:
    """Features of one crop an image and epoch.

    Attributes:
        subject: the frozen network; crops of raw pixels are the pixels floor's, of `PIXELS_SIDE`.
        readings: taken side by side.
        images: of which crops are drawn.
        slot: the law of the crops and their size.
        seed: of the draws.
        device: where crops are rendered and encoded.
    """

    subject: Subject
    readings: tuple[Reading, ...]
    images: Canvases
    slot: Slot
    seed: int
    device: torch.device | str

    def __call__(self, epoch: int, rows: NDArray[np.int64]) -> Tensor:
        """(n, D) float32 features of crops of the images `rows`, on the device."""
        return torch.cat([self._features(epoch, rows[i : i + AT_ONCE]) for i in range(0, len(rows), AT_ONCE)])

    def _features(self, epoch: int, rows: NDArray[np.int64]) -> Tensor:
        encoder, channels = self.subject.encoder, self.images.channels
        mean, std = ((0.0,) * channels, (1.0,) * channels) if encoder is None else (encoder.mean, encoder.std)
        params = sample_views([self.slot], rows, self.images.sizes[rows], epoch, self.seed)
        views = render_views(self.images.batch(rows), params, mean=mean, std=std, device=self.device)
        pixels = views[self.slot.name]
        if encoder is None:
            return without_mean(pixels.flatten(1))
        return torch.cat([encoder.reading_as(reading)(pixels) for reading in self.readings], 1)


def crops_of(
    subject: Subject,
    readings: tuple[Reading, ...],
    images: Canvases,
    interpolation: Interpolation,
    seed: int,
    device: torch.device | str,
    mirrored: bool = True,
) -> Crops:
    """Crops of images in the size that a subject reads."""
    size = CROP.size if subject.encoder is None else subject.encoder.size
    flip = CROP.flip if mirrored else 0.0
    slot = replace(CROP, size=size, interpolation=interpolation, flip=flip)
    return Crops(subject, readings, images, slot, seed, device)
