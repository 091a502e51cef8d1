"""Runs beside each other, item by item: paired differences of what `belvedere evaluate` measured; spec section 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from belvedere.errors import UserError
from belvedere.evaluate.contract import RUN, Number
from belvedere.evaluate.intervals import paired_difference, resample
from belvedere.evaluate.records import read_results

Values = NDArray[np.float64]
Protocols = dict[str, dict[str, Any]]

# What must be equal where both tell it, else the numbers are of different images, and how a user is told.
_IMAGES = (
    (("test", "files"), "other test images"),
    (("test", "images"), "another number of test images"),
    (("train", "files"), "other training images"),
    (("test", "masks"), "other masks of the test images"),
    (("train", "masks"), "other masks of the training images"),
    (("test", "objects"), "other objects in the test images"),
    (("train", "objects"), "other objects in the training images"),
    (("test", "labels"), "other labels of the test images"),
    (("train", "labels"), "other labels of the training images"),
    (("classes",), "other classes"),
    (("other", "files"), "other images to compare with"),
)
# What describes the encoder or follows from it, and so may differ between runs, and what is checked on its own.
_ENCODERS = frozenset(
    {"architecture", "model_args", "reading", "size", "mean", "std", "precision", "transform", "encoder", "features"}
    | {"baselines", "subjects", "versions", "test", "train", "other", "split", "dimensions", "iterations", "seconds"}
    | {"patches", "query", "heads", "without_attention"}
    # What the encoder found.
    | {"counts", "groups", "groups_of_different_labels", "test_twins", "twins", "suspects", "silhouettes", "class_iou"}
    | {"loss", "further"}
)


@dataclass(frozen=True)
class Measured:
    """What a run's evaluation holds.

    Attributes:
        name: of the run, for people.
        protocols: name -> result as `Result.to_json` gives it, without those that failed.
        items: "protocol/subject/metric" -> one value a test item, (n,), or (draws, n).
    """

    name: str
    protocols: Protocols
    items: dict[str, Values]

    def number(self, protocol: str, metric: str, subject: str = RUN) -> Number | None:
        """One number of the run or of a floor, None where it was not measured."""
        found = self.protocols.get(protocol, {}).get("metrics", {}).get(subject, {}).get(metric)
        return None if found is None else Number(found["value"], found["low"], found["high"])


@dataclass(frozen=True)
class Difference:
    """A metric of a run less that of the first run.

    Attributes:
        points: the difference with its 95 % interval by paired bootstrap, in the metric's unit.
        p: of McNemar's exact test, where every item is right or wrong; None elsewhere.
    """

    points: Number
    p: float | None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves 0."""
        return self.points.low > 0 or self.points.high < 0


