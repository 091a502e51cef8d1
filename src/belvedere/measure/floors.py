"""What any pretrained encoder has to beat on the same images (DESIGN, "Did it help?").

Raw pixels and an untrained network go through the same protocol as the run; on 2000 CIFAR-10 images an untrained ViT
stands below the pixels, so a young run has to pass the pixels before it has learned anything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from belvedere.backbones.build import build_backbone
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import pixels_features

raw_pixels = pixels_features


def untrained(encoder: Encoder, seed: int) -> Encoder:
    """An encoder of the same architecture, transform and reading with fresh weights drawn from `seed`."""
    backbone = encoder.backbone
    fresh = build_backbone(
        backbone.architecture, size=backbone.size, channels=backbone.channels, seed=seed, **backbone.settings
    )
    return Encoder(fresh, encoder.size, encoder.mean, encoder.std, encoder.reading, encoder.precision)


def majority(train_labels: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """(num_classes,) classes by how often they occur in training, the lowest index first among equals.

    The first is what the majority-class floor answers for every image.
    """
    counts = np.bincount(train_labels, minlength=num_classes)
    return np.argsort(-counts, kind="stable")
