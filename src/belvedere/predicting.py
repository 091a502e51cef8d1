"""`belvedere predict`: a fine-tuned classifier on images without labels."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from belvedere.atomic import write_atomically
from belvedere.errors import UserError
from belvedere.evaluate.classifier import load_classifier
from belvedere.images.canvases import Canvases, open_canvases
from belvedere.images.source import find_images
from belvedere.images.tiles import cut
from belvedere.measure.encoder import BORDER
from belvedere.pretrain.compose import device_of
from belvedere.pretrain.start import writing


@dataclass(frozen=True)
class Predictions:
    """What a classifier says of N images.

    Attributes:
        names: of the images.
        classes: K names of classes.
        probabilities: (N, K), rows sum to 1.
        skipped: (name, reason) of the images that could not be used.
    """

    names: list[str]
    classes: list[str]
    probabilities: NDArray[np.float64]
    skipped: list[tuple[str, str]]

    def best(self, top: int = 1) -> list[list[tuple[str, float]]]:
        """For every image its `top` most likely classes with their probabilities, the most likely first."""
        order = np.argsort(-self.probabilities, axis=1, kind="stable")[:, :top]
        return [
            [(self.classes[k], float(row[k])) for k in ranked]
            for ranked, row in zip(order, self.probabilities, strict=True)
        ]


def predict(
    classifier: str | Path, data: Any, *, out: str | Path | None = None, top: int = 5, device: str = "auto"
) -> Predictions:
    """Classify images with the transform, the normalisation and the class names that the classifier was tested with.

    Args:
        classifier: the folder that the protocol `finetune` of `belvedere evaluate` leaves in RUN/classifier.
        data: a folder, text list, glob, `.npy` or `.npz` file, array [N,H,W,C], or a map-style torch dataset.
        out: CSV to write: path, class, probability, then class_2, probability_2 and so on up to `top`; images that
            could not be used are named in NAME.skipped.csv beside it.

    Raises:
        UserError: when the folder is no classifier, or there is no usable image.
    """
    if out is not None and Path(out).suffix != ".csv":
        raise UserError(f"--out {out}: the ending must be .csv")
    device = device_of(device)
    loaded = load_classifier(classifier)
    side = round(max(loaded.size) * BORDER)
    source = cut(find_images(data, labels="none"), loaded.cutting)
    canvases = open_canvases(source, side, channels=len(loaded.mean), fewest=1)
    found = Predictions(
        names=canvases.names,
        classes=loaded.classes,
        probabilities=loaded.probabilities(canvases, device),
        skipped=[(item.name, item.reason) for item in canvases.skipped],
    )
    if out is not None:
        _write(found, canvases, Path(out), min(top, len(found.classes)))
    return found


def _write(found: Predictions, canvases: Canvases, path: Path, top: int) -> None:
    more = [f"{word}_{place}" for place in range(2, top + 1) for word in ("class", "probability")]
    rows = [
        [name, *(value for label, share in best for value in (label, f"{share:.6f}"))]
        for name, best in zip(found.names, found.best(top), strict=True)
    ]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda beside: _save(beside, [["path", "class", "probability", *more], *rows]))
        skipped = path.with_name(f"{path.stem}.skipped.csv")
        canvases.write_skipped(skipped)
    told = f"; {len(found.skipped)} images set aside, see {skipped}" if found.skipped else ""
    print(f"{len(rows)} images classified: {path}{told}", flush=True)


def _save(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)
