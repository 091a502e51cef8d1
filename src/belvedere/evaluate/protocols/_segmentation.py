"""What the segmenting protocols share: patches to learn from, choosing, predicting at the mask's size, scoring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from belvedere.errors import UserError
from belvedere.evaluate.contract import MAJORITY, RUN, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.evaluate.segmentation import Areas, score
from belvedere.images.canvases import Canvases
from belvedere.images.masks import Masks, shared_classes
from belvedere.images.survey import spread
from belvedere.measure.dense import ENLARGED, PatchReader, class_shares, classes_at_mask_size, dense_size
from belvedere.views.draws import bits

SHOWN = 6
"""Test images whose predictions are kept for the report."""

Classifier = Callable[[Tensor], Tensor]
"""(T, D) features of patches -> (S, T, K) scores of the K classes under each of S settings."""


@dataclass(frozen=True)
class Patches:
    """Patches to learn from, in main memory.

    Attributes:
        features: (P, D) float16.
        shares: (P, K) float32 shares of the classes in each, see `class_shares`.
        image: (P,) row of the image that each is of.
    """

    features: Tensor
    shares: Tensor
    image: NDArray[np.int64]

    def of(self, rows: NDArray[np.int64]) -> Patches:
        """Those of some images."""
        mine = torch.from_numpy(np.isin(self.image, rows))
        return Patches(self.features[mine], self.shares[mine], self.image[mine.numpy()])


class Segmenter(Protocol):
    """Base class: a classifier of single patches; a subclass says which, and what there is to choose."""

    needs = ("masks",)
    name: str
    choosing: str
    """What a setting is called in results."""

    def settings_for(self, patches: int) -> Sequence[float]:
        """Settings to choose from, when there are so many patches; of equals the first is taken."""
        raise NotImplementedError

    def fit(self, patches: Patches, settings: Sequence[float], device: torch.device | str) -> Classifier:
        """Learn from patches under each of the settings, on the device where the classifier's features will be."""
        raise NotImplementedError

    def told(self) -> dict[str, Any]:
        """Further settings for the result."""
        raise NotImplementedError

    def run(self, data: EvalData) -> Result:
        """Segment the test images with every subject, and with the class that is commonest in training.

        Raises:
            UserError: when no pixel is labelled, the test images have no masks, or other classes.
        """
        train_masks, test_masks = masks_of(data)
        classes = shared_classes(train_masks, test_masks)
        shown = spread(len(data.test), SHOWN).tolist()
        chosen: dict[str, float] = {}
        grid: dict[str, dict[str, float]] = {}
        areas: dict[str, Areas] = {}
        read: dict[str, dict[str, Any]] = {}
        draws: dict[str, Any] = {}
        for name, reader in readers(data).items():
            patches = collect(reader, data.train, train_masks, len(classes), self.options.patches, data.seed)
            grid[name], chosen[name] = self._choose(reader, data, patches, len(classes))
            classify = self.fit(patches, [chosen[name]], data.device)
            areas[name], predictions = segment(reader, classify, data.test, test_masks, len(classes), shown)
            draws[name] = {"rows": shown, "predictions": predictions}
            read[name] = _describe(reader, data.test, patches)
            if name == RUN:
                areas[MAJORITY] = always(int(patches.shares.sum(0).argmax()), areas[name])
        scored = Scored.of(areas, classes, data.seed)
        return Result(
            protocol=self.name,
            metrics=scored.metrics,
            chosen={self.choosing: chosen, "on": data.choice.said, "miou": grid},
            settings={
                **self.told(),
                "patches": read,
                "transform": f"whole image, short side {ENLARGED:g} x the training size; scored at the masks' size",
                **scored.told(),
            },
            items=scored.items,
            draws=draws | {"classes": classes, "class_iou": scored.iou},
        )

    def _choose(
        self, reader: PatchReader, data: EvalData, patches: Patches, classes: int
    ) -> tuple[dict[str, float], float]:
        """mIoU on the images to choose by under every setting, and the best setting."""
        train_masks, test_masks = masks_of(data)
        canvases, masks = (data.test, test_masks) if data.choice.on_test else (data.train, train_masks)
        settings = self.settings_for(len(patches.features))
        own = patches.of(data.choice.fit)
        if len(settings) == 1 or not len(own.features):
            return {}, settings[0]
        classify = self.fit(own, settings, data.device)
        found: list[list[Areas]] = [[] for _ in settings]
        for i in data.choice.val.tolist():
            mask = masks[i]
            predictions = predict(reader, classify, canvases, i, mask.shape)
            for of_setting, prediction in zip(found, predictions, strict=True):
                of_setting.append(Areas.of(prediction, mask, classes))
        scores = [float(Areas.stack(parts).total().scores()["miou"]) for parts in found]
        if np.isnan(scores).any():  # not a pixel there is labelled
            return {}, settings[0]
        best = max(range(len(settings)), key=scores.__getitem__)
        return {f"{s:g}": value for s, value in zip(settings, scores, strict=True)}, settings[best]


