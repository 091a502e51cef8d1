"""Segmentation by the whole network, trained end to end with a light head (Semantic FPN), beside the untrained one.

Semantic FPN (Kirillov et al., arXiv:1901.02446) on the pyramid of `evaluate/pyramid.py`, as SelfPatch transfers to
ADE20K (arXiv:2206.07990): maps after 3/12, 6/12, 9/12 and 12/12 of a transformer's blocks, brought to the finest by
convolutions and doublings, summed, one more convolution; cross-entropy of every labelled pixel; AdamW at 6e-5 with
weight decay 0.01, drop path 0.1; images mirrored and resized to 0.75 to 1.25 of their size. The learning rate falls in
steps as `detection`'s, where the paper's falls linearly, and colours are left alone. Nothing is chosen: the last
weights are tested, at the masks' size. Spec evaluation 2.9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from belvedere.evaluate.contract import MAJORITY, RUN, EvalData, Protocol, Result
from belvedere.evaluate.protocols import _training
from belvedere.evaluate.protocols._segmentation import SHOWN, Scored, always, masks_of
from belvedere.evaluate.protocols._training import SIZES, Scenes, fit, positions_told, pyramid_on
from belvedere.evaluate.pyramid import Pyramid
from belvedere.evaluate.segmentation import Areas
from belvedere.images.masks import IGNORE, Masks, shared_classes
from belvedere.images.survey import spread
from belvedere.measure.dense import classes_at_mask_size

DEPTHS = (3 / 12, 6 / 12, 9 / 12, 1.0)
"""Blocks that are read, as shares of all."""
GROUPS = 8


class Options(_training.Options):
    """See `_training`."""

    lr: float = Field(6e-5, gt=0)
    decay: float = Field(0.01, ge=0)
    """Weight decay of AdamW."""
    drop_path: float = Field(0.1, ge=0, lt=1)


class SemanticFpn(nn.Module):
    """Normalised pixels (N, C, H, W) -> (N, K, h, w) logits on the finest grid of the pyramid."""

    def __init__(self, pyramid: Pyramid, classes: int) -> None:
        super().__init__()
        self.pyramid = pyramid
        width, finest = pyramid.out_channels, pyramid.strides[0]
        doublings = [max(0, round(np.log2(stride / finest))) for stride in pyramid.strides]
        self.branches = nn.ModuleList(_branch(width, count) for count in doublings)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        maps = list(self.pyramid(pixels).values())
        finest = maps[0].shape[2:]
        grown = [branch(one) for branch, one in zip(self.branches, maps, strict=True)]
        same = [F.interpolate(one, finest, mode="bilinear", align_corners=False) for one in grown]
        logits: Tensor = self.classify(torch.stack(same).sum(0))
        return logits


def _branch(width: int, doublings: int) -> nn.Module:
    """A convolution, and as many more as the map is doubled, each followed by its doubling."""
    layers: list[nn.Module] = []
    for k in range(max(1, doublings)):
        layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(GROUPS, width), nn.ReLU()]
        if k < doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Masked(Scenes):
    """Images and the classes of their pixels."""

    masks: Masks

    def mask(self, i: int) -> Tensor:
        """(1, h, w) int64 classes of the pixels of image i in its original size, `IGNORE` for those left out."""
        return torch.from_numpy(self.masks[i]).long()[None].to(self.device)


class SegFpn(Protocol):
    """mIoU, mAcc, aAcc and the mean accuracy of an image in percent, and the IoU of every class."""

    Options = Options
    needs = ("masks",)

    def run(self, data: EvalData) -> Result:
        """Train a head with every subject that is a network, and segment the test images.

        Raises:
            UserError: when no pixel is labelled, the test images have no masks, or other classes.
        """
        train_masks, test_masks = masks_of(data)
        classes = shared_classes(train_masks, test_masks)
        shown = spread(len(data.test), SHOWN).tolist()
        areas: dict[str, Areas] = {}
        losses: dict[str, list[float]] = {}
        draws: dict[str, Any] = {}
        for name, encoder in data.encoders.items():
            scenes, held = (
                Masked(canvases, encoder, self.options.enlarged, data.device, masks, mirrored=data.mirrored)
                for canvases, masks in ((data.train, train_masks), (data.test, test_masks))
            )
            network, losses[name] = self.train(scenes, len(classes), data.seed)
            areas[name], predictions = segment(network, held, len(classes), shown)
            draws[name] = {"rows": shown, "predictions": predictions}
        areas[MAJORITY] = always(_commonest(train_masks, len(classes)), areas[RUN])
        scored = Scored.of(areas, classes, data.seed)
        return Result(
            protocol="seg_fpn",
            metrics=scored.metrics,
            chosen={},
            settings={
                **self.options.model_dump(),
                "width": self.options.width_on(data.device),
                **positions_told(data.encoders[RUN].backbone, self.options),
                "loss": losses,
                "transform": f"whole image, short side {self.options.enlarged:g} x the training size; "
                "scored at the masks' size",
                **scored.told(),
            },
            items=scored.items,
            draws=draws | {"classes": classes, "class_iou": scored.iou},
        )

    def train(self, scenes: Masked, classes: int, seed: int) -> tuple[nn.Module, list[float]]:
        """A copy of the network with its head, and the mean loss of every epoch.

        Raises:
            UserError: when the backbone cannot give maps, no pixel is labelled, or the loss is not finite.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = SemanticFpn(pyramid_on(scenes, DEPTHS, self.options, seed), classes).to(scenes.device)

            def backward(rows: NDArray[np.int64], rng: np.random.Generator) -> list[float]:
                # Images of one batch have sizes of their own, so their gradients are summed one by one.
                told = []
                for i in rows:
                    loss = loss_of(network, scenes, int(i), rng)
                    if loss is not None:
                        torch.autograd.backward(loss / len(rows))
                        told.append(float(loss.detach()))
                return told

            return network, fit(network, len(scenes), self.options, seed, "seg_fpn", backward)


def loss_of(network: nn.Module, scenes: Masked, i: int, rng: np.random.Generator) -> Tensor | None:
    """Cross-entropy over the labelled pixels of image i, mirrored or not, in a size of its own; None without any."""
    pixels, mask = scenes.pixels(i, float(rng.uniform(*SIZES))), scenes.mask(i)
    if bool(rng.integers(2)) and scenes.mirrored:
        pixels, mask = pixels.flip(-1), mask.flip(-1)
    size = pixels.shape[2:]
    target = F.interpolate(mask[:, None].float(), size, mode="nearest-exact")[:, 0].long()
    if not (target != IGNORE).any():
        return None
    logits = F.interpolate(network(pixels), size, mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, target, ignore_index=IGNORE)


@torch.no_grad()
def segment(
    network: nn.Module, scenes: Masked, classes: int, shown: list[int]
) -> tuple[Areas, list[NDArray[np.uint8]]]:
    """Areas (M, K) of the predictions for M images, and the predictions that are shown."""
    found, kept = [], []
    for i in range(len(scenes)):
        mask = scenes.masks[i]
        height, width = mask.shape
        prediction = classes_at_mask_size(network(scenes.pixels(i))[0].float(), (height, width))
        found.append(Areas.of(prediction, mask, classes))
        if i in shown:
            kept.append(prediction)
    return Areas.stack(found), kept


def _commonest(masks: Masks, classes: int) -> int:
    """The class of most labelled pixels."""
    counts = sum(np.bincount(masks[i].ravel(), minlength=IGNORE + 1)[:classes] for i in range(len(masks)))
    return int(np.argmax(counts))
