"""All protocols on some encoders: features extracted once, floors beside them, one failure does not stop the others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.evaluate.contract import PIXELS, RUN, UNTRAINED, EvalData, Protocol, Result, Subject
from belvedere.evaluate.splits import hold_out
from belvedere.explain import explain
from belvedere.images.annotations import Annotations
from belvedere.images.canvases import Canvases
from belvedere.images.masks import Masks
from belvedere.measure.encoder import Encoder
from belvedere.measure.floors import untrained
from belvedere.measure.twins import likely_twins

Options = TypeVar("Options", bound=BaseModel)

FLOORS = (UNTRAINED, PIXELS)
"""What goes through every protocol beside the run."""
QUICK_TRAIN, QUICK_TEST = 2000, 1000
"""Most images that `--quick` looks at."""
TWINS_NAMED = 100
"""Most pairs of a test image and its twin in training that results name."""


@dataclass(frozen=True)
class Given:
    """What a user brings to an evaluation.

    Attributes:
        train: images to learn and to choose from.
        test: images read once; None holds a tenth of `train` out, class by class.
        train_masks, test_masks: the classes of their pixels.
        train_objects, test_objects: boxes and outlines in them.
        other: images from elsewhere, to tell apart or to compare with.
        baselines: encoders to stand beside the run, by name.
        options: protocol name -> its options.
        paper: choose on the test images, as most papers do.
        quick: at most 2,000 training and 1,000 test images, class by class.
        floors: which of `FLOORS` are measured too.
        folder: where protocols may leave what they made for others to use; None keeps nothing.
        mirrored: whether protocols that train on views may mirror them: not where the run itself never did.
        seed: of the split, the untrained floor and the intervals.
    """

    train: Canvases
    test: Canvases | None = None
    train_masks: Masks | None = None
    test_masks: Masks | None = None
    train_objects: Annotations | None = None
    test_objects: Annotations | None = None
    other: Canvases | None = None
    baselines: Mapping[str, Encoder] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    paper: bool = False
    quick: bool = False
    floors: Sequence[str] = FLOORS
    folder: Path | None = None
    mirrored: bool = True
    seed: int = 0

    def has(self, need: str) -> bool:
        """Whether there is what a protocol needs."""
        if need == "labels":
            return self.train.labels is not None and bool((self.train.labels >= 0).any())
        brought = {"masks": self.train_masks, "objects": self.train_objects, "other": self.other}
        return brought[need] is not None


def suitable(given: Given) -> list[str]:
    """The protocols to run where none is named: with `quick` all quick ones that the images allow.

    Else k-NN and the logistic probe of labelled images, segmentation where there are masks, and clusters and
    duplicates where there is neither; training a detector takes hours, so that is asked for.
    """
    if given.quick:
        names = plugins.names("protocol")
    elif given.has("masks"):
        names = ["seg_knn"]
    else:
        names = ["knn", "logistic"] if given.has("labels") else ["cluster", "duplicates"]
    kinds = {name: plugins.load("protocol", name) for name in names}
    return [n for n, kind in kinds.items() if all(map(given.has, kind.needs)) and (kind.quick or not given.quick)]


def evaluate_encoder(
    encoder: Encoder,
    given: Given,
    protocols: Sequence[str],
    device: torch.device | str = "cpu",
    cache_dir: Path | None = None,
) -> list[Result]:
    """Run protocols, by name.

    Args:
        cache_dir: of the features, see `extract`.

    Returns:
        One result a protocol, in order; where one failed, `settings["error"]` says why and `metrics` is empty.

    Raises:
        UserError: for an unknown protocol or option, or images without what a protocol needs.
    """
    prepared = prepare(encoder, given, protocols, device, cache_dir)
    return prepared.run()


@dataclass(frozen=True)
class Prepared:
    """Protocols with their options, and the data that they read; `settings` stand in every result."""

    protocols: dict[str, Protocol]
    data: EvalData
    settings: dict[str, Any]

    def fill_cache(self) -> None:
        """Let all processes, each of which must call this, share the work on the features that protocols will read."""
        networks = [subject for subject in self.data.subjects.values() if subject.encoder is not None]
        for subject, canvases in product(networks, (self.data.train, self.data.test)):
            # Every process fails alike; the protocol that meets the failure again tells it.
            with suppress(UserError):
                subject.features(canvases, together=True)

    def run(self) -> list[Result]:
        """One result a protocol, in order."""
        settings = self.settings | self._twins()
        return [self._run(name, settings) for name in self.protocols]

    def _twins(self) -> dict[str, Any]:
        """How many test images have a twin in training by the run's features, and some pairs by name."""
        train, test, run = self.data.train, self.data.test, self.data.subjects[RUN]
        # The protocol that meets the failure again tells it.
        with suppress(UserError):
            pairs = likely_twins(run.features(test), test, run.features(train), train)
            named = [[test.names[i], train.names[j]] for i, j in pairs[:TWINS_NAMED].tolist()]
            return {"twins": {"images": len(pairs), "pairs": named}}
        return {}

    def _run(self, name: str, settings: Mapping[str, Any]) -> Result:
        start = time.perf_counter()
        try:
            result = self.protocols[name].run(self.data)
        # Whatever stops one protocol must not cost the user the others; it is reported in the result.
        except UserError as error:
            result = Result(name, {}, {}, {"error": str(error)})
        except Exception as error:
            result = Result(name, {}, {}, {"error": f"{type(error).__name__}: {error}"})
        seconds = round(time.perf_counter() - start, 2)
        return replace(result, settings={**settings, **result.settings, "seconds": seconds})


