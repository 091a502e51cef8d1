"""Looks at a run from outside: is it healthy, and does it know more than pixels and an untrained network do?

The probe images and their two augmentations are fixed for the whole run, so that looks can be compared along it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from belvedere.config import Config
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder, evaluating
from belvedere.measure.features import extract, pixels_features
from belvedere.measure.knn import best_classes, knn_votes
from belvedere.pretrain.method import Branch
from belvedere.views.draws import permutation
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot

K = 20
# Looks draw their augmentations under a seed of their own, so that no training step sees them.
_LOOK_SEED = 0x10_0C


@dataclass(frozen=True)
class Watch:
    """The fixed images of all looks of a run.

    Attributes:
        probe: images of the health numbers.
        gallery: labelled images of the online k-NN, which is leave-one-out on them; None without labels.
    """

    config: Config
    slots: tuple[Slot, ...]
    probe: Canvases
    gallery: Canvases | None

    @classmethod
    def of(cls, config: Config, slots: tuple[Slot, ...], canvases: Canvases) -> Watch:
        """Choose the images of the looks, by the run's seed."""
        order = permutation(config.train.seed, 0, len(canvases), "looks")
        probe = canvases.subset(np.sort(order[: config.monitor.probe]))
        two = tuple(slot for slot in slots if slot.is_target)[:2]
        if len(two) == 1:
            two = (two[0], replace(two[0], name="global_again"))
        labels = canvases.labels
        if labels is None or config.monitor.knn == 0:
            return cls(config, two, probe, None)
        labelled = order[labels[order] >= 0][: config.monitor.knn]
        enough = len(labelled) > K and len(np.unique(labels[labelled])) > 1
        return cls(config, two, probe, canvases.subset(np.sort(labelled)) if enough else None)

    def floors(self) -> dict[str, float]:
        """k-NN accuracy of raw pixels on the gallery, percent."""
        return {} if self.gallery is None else {"knn_pixels": _knn(pixels_features(self.gallery), self.gallery)}

    def attention(self, encoder: Encoder, device: torch.device) -> Tensor | None:
        """(n, heads, tokens, tokens) attention of the last block on some probe images, where the network has any."""
        if "attention" not in encoder.backbone.can:
            return None
        some = self.probe.batch(np.arange(min(64, len(self.probe))))
        pixels = encoder.preprocess(some.to(device) if isinstance(some, Tensor) else [x.to(device) for x in some])
        return encoder.attention(pixels).cpu()

    def knn(self, encoder: Encoder, device: torch.device) -> dict[str, float]:
        """k-NN accuracy of the encoder on the gallery, percent; empty without labels."""
        return (
            {} if self.gallery is None else {"knn": _knn(extract(encoder, self.gallery, device=device), self.gallery)}
        )

    def look(self, branch: Branch, encoder: Encoder, device: torch.device) -> tuple[Tensor, Tensor]:
        """(2, N, D) features and (2, N, K) head outputs of the two fixed augmentations of the N probe images."""
        assert self.config.images.mean != "auto"
        assert self.config.images.std != "auto"
        features, outputs = [], []
        autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=encoder.precision == "bf16")
        for start in range(0, len(self.probe), 256):
            index = np.arange(start, min(start + 256, len(self.probe)))
            images = self.probe.batch(index)
            images = images.to(device) if isinstance(images, Tensor) else [image.to(device) for image in images]
            params = sample_views(self.slots, index, self.probe.sizes[index], 0, _LOOK_SEED)
            views = render_views(images, params, mean=self.config.images.mean, std=self.config.images.std)
            with evaluating(branch), autocast():
                both = [branch.backbone(views[slot.name]) for slot in self.slots]
                features.append(torch.stack([found.cls.float() for found in both]).cpu())
                heads = [next(iter(branch.head(found).values())) for found in both]
                outputs.append(torch.stack([head.float() for head in heads]).cpu())
        return torch.cat(features, 1), torch.cat(outputs, 1)


def _knn(features: Tensor, gallery: Canvases) -> float:
    """Leave-one-out k-NN accuracy in percent, spec evaluation 2.1."""
    assert gallery.labels is not None
    labels = torch.from_numpy(gallery.labels)
    k = max(1, min(K, len(gallery) // 5))
    own = torch.arange(len(gallery))
    votes = knn_votes(features, labels, features, k, num_classes=len(gallery.classes), exclude=own)
    return 100.0 * (best_classes(votes).squeeze(1) == labels).double().mean().item()
