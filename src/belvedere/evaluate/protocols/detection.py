"""Finding objects: Mask R-CNN on the network, trained end to end beside the untrained one; needs boxes in COCO's form.

Mask R-CNN (He et al., arXiv:1703.06870) by torchvision on the pyramid of `evaluate/pyramid.py`, as SelfPatch transfers
to COCO (arXiv:2206.07990): maps after 4/12, 6/12, 8/12 and 12/12 of a transformer's blocks, AdamW at 5e-5 with
weight decay 0.05, drop path 0.05, 12 epochs with the learning rate a tenth after 8 and a hundredth after 11, whose
first tenth at most warms up; images mirrored and resized to 0.75 to 1.25 of their size. Objects without outlines make
it Faster R-CNN. Nothing is chosen: the last weights are tested. Spec evaluation 2.10.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from belvedere.errors import UserError
from belvedere.evaluate.contract import RUN, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import drawn_rows, from_draws, resample
from belvedere.evaluate.metrics.coco import Objects, Precision
from belvedere.evaluate.protocols._training import SIZES, Options, Scenes, fit, positions_told, pyramid_on
from belvedere.evaluate.pyramid import Pyramid, library
from belvedere.images.annotations import Annotations, Instance
from belvedere.images.survey import spread

DEPTHS = (4 / 12, 6 / 12, 8 / 12, 1.0)
"""Blocks that are read, as shares of all."""
DRAWS = 100
"""Of the bootstrap, since each counts average precision anew."""
SHOWN = 6
"""Test images whose objects are kept for the report."""
TOLD = ("ap", "ap50", "ap75")
# Smallest of the anchors of a map, in its strides: 32 px on COCO's finest.
ANCHOR = 8
# Proposals of an image that go on, as in Detectron2; torchvision keeps twice as many.
PROPOSALS = 1000


@dataclass(frozen=True)
class Annotated(Scenes):
    """Images and their objects."""

    annotations: Annotations

    def example(self, i: int, scale: float, mirrored: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """Pixels and target of image i, as torchvision's detectors are trained with; groups are left out."""
        pixels = self.pixels(i, scale)[0]
        height, width = pixels.shape[1:]
        own = self.annotations.sizes[i]
        objects = [one for one in self.annotations.objects[i] if not one.crowd]
        boxes = corners(objects) * torch.tensor([width / own[1], height / own[0]] * 2)
        target = {"boxes": boxes, "labels": torch.tensor([one.label + 1 for one in objects], dtype=torch.int64)}
        if self.annotations.outlined:
            target["masks"] = _resized(outlines(objects, own), (height, width)).to(torch.uint8)
        if mirrored and self.mirrored:
            pixels = pixels.flip(-1)
            target["boxes"] = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
            if "masks" in target:
                target["masks"] = target["masks"].flip(-1)
        return pixels, {name: value.to(self.device) for name, value in target.items()}