def prepare(
    encoder: Encoder, given: Given, protocols: Sequence[str], device: torch.device | str, cache_dir: Path | None
) -> Prepared:
    """Everything but the running: see `evaluate_encoder`."""
    kinds: dict[str, type[Protocol]] = {name: plugins.load("protocol", name) for name in protocols}
    unknown = [name for name in given.options if name not in kinds]
    if unknown:
        raise UserError(f"{unknown[0]}: no protocol of that name runs; {plugins.nearest(unknown[0], list(kinds))}")
    made = {name: kind(read_options(name, kind.Options, given.options.get(name, {}))) for name, kind in kinds.items()}
    needs = {need for kind in kinds.values() for need in kind.needs}
    _check_needs(given, kinds)
    brought = _Images(given.train, [], given.train_masks, given.train_objects)
    train = _images(brought, "labels" in needs, "the training images")
    if given.test is None:
        fit, held = hold_out(_ids(train.names), given.seed, groups=train.canvases.groups)
        test, train = train.rows(held), train.rows(fit)
        what = "a stratified tenth of the images" if any(train.names) else "a tenth of the images"
        what = what if train.canvases.groups is None else "a tenth of the groups"
        split = f"{what}, {len(held)} of {len(held) + len(fit)}, was held out as test"
    else:
        brought = _Images(given.test, [], given.test_masks, given.test_objects)
        test = _images(brought, "labels" in needs, "the test images")
        split = "the test images given"
    if given.quick:
        train, test = _fewer(train, QUICK_TRAIN, given.seed), _fewer(test, QUICK_TEST, given.seed)
        split += f"; quick: {len(train.names)} training and {len(test.names)} test images"
    # Images of other channels stop every protocol, so they are refused before the first.
    encoder.preprocess(train.canvases.batch([0]))
    subjects = _subjects(encoder, given, device, cache_dir)
    classes = sorted({*train.names, *test.names} - {""})
    number = {name: i for i, name in enumerate(classes)} | {"": -1}
    data = EvalData(
        subjects=subjects,
        train=train.canvases,
        test=test.canvases,
        train_labels=np.array([number[name] for name in train.names], np.int64),
        test_labels=np.array([number[name] for name in test.names], np.int64),
        classes=classes,
        train_masks=train.masks,
        test_masks=test.masks,
        train_objects=train.objects,
        test_objects=test.objects,
        other=given.other,
        folder=given.folder,
        mirrored=given.mirrored,
        paper=given.paper,
        seed=given.seed,
    )
    settings = {
        **encoder.describe(),
        "encoder": encoder.fingerprint(),
        "subjects": {name: _identity(subject) for name, subject in subjects.items()},
        "split": split,
        "train": _describe(train, given.train),
        "test": _describe(test, given.train if given.test is None else given.test),
        "classes": len(classes),
        "seed": given.seed,
        "features": "float32" if cache_dir is None else "float16 cache",
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "scikit-learn")},
    }
    if given.paper:
        settings["selected_on_test"] = True
    if given.other is not None:
        settings["other"] = _describe(_images(_Images(given.other), False, "the other images"), given.other)
    if given.baselines:
        settings["baselines"] = {name: one.describe() for name, one in given.baselines.items()}
    return Prepared(made, data, settings)


