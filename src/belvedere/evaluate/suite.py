"""All protocols on one encoder: features extracted once, floors beside them, one failure does not stop the others."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.evaluate.contract import EvalData, Protocol, Result
from belvedere.evaluate.splits import hold_out
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.features import extract
from belvedere.measure.floors import raw_pixels, untrained

FLOORS = ("untrained", "pixels")
"""What goes through every protocol beside the run."""


@dataclass(frozen=True)
class Labelled:
    """Images that all have a label, and the name of each one's class."""

    canvases: Canvases
    names: list[str]


def evaluate_encoder(
    encoder: Encoder,
    train: Canvases,
    test: Canvases | None,
    protocols: Sequence[str],
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
    seed: int = 0,
    floors: Sequence[str] = FLOORS,
) -> list[Result]:
    """Run protocols, by name, on labelled images.

    Args:
        train: images to learn and to choose from; those without a label are left out.
        test: images read once; None holds a tenth of `train` out, class by class.
        cache_dir: of the features, see `extract`.
        seed: of the split, the untrained floor and the intervals.
        floors: which of `FLOORS` are measured too.

    Returns:
        One result a protocol, in order; where one failed, `settings["error"]` says why and `metrics` is empty.

    Raises:
        UserError: for an unknown protocol, or images without labels.
    """
    kinds: dict[str, type[Protocol]] = {name: plugins.load("protocol", name) for name in protocols}
    known = labelled(train, "the training images")
    if test is None:
        fit, held = hold_out(_ids(known.names), seed, groups=known.canvases.groups)
        read = _rows(known, held)
        known = _rows(known, fit)
        split = f"a stratified tenth of the images, {len(held)} of {len(held) + len(fit)}, was held out as test"
    else:
        read = labelled(test, "the test images")
        split = "the test images given"
    data = _data(encoder, known, read, device, cache_dir, seed, floors)
    shared = {
        **encoder.describe(),
        "encoder": encoder.fingerprint(),
        "split": split,
        "train": _describe(known, train),
        "test": _describe(read, train if test is None else test),
        "classes": len(data.classes),
        "seed": seed,
        "features": "float32" if cache_dir is None else "float16 cache",
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "scikit-learn")},
    }
    return [_run(name, kind, encoder, data, shared) for name, kind in kinds.items()]


def labelled(canvases: Canvases, what: str) -> Labelled:
    """The images that have a label.

    Raises:
        UserError: when none has one.
    """
    rows = np.array([], np.int64) if canvases.labels is None else np.flatnonzero(canvases.labels >= 0)
    if canvases.labels is None or not len(rows):
        raise UserError(
            f"{what} have no labels, which evaluation needs: put each class in a folder of its own, "
            "or give a CSV with the columns path,label"
        )
    kept = canvases if len(rows) == len(canvases) else canvases.subset(rows)
    return Labelled(kept, [canvases.classes[i] for i in canvases.labels[rows]])


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON; equal seeds give equal files but for the key "seconds"."""
    plain = [result.to_json() for result in results]
    seconds = {one["protocol"]: one["settings"].pop("seconds", None) for one in plain}
    text = json.dumps({"results": plain, "seconds": seconds}, indent=2, sort_keys=True, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    unfinished.write_text(text + "\n", encoding="utf-8")
    unfinished.replace(path)


def _data(
    encoder: Encoder,
    train: Labelled,
    test: Labelled,
    device: torch.device | str,
    cache_dir: Path | None,
    seed: int,
    floors: Sequence[str],
) -> EvalData:
    """Features of the run and of the floors, and labels over the union of both splits' classes, matched by name."""
    classes = sorted(set(train.names) | set(test.names))
    number = {name: i for i, name in enumerate(classes)}
    encoders = {"run": encoder, **({"untrained": untrained(encoder, seed)} if "untrained" in floors else {})}
    features = {
        name: (
            extract(one, train.canvases, device=device, cache_dir=cache_dir),
            extract(one, test.canvases, device=device, cache_dir=cache_dir),
        )
        for name, one in encoders.items()
    }
    if "pixels" in floors:
        features["pixels"] = (raw_pixels(train.canvases), raw_pixels(test.canvases))
    return EvalData(
        train=train.canvases,
        test=test.canvases,
        features=features,
        train_labels=np.array([number[name] for name in train.names], np.int64),
        test_labels=np.array([number[name] for name in test.names], np.int64),
        classes=classes,
        seed=seed,
    )


def _run(name: str, kind: type[Protocol], encoder: Encoder, data: EvalData, shared: dict[str, Any]) -> Result:
    start = time.perf_counter()
    try:
        result = kind(kind.Options()).run(encoder, data)
    # Whatever stops one protocol must not cost the user the others; it is reported in the result.
    except Exception as error:
        result = Result(name, {}, {}, {"error": f"{type(error).__name__}: {error}"})
    seconds = round(time.perf_counter() - start, 2)
    return replace(result, settings={**shared, **result.settings, "seconds": seconds})


def _rows(data: Labelled, rows: NDArray[np.int64]) -> Labelled:
    return Labelled(data.canvases.subset(rows), [data.names[i] for i in rows])


def _ids(names: list[str]) -> NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _describe(used: Labelled, source: Canvases) -> dict[str, Any]:
    return {
        "images": len(used.canvases),
        "fingerprint": used.canvases.fingerprint,
        "unlabelled": 0 if source.labels is None else int((source.labels < 0).sum()),
        "skipped": [[item.name, item.reason] for item in source.skipped],
    }