class Detection(Protocol):
    """Average precision of boxes, and of outlines where there are some, in percent: of all overlaps, at 50, at 75 %."""

    Options = Options
    needs = ("objects",)

    def run(self, data: EvalData) -> Result:
        """Train a detector on every subject that is a network, and look for the test images' objects.

        Raises:
            UserError: when there are no objects to learn from, the classes differ, or the extra is not installed.
        """
        train, test = data.train_objects, data.test_objects
        if train is None or test is None:
            which = "training" if train is None else "test"
            raise UserError(f"the {which} images have no objects: put annotations/instances.json beside images/")
        if train.classes != test.classes:
            raise UserError("the objects of training and test images have other classes; give both the same categories")
        for what, truth in (("training", train), ("test", test)):
            if all(one.crowd for objects in truth.objects for one in objects):
                raise UserError(f"the {what} images have not a single object")
        outlined = train.outlined and test.outlined
        # What is missing is found missing before hours of training.
        Precision(masks=outlined)
        for encoder in data.encoders.values():
            build(Pyramid(encoder.backbone, 8, DEPTHS), 1, outlined)
        shown = spread(len(data.test), SHOWN).tolist()
        rows = [one.tolist() for one in drawn_rows(resample(len(data.test), data.seed, DRAWS))]
        metrics: dict[str, dict[str, Number]] = {}
        further: dict[str, dict[str, float | None]] = {}
        losses: dict[str, list[float]] = {}
        class_ap: dict[str, Any] = {}
        draws: dict[str, Any] = {}
        for name, encoder in data.encoders.items():
            scenes, held = (
                Annotated(canvases, encoder, self.options.enlarged, data.device, truth, mirrored=data.mirrored)
                for canvases, truth in ((data.train, train), (data.test, test))
            )
            detector, losses[name] = self.train(scenes, data.seed, outlined)
            precision, found = look(detector, held, outlined, shown)
            metrics[name], further[name] = _told(precision, rows)
            class_ap[name] = _by_name(precision, train.classes)
            draws[name] = {"rows": shown, "found": found}
        return Result(
            protocol="detection",
            metrics=metrics,
            chosen={},
            settings={
                **self.options.model_dump(),
                "width": self.options.width_on(data.device),
                **positions_told(data.encoders[RUN].backbone, self.options),
                "object_classes": train.classes,
                "objects": {"train": sum(map(len, train.objects)), "test": sum(map(len, test.objects))},
                "outlines": outlined,
                "without_outline": {"train": train.without_outline, "test": test.without_outline},
                "loss": losses,
                "transform": f"whole image, short side {self.options.enlarged:g} x the training size",
                "further": further,
                "class_ap": class_ap,
                "interval": f"95 % bootstrap over {len(data.test)} test images, {DRAWS} draws",
            },
            draws=draws,
        )

    def train(self, scenes: Annotated, seed: int, outlined: bool) -> tuple[nn.Module, list[float]]:
        """A detector on a copy of the network, and the mean loss of every epoch.

        Raises:
            UserError: when the backbone cannot give maps, or the loss is not finite.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pyramid = pyramid_on(scenes, DEPTHS, self.options, seed)
            detector = build(pyramid, len(scenes.annotations.classes), outlined).to(scenes.device)

            def backward(rows: NDArray[np.int64], rng: np.random.Generator) -> list[float]:
                drawn = [scenes.example(int(i), float(rng.uniform(*SIZES)), bool(rng.integers(2))) for i in rows]
                losses = detector([pixels for pixels, _ in drawn], [target for _, target in drawn])
                loss: Tensor = torch.stack(list(losses.values())).sum()
                torch.autograd.backward(loss)
                return [float(loss.detach())]

            return detector, fit(detector, len(scenes), self.options, seed, "detection", backward)


def _told(precision: Precision, rows: Sequence[Sequence[int]]) -> tuple[dict[str, Number], dict[str, float | None]]:
    """The headline numbers with their intervals over draws of images, and all others; None where there is none."""
    metrics: dict[str, Number] = {}
    further: dict[str, float | None] = {}
    spreads = [precision.numbers(one) for one in rows]
    for kind, numbers in precision.numbers().items():
        for key, value in numbers.items():
            if key in TOLD:
                drawn = 100 * np.array([one[kind][key] for one in spreads])
                metrics[f"{kind}_{key}"] = from_draws(100 * value, drawn[~np.isnan(drawn)])
            else:
                further[f"{kind}_{key}"] = None if np.isnan(value) else 100 * value
    return metrics, further


def _by_name(precision: Precision, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Average precision of each class in percent, of boxes and outlines; None where the test images have none of it."""
    return {
        kind: {classes[k]: None if np.isnan(value) else 100 * value for k, value in values.items()}
        for kind, values in precision.by_class().items()
    }


def build(pyramid: Pyramid, classes: int, outlined: bool) -> nn.Module:
    """torchvision's Mask R-CNN, or Faster R-CNN without outlines, with heads as wide as the pyramid."""
    detection, width = library("models.detection"), pyramid.out_channels
    boxes, masks = detection.faster_rcnn, detection.mask_rcnn
    settings: dict[str, Any] = {
        "rpn_anchor_generator": _anchors(pyramid.strides),
        "box_roi_pool": _pool(pyramid.strides, 7),
        "box_head": boxes.TwoMLPHead(width * 7 * 7, 4 * width),
        "box_predictor": boxes.FastRCNNPredictor(4 * width, classes + 1),
        "rpn_post_nms_top_n_train": PROPOSALS,
    }
    if not outlined:
        return _as_they_come(detection.FasterRCNN(pyramid, **settings), pyramid)
    settings["mask_roi_pool"] = _pool(pyramid.strides, 14)
    settings["mask_head"] = masks.MaskRCNNHeads(width, (width,) * 4, 1)
    settings["mask_predictor"] = masks.MaskRCNNPredictor(width, width, classes + 1)
    return _as_they_come(detection.MaskRCNN(pyramid, **settings), pyramid)