@dataclass(frozen=True)
class Comparison:
    """Runs measured on the same items.

    Attributes:
        runs: the first is what the others are compared with.
        differences: run name -> (protocol, metric) -> Difference, for what both runs have items of.
        notices: sentences on settings that differ.
    """

    runs: list[Measured]
    differences: dict[str, dict[tuple[str, str], Difference]]
    notices: list[str]

    def protocols(self) -> list[str]:
        """Those of all runs, in the order of their names."""
        return sorted({name for run in self.runs for name in run.protocols})

    def metrics(self, protocol: str, subject: str = RUN) -> list[str]:
        """Names of a protocol's metrics in any run, by name."""
        found = [run.protocols[protocol]["metrics"].get(subject, {}) for run in self.runs if protocol in run.protocols]
        return sorted({metric for numbers in found for metric in numbers})


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Read the evaluations of two or more runs and compare each with the first.

    Args:
        paths: folders of runs, or JSON files of evaluations; they are called by their names, or by their paths where
            two have the same name.

    Raises:
        UserError: when one was not evaluated, or on other images than the first.
    """
    if len({path.resolve() for path in paths}) < max(len(paths), 2):
        raise UserError("compare: give two or more different runs")
    names = [path.resolve().name for path in paths]
    unique = len(set(names)) == len(names)
    runs = [read_measured(name if unique else str(path), path) for name, path in zip(names, paths, strict=True)]
    first, others = runs[0], runs[1:]
    for other in others:
        _check_images(first, other)
    notices = [notice for other in others for notice in _unlike(first, other)]
    return Comparison(runs, {other.name: differences(first, other) for other in others}, notices)


def read_measured(name: str, path: Path) -> Measured:
    """Read what `belvedere evaluate` wrote into a run's folder, or to a JSON file.

    Raises:
        UserError: when there is none, or it is damaged.
    """
    file = path / "evaluation.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: was not evaluated yet; run `belvedere evaluate {path} DATA` first")
    results = [result for result in read_results(file) if "error" not in result.settings]
    protocols = {result.protocol: result.to_json() for result in results}
    items = {
        f"{result.protocol}/{subject}/{metric}": values
        for result in results
        for subject, of_subject in result.items.items()
        for metric, values in of_subject.items()
    }
    if not protocols:
        raise UserError(f"{file}: holds no result; run `belvedere evaluate` again")
    return Measured(name, protocols, items)


def differences(first: Measured, other: Measured) -> dict[tuple[str, str], Difference]:
    """Of every metric that both runs have the items of, the same draws of them for both."""
    found = {}
    for key in sorted(first.items.keys() & other.items.keys()):
        protocol, subject, metric = key.split("/", 2)
        numbers = first.number(protocol, metric), other.number(protocol, metric)
        if subject == RUN and numbers[0] is not None and numbers[1] is not None:
            a, b = first.items[key], other.items[key]
            if a.shape != b.shape:
                raise UserError(
                    f"{other.name}: {protocol} has {_items(b)}, {first.name} has {_items(a)}; evaluate alike"
                )
            found[protocol, metric] = difference(a, b, _unit(first, key, numbers[0]))
    return found


def _items(values: Values) -> str:
    draws = "" if values.ndim == 1 else f" in {len(values)} draws"
    return f"{values.shape[-1]} items{draws}"


def difference(first: Values, other: Values, unit: float = 100.0) -> Difference:
    """The mean of `other` less that of `first`, (n,) or (draws, n) values of the same items, times `unit`."""
    points = paired_difference(other, first, resample(first.shape[-1], 0), unit)
    binary = first.ndim == 1 and all(np.isin(values, (0, 1)).all() for values in (first, other))
    return Difference(points, mcnemar(first, other) if binary else None)


def mcnemar(first: Values, other: Values) -> float:
    """P-value of McNemar's exact test on (n,) zeros and ones: only items where the two differ say anything."""
    gained, lost = int((other > first).sum()), int((other < first).sum())
    return 1.0 if not gained + lost else float(binomtest(gained, gained + lost).pvalue)


def _unit(run: Measured, key: str, number: Number) -> float:
    """What the mean of items is multiplied with to give the metric: 100 for shares, else 1."""
    mean = float(run.items[key].mean())
    for unit in (100.0, 1.0):
        if np.isclose(unit * mean, number.value, rtol=1e-6, atol=1e-9):
            return unit
    raise UserError(f"{run.name}: {key} of evaluation.npz is not what evaluation.json says; evaluate it again")


def _check_images(first: Measured, other: Measured) -> None:
    a, b = (next(iter(run.protocols.values()))["settings"] for run in (first, other))
    for path, what in _IMAGES:
        here, there = _at(a, path), _at(b, path)
        if None not in (here, there) and here != there:
            raise UserError(
                f"{other.name}: was evaluated with {what} than {first.name}; evaluate both on the same images"
            )


def _at(settings: Any, path: Sequence[str]) -> Any:
    for key in path:
        settings = settings.get(key) if isinstance(settings, dict) else None
    return settings


def _unlike(first: Measured, other: Measured) -> list[str]:
    """A sentence for every setting of a protocol that differs though it does not describe the encoder."""
    told = []
    for name in sorted(first.protocols.keys() & other.protocols.keys()):
        a, b = (run.protocols[name]["settings"] for run in (first, other))
        keys = [key for key in sorted(a.keys() | b.keys()) if key not in _ENCODERS and a.get(key) != b.get(key)]
        told += [
            f"{name} was measured with {key} = {b.get(key)} in {other.name} and {a.get(key)} in {first.name}."
            for key in keys
        ]
    return told