@dataclass(frozen=True)
class Scored:
    """What a result tells of segmented images.

    Attributes:
        metrics, items: see `Result`.
        iou: of every class, by subject.
    """

    metrics: dict[str, dict[str, Number]]
    items: dict[str, dict[str, NDArray[np.float64]]]
    iou: dict[str, dict[str, Number | None]]
    images: int
    unlabelled: int

    @staticmethod
    def of(areas: Mapping[str, Areas], classes: Sequence[str], seed: int) -> Scored:
        """Scores of each subject's areas (M, K) over the same M images."""
        count = len(areas[RUN].there)
        counts = resample(count, seed)
        scored = {name: score(one, counts) for name, one in areas.items()}
        images = {name: _image_accuracy(one) for name, one in areas.items()}
        labelled = ~np.isnan(images[RUN])
        again = resample(int(labelled.sum()), seed)
        return Scored(
            metrics={
                name: {**numbers, "image_acc": mean_percent(images[name][labelled], again)}
                for name, (numbers, _) in scored.items()
            },
            items={name: {"image_acc": values[labelled]} for name, values in images.items()},
            iou={name: dict(zip(classes, by_class, strict=True)) for name, (_, by_class) in scored.items()},
            images=count,
            unlabelled=int((~labelled).sum()),
        )

    def told(self) -> dict[str, Any]:
        """What stands among a result's settings."""
        return {
            "classes": len(self.iou[RUN]),
            "class_iou": {name: {label: _plain(one) for label, one in row.items()} for name, row in self.iou.items()},
            "unlabelled_test_images": self.unlabelled,
            "interval": f"95 % bootstrap over {self.images} test images, {DRAWS} draws",
        }


def masks_of(data: EvalData) -> tuple[Masks, Masks]:
    """The masks of the training and of the test images.

    Raises:
        UserError: when one of them has none.
    """
    if data.train_masks is None or data.test_masks is None:
        which = "training" if data.train_masks is None else "test"
        raise UserError(
            f"the {which} images have no masks: put them into images/ and their masks into masks/ beside it"
        )
    return data.train_masks, data.test_masks


def readers(data: EvalData, enlarged: float = ENLARGED) -> dict[str, PatchReader]:
    """Every subject patch by patch, at so many times its training size; raw pixels in the patches of the run."""
    run = data.encoders[RUN]
    return {
        name: PatchReader(subject.encoder or run, data.device, raw=subject.encoder is None, enlarged=enlarged)
        for name, subject in data.subjects.items()
    }


def collect(reader: PatchReader, canvases: Canvases, masks: Masks, classes: int, most: int, seed: int) -> Patches:
    """At most about `most` labelled patches, as many of each image, drawn at random where an image has more.

    Raises:
        UserError: when not a single pixel is labelled.
    """
    each = max(1, most // len(canvases))
    features, shares, image = [], [], []
    for i in range(len(canvases)):
        found = reader.read(canvases, i)
        of_cells = class_shares(masks[i], (found.shape[1], found.shape[2]), classes)
        labelled = np.flatnonzero(of_cells.sum(1).numpy() > 0)
        order = np.argsort(bits(seed, 0, [i], ["segmentation/patches"], len(labelled))[0, 0], kind="stable")
        taken = np.sort(labelled[order[:each]])
        features.append(found.flatten(1).T[torch.from_numpy(taken).to(found.device)].half().cpu())
        shares.append(of_cells[torch.from_numpy(taken)])
        image.append(np.full(len(taken), i))
    if not sum(map(len, image)):
        raise UserError("not a single pixel of the training masks is labelled: there is nothing to learn from")
    return Patches(torch.cat(features), torch.cat(shares), np.concatenate(image))


def segment(
    reader: PatchReader, classify: Classifier, canvases: Canvases, masks: Masks, classes: int, shown: Sequence[int]
) -> tuple[Areas, list[NDArray[np.uint8]]]:
    """Areas (M, K) of the predictions for M images under a classifier of one setting, and those that are shown."""
    found: list[Areas] = []
    kept: list[NDArray[np.uint8]] = []
    for i in range(len(canvases)):
        mask = masks[i]
        prediction = predict(reader, classify, canvases, i, mask.shape)[0]
        found.append(Areas.of(prediction, mask, classes))
        if i in shown:
            kept.append(prediction)
    return Areas.stack(found), kept


def predict(
    reader: PatchReader, classify: Classifier, canvases: Canvases, i: int, size: tuple[int, ...]
) -> list[NDArray[np.uint8]]:
    """Classes (h, w) of the pixels of image i in its mask's size, under each setting of a classifier."""
    found = reader.read(canvases, i)
    scores = classify(found.flatten(1).T)
    maps = scores.transpose(1, 2).reshape(len(scores), -1, *found.shape[1:])
    height, width = size
    return [classes_at_mask_size(one, (height, width)) for one in maps]


def always(label: int, areas: Areas) -> Areas:
    """Areas of the answer `label` everywhere."""
    right, predicted = np.zeros_like(areas.right), np.zeros_like(areas.right)
    right[:, label], predicted[:, label] = areas.there[:, label], areas.there.sum(1)
    return Areas(right, predicted, areas.there)


def _image_accuracy(areas: Areas) -> NDArray[np.float64]:
    """(M,) share of each image's labelled pixels that are right, NaN where it has none."""
    pixels = areas.there.sum(1)
    shares: NDArray[np.float64] = np.where(pixels > 0, areas.right.sum(1) / np.maximum(pixels, 1), np.nan)
    return shares


def _describe(reader: PatchReader, canvases: Canvases, patches: Patches) -> dict[str, Any]:
    height, width = canvases.sizes[0].tolist()
    return {
        "learned_from": len(patches.features),
        "dimensions": patches.features.shape[1],
        "side": reader.encoder.backbone.patch,
        "first_test_image": list(dense_size(reader.encoder, (height, width))),
    }


def _plain(number: Number | None) -> list[float] | None:
    return None if number is None else [number.value, number.low, number.high]