@dataclass(frozen=True)
class _Images:
    """Images, the name of each one's class ("" for none), and their masks and objects where there are any."""

    canvases: Canvases
    names: list[str] = field(default_factory=list)
    masks: Masks | None = None
    objects: Annotations | None = None

    def rows(self, rows: NDArray[np.int64]) -> _Images:
        masks = None if self.masks is None else self.masks.subset(rows)
        objects = None if self.objects is None else self.objects.subset(rows)
        return _Images(self.canvases.subset(rows), [self.names[i] for i in rows], masks, objects)


def _images(brought: _Images, labelled: bool, what: str) -> _Images:
    """All images, or those that have a label.

    Raises:
        UserError: when labels are needed and none has one.
    """
    canvases, labels = brought.canvases, brought.canvases.labels
    names = [""] * len(canvases) if labels is None else [canvases.classes[i] if i >= 0 else "" for i in labels]
    every = replace(brought, names=names)
    if not labelled:
        return every
    rows = np.array([i for i, name in enumerate(names) if name], np.int64)
    if not len(rows):
        raise UserError(
            f"{what} have no labels, which evaluation needs: put each class in a folder of its own, "
            "or give a CSV with the columns path,label"
        )
    return every if len(rows) == len(names) else every.rows(rows)


def _fewer(images: _Images, most: int, seed: int) -> _Images:
    """At most so many of them, class by class."""
    if len(images.names) <= most:
        return images
    _, kept = hold_out(_ids(images.names), seed, most / len(images.names))
    return images.rows(kept[:most])


def _subjects(encoder: Encoder, given: Given, device: torch.device | str, cache_dir: Path | None) -> dict[str, Subject]:
    taken = [name for name in given.baselines if name in {RUN, *FLOORS}]
    if taken:
        raise UserError(f"--baseline: '{taken[0]}' is the name of something else here; give it another name")
    networks = {RUN: encoder, **given.baselines}
    if UNTRAINED in given.floors:
        networks[UNTRAINED] = untrained(encoder, given.seed)
    found = {name: Subject(name, one.to(device), device, cache_dir) for name, one in networks.items()}
    return found | ({PIXELS: Subject(PIXELS, None)} if PIXELS in given.floors else {})


def _check_needs(given: Given, kinds: Mapping[str, type[Protocol]]) -> None:
    how = {
        "masks": "masks of their pixels, images/NAME.jpg beside masks/NAME.png",
        "objects": "boxes of objects, images/NAME.jpg beside annotations/instances.json in COCO's form",
        "other": "images from elsewhere, --other FOLDER",
    }
    for name, kind in kinds.items():
        for need in kind.needs:
            if need in how and not given.has(need):
                raise UserError(f"--protocol {name}: needs {how[need]}")


def read_options(name: str, options: type[Options], given: Mapping[str, Any]) -> Options:
    """Options from what a user gave as NAME.KEY=VALUE.

    Raises:
        UserError: for an unknown key, naming the nearest known one, or a value that does not fit.
    """
    try:
        return options.model_validate(dict(given))
    except ValidationError as error:
        errors = error.errors(include_url=False)
        word = str(errors[0]["loc"][0]) if errors[0]["loc"] else ""
        if errors[0]["type"] == "extra_forbidden":
            known = [f"{name}.{option}" for option in options.model_fields]
            raise UserError(f"unknown key '{name}.{word}': {plugins.nearest(f'{name}.{word}', known)}") from None
        raise UserError(f"{name}.{word}: {explain([one for one in errors if one['loc'][:1] == (word,)])}") from None


def _identity(subject: Subject) -> str:
    return PIXELS if subject.encoder is None else subject.encoder.fingerprint()


def _ids(names: list[str]) -> NDArray[np.int64]:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _describe(used: _Images, source: Canvases) -> dict[str, Any]:
    told: dict[str, Any] = {
        "images": len(used.canvases),
        "fingerprint": used.canvases.fingerprint,
        "files": _digest(used.canvases.names),
        "labels": _digest(used.names),
        "unlabelled": sum(not name for name in used.names) if source.labels is None else int((source.labels < 0).sum()),
        "skipped": [[item.name, item.reason] for item in source.skipped],
    }
    truths = {"masks": used.masks, "objects": used.objects}
    return told | {name: truth.fingerprint() for name, truth in truths.items() if truth is not None}


def _digest(texts: Sequence[str]) -> str:
    return hashlib.blake2b("\n".join(texts).encode("utf-8", "replace"), digest_size=16).hexdigest()
