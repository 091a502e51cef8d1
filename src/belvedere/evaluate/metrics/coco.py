"""Average precision of boxes and instance masks as COCO counts it (Lin et al., arXiv:1405.0312); spec evaluation 2.10.

For every class, detections are matched to objects from the surest down, at ten thresholds of the overlap from 0.5 to
0.95; the precision is read at 101 levels of recall and averaged. Counted by torchmetrics with faster-coco-eval, which
need the extra `detection`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from belvedere.errors import UserError

# Passed in float64: the library's own are float32, where a recall of exactly 0.2 misses the level 0.2.
OVERLAPS = np.linspace(0.5, 0.95, 10).tolist()
RECALLS = np.linspace(0, 1, 101).tolist()
NAMES = {
    "ap": "map",
    "ap50": "map_50",
    "ap75": "map_75",
    "ap_small": "map_small",
    "ap_medium": "map_medium",
    "ap_large": "map_large",
    "ar1": "mar_1",
    "ar10": "mar_10",
    "ar100": "mar_100",
    "ar_small": "mar_small",
    "ar_medium": "mar_medium",
    "ar_large": "mar_large",
}
"""COCO's twelve numbers in its order, by the library's names."""


@dataclass(frozen=True)
class Objects:
    """What is in an image, or was found there.

    Attributes:
        boxes: (n, 4) left, top, width, height in pixels.
        classes: (n,) int64.
        scores: (n,) how sure, of what was found.
        masks: (n, H, W) bool, for the average precision of masks.
        crowd: (n,) bool, of what is there: a group in one box, which is neither found nor missed.
        area: (n,) in pixels, of what is there; else that of the box or the mask.
    """

    boxes: Tensor
    classes: Tensor
    scores: Tensor | None = None
    masks: Tensor | None = None
    crowd: Tensor | None = None
    area: Tensor | None = None

    def _plain(self) -> dict[str, Tensor]:
        named = {
            "boxes": self.boxes,
            "labels": self.classes,
            "scores": self.scores,
            "masks": self.masks,
            "iscrowd": None if self.crowd is None else self.crowd.long(),
            "area": self.area,
        }
        return {name: value for name, value in named.items() if value is not None}


class Precision:
    """COCO's twelve numbers of boxes, and of masks, over images that are told one after the other."""

    def __init__(self, *, masks: bool = False) -> None:
        """Begin with no image.

        Raises:
            UserError: when the extra is not installed.
        """
        # The library's names of both kinds begin so. Asked for masks alone, it leaves out images without a true one,
        # and with them what was found there.
        self.prefixes = {"box": "bbox_", "mask": "segm_"} if masks else {"box": ""}
        self.metric = self._empty(by_class=True)

    def _empty(self, *, by_class: bool = False) -> Any:
        kinds = ("bbox", "segm") if "mask" in self.prefixes else ("bbox",)
        return _metric(iou_type=kinds, iou_thresholds=OVERLAPS, rec_thresholds=RECALLS, class_metrics=by_class)

    def add(self, found: Objects, truth: Objects) -> None:
        """Tell what was found in an image and what is there; masks are kept as run lengths."""
        self.metric.update([found._plain()], [truth._plain()])

    def numbers(self, rows: Sequence[int] | None = None) -> dict[str, dict[str, float]]:
        """`ap` to `ar_large` in [0, 1] of "box" and "mask", NaN where no object is of that size.

        Args:
            rows: of these images, repeated or not, in place of all.
        """
        metric = self.metric
        if rows is not None:
            metric = self._empty()
            for name in metric._defaults:
                every = getattr(self.metric, name)
                getattr(metric, name).extend(every[i] for i in rows if every)
            metric._update_count = len(rows)
        values = metric.compute()
        return {
            kind: {name: _or_nan(float(values[prefix + theirs])) for name, theirs in NAMES.items()}
            for kind, prefix in self.prefixes.items()
        }

    def by_class(self) -> dict[str, dict[int, float]]:
        """`ap` of every class that is there or was found, of "box" and "mask"; NaN where it is only found."""
        values = self.metric.compute()
        classes = values["classes"].reshape(-1).tolist()
        return {
            kind: dict(zip(classes, map(_or_nan, values[f"{prefix}map_per_class"].reshape(-1).tolist()), strict=True))
            for kind, prefix in self.prefixes.items()
        }


def _or_nan(number: float) -> float:
    return number if number >= 0 else float("nan")


def detection_precision(found: Sequence[Objects], truth: Sequence[Objects], *, masks: bool = False) -> dict[str, float]:
    """COCO's twelve numbers, `ap` to `ar_large`, in [0, 1]; NaN where no object is of that size.

    Args:
        found, truth: what was found and what is there, an entry an image in the same order.
        masks: compare masks instead of boxes.

    Raises:
        UserError: when the extra is not installed.
    """
    precision = Precision(masks=masks)
    for one, there in zip(found, truth, strict=True):
        precision.add(one, there)
    return precision.numbers()["mask" if masks else "box"]


def _metric(**thresholds: Any) -> Any:
    try:
        import faster_coco_eval  # noqa: F401  (found missing only when counting otherwise)
        from torchmetrics.detection import MeanAveragePrecision

        return MeanAveragePrecision(box_format="xywh", backend="faster_coco_eval", **thresholds)
    except ImportError as error:
        raise UserError(
            'the average precision of detections needs an extra: pip install "belvedere[detection]"'
        ) from error