def _pool(strides: Sequence[float], side: int) -> Any:
    """Pixels of a box from the map that suits its size; with our strides, which torchvision takes for powers of two."""
    ops = library("ops")
    pool = ops.MultiScaleRoIAlign([str(k) for k in range(len(strides))], side, 2)
    pool.scales = [1 / stride for stride in strides]
    finest = round(math.log2(strides[0]))
    pool.map_levels = ops.poolers.initLevelMapper(finest, finest + len(strides) - 1)
    return pool


def _anchors(strides: Sequence[float]) -> Any:
    """Boxes of one size a map and three shapes around every point; with our strides, which torchvision would round."""
    sizes = tuple((ANCHOR * stride,) for stride in strides)
    generator = library("models.detection.anchor_utils").AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))

    def place(images: Any, maps: Sequence[Tensor]) -> list[Tensor]:
        generator.set_cell_anchors(maps[0].dtype, maps[0].device)
        steps = [[torch.tensor(stride, device=maps[0].device)] * 2 for stride in strides]
        anchors = torch.cat(generator.grid_anchors([one.shape[-2:] for one in maps], steps))
        return [anchors for _ in images.image_sizes]

    generator.forward = place
    return generator


def _as_they_come(detector: Any, pyramid: Pyramid) -> nn.Module:
    """A detector that only pads its images: they come normalised and in their size."""
    channels, unit = pyramid.backbone.channels, math.lcm(pyramid.backbone.unit, pyramid.backbone.patch)
    transform = library("models.detection.transform").GeneralizedRCNNTransform
    detector.transform = transform(1, 1, [0.0] * channels, [1.0] * channels, size_divisible=unit)
    detector.transform.resize = lambda image, target=None: (image, target)
    found: nn.Module = detector
    return found


@torch.no_grad()
def look(
    detector: nn.Module, scenes: Annotated, outlined: bool, shown: Sequence[int]
) -> tuple[Precision, list[Objects]]:
    """Average precision over all images, of boxes and of outlines, and the boxes found in those that are shown."""
    precision, kept = Precision(masks=outlined), []
    for i in range(len(scenes)):
        found = find(detector, scenes, i)
        precision.add(found, truth(scenes.annotations, i, outlined))
        if i in shown:
            kept.append(replace(found, masks=None))
    return precision, kept


def find(detector: nn.Module, scenes: Annotated, i: int) -> Objects:
    """What a detector finds in image i, in its original pixels."""
    pixels = scenes.pixels(i)[0]
    height, width = scenes.annotations.sizes[i]
    (found,) = detector([pixels])
    boxes = found["boxes"].cpu() * torch.tensor([width / pixels.shape[2], height / pixels.shape[1]] * 2)
    masks = found.get("masks")
    return Objects(
        boxes=torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        classes=found["labels"].cpu() - 1,
        scores=found["scores"].cpu(),
        masks=None if masks is None else _resized(masks[:, 0], (height, width)).cpu(),
    )


def truth(annotations: Annotations, i: int, outlined: bool) -> Objects:
    """What is in image i."""
    objects = annotations.objects[i]
    boxes = corners(objects)
    return Objects(
        boxes=torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1),
        classes=torch.tensor([one.label for one in objects], dtype=torch.int64),
        masks=outlines(objects, annotations.sizes[i]) if outlined else None,
        crowd=torch.tensor([one.crowd for one in objects], dtype=torch.bool),
        area=torch.tensor([one.area for one in objects], dtype=torch.float32),
    )


def corners(objects: Sequence[Instance]) -> Tensor:
    """(n, 4) left, top, right, bottom."""
    boxes = torch.tensor([one.box for one in objects], dtype=torch.float32).reshape(-1, 4)
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


def outlines(objects: Sequence[Instance], size: tuple[int, int]) -> Tensor:
    """(n, h, w) bool."""
    return torch.from_numpy(np.stack([one.mask(size) for one in objects])) if objects else torch.zeros(0, *size).bool()


def _resized(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) shares to (n, *size) bool, half of a pixel and more; one by one, since in float they are large."""
    found = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    for mask, own in zip(masks, found, strict=True):
        own.copy_(F.interpolate(mask[None, None].float(), size, mode="bilinear", antialias=True)[0, 0] >= 0.5)
    return found
