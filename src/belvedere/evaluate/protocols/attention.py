"""Does the network look at the objects? Attention masks of the last block against true ones (Jaccard), needs masks.

DINO (arXiv:2104.14294), figure 4; spec evaluation 2.12. The class token's attention over the patches, at twice the
training size, head by head: the cells that hold the top 60 % of it, enlarged to the mask's size without smoothing, are
an attention mask (networks without class token: the mean patch asks). For every object of an image the best head counts
(an oracle, as in the paper), then the mean over objects and over images. Unlabelled pixels are left out; `best_ipvit`
counts them as background, as "Intriguing Properties of Vision Transformers" (arXiv:2105.10497) does. `mean_head` is no
oracle: one mask an image, of the attention averaged over heads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from belvedere.errors import UserError
from belvedere.evaluate.contract import RUN, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.evaluate.protocols._segmentation import masks_of, readers
from belvedere.images.masks import IGNORE
from belvedere.images.survey import spread
from belvedere.measure.attention import MASS, attention_maps, attention_masks
from belvedere.measure.dense import ENLARGED, PatchReader

SHOWN = 5
"""Images whose attention is kept for the report."""
BACKGROUND = ("background", "0")
"""Names of a first class that is no object; "0" is the name of one without a name."""


class Attention(Protocol):
    """Jaccard index of the best and of the mean head, in percent."""

    needs = ("masks",)

    def run(self, data: EvalData) -> Result:
        """Compare the attention of every subject that has one with the objects of the test images.

        Raises:
            UserError: when the run's network has no attention, the test images no masks, or none of them an object.
        """
        _, test_masks = masks_of(data)
        if "attention" not in data.encoders[RUN].backbone.can:
            name = data.encoders[RUN].backbone.architecture
            raise UserError(f"attention: {name} has no attention between a class token and patches")
        background = next((0 for name in test_masks.classes[:1] if name.lower() in BACKGROUND), None)
        looking = {
            name: reader
            for name, reader in readers(data).items()
            if not reader.raw and "attention" in reader.encoder.backbone.can
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in looking}
        rows: list[int] = []
        for i in range(len(data.test)):
            mask = torch.from_numpy(test_masks[i])
            objects = object_masks(mask, background)
            if not len(objects):
                continue
            rows.append(i)
            for name, reader in looking.items():
                maps = _maps(reader, data, i)
                found[name].append(scores(maps, objects, mask == IGNORE))
        if not rows:
            raise UserError("attention: no test image has a labelled object")
        counts = resample(len(rows), data.seed)
        items = {name: _columns(values) for name, values in found.items()}
        shown = [rows[k] for k in spread(len(rows), SHOWN)]
        metrics: dict[str, dict[str, Number]] = {
            name: {metric: mean_percent(values, counts) for metric, values in one.items()}
            for name, one in items.items()
        }
        return Result(
            protocol="attention",
            metrics=metrics,
            chosen={},
            settings={
                "mass": MASS,
                "query": {name: _query(reader) for name, reader in looking.items()},
                "heads": {name: reader.encoder.backbone.settings.get("heads") for name, reader in looking.items()},
                "without_attention": [name for name in data.subjects if name not in looking],
                "background": None if background is None else test_masks.classes[background],
                "transform": f"whole image, short side {ENLARGED:g} x the training size; scored at the masks' size",
                "images": len(rows),
                "without_object": len(data.test) - len(rows),
                "interval": f"95 % bootstrap over {len(rows)} test images, {DRAWS} draws",
            },
            items=items,
            draws={
                RUN: {
                    "rows": shown,
                    "maps": [_maps(looking[RUN], data, i) for i in shown],
                    "background": background,
                }
            },
        )


def object_masks(mask: Tensor, background: int | None) -> Tensor:
    """(O, H, W) bool: the pixels of every class of one (H, W) mask but the background and those left out."""
    labels = [label for label in np.unique(mask.numpy()).tolist() if label not in (IGNORE, background)]
    return torch.stack([mask == label for label in labels]) if labels else mask.new_zeros(0, *mask.shape).bool()


def scores(maps: Tensor, objects: Tensor, void: Tensor) -> dict[str, float]:
    """Jaccard indices of one image in [0, 1], means over its objects.

    Args:
        maps: (heads, h, w) attention.
        objects: (O, H, W) bool, O >= 1.
        void: (H, W) bool, pixels without a label.
    """
    size = (objects.shape[1], objects.shape[2])
    heads = enlarged(attention_masks(maps), size)
    mean = enlarged(attention_masks(maps.mean(0, keepdim=True)), size)
    return {
        "best_head": float(jaccard(heads & ~void, objects).amax(0).mean()),
        "mean_head": float(jaccard(mean & ~void, objects).mean()),
        "best_ipvit": float(jaccard(heads, objects).amax(0).mean()),
    }


def enlarged(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, h, w) bool at the size of the true masks, nearest cell."""
    return F.interpolate(masks[None].float(), size, mode="nearest-exact")[0].bool()


def jaccard(masks: Tensor, objects: Tensor) -> Tensor:
    """(n, O) float64 intersection over union of (n, H, W) masks with (O, H, W) objects, none of them empty."""
    a, b = masks.flatten(1).double(), objects.flatten(1).double()
    both = a @ b.T
    return both / (a.sum(1)[:, None] + b.sum(1)[None] - both)


def _maps(reader: PatchReader, data: EvalData, i: int) -> Tensor:
    return attention_maps(reader.encoder, reader.pixels(data.test, i))


def _query(reader: PatchReader) -> str:
    return "class token" if reader.encoder.backbone.has_class_token else "mean patch"


def _columns(values: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([one[name] for one in values]) for name in values[0]}
