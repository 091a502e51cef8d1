"""A run as its folder tells it: whatever is there is read, whatever is not yet there is absent and no error."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from safetensors import SafetensorError, safe_open

from belvedere import config as configuration
from belvedere.config import Resolved
from belvedere.evaluate.stored import is_result
from belvedere.measure.bands import COLORS, Color
from belvedere.pretrain.folder import RunFolder
from belvedere.report.drawing import Picture

# What a run has to pass, and how the page calls it.
FLOORS = {"pixels": "raw pixels", "untrained": "untrained", "start": "starting weights"}
DAMAGED_LOOK = "metrics.jsonl is damaged: what it tells of the health is left out where it is not as a run writes it."
Series = list[tuple[int, float]]


@dataclass(frozen=True)
class Look:
    """What the monitor said after `step` steps: a word, sentences and a colour; without values between two looks.

    `values` holds what was measured, and what was judged (medians of the steps, changes along the run); `judged` the
    names of the latter. `elapsed` is in seconds since the run was started or resumed; None where nothing was measured.
    """

    step: int
    values: dict[str, float]
    word: str
    why: list[str]
    color: Color
    judged: frozenset[str]
    elapsed: float | None = None


@dataclass(frozen=True)
class Record:
    """What a run's folder holds.

    Attributes:
        folder: of the run.
        resolved: its configuration, with the origin of every value.
        steps: one dict a step, without what is not finite.
        looks: oldest first.
        skipped: (file, reason) of the images that were set aside; None when that is not known.
        pictures: of the encoder, in the page's order.
        images, labelled: how many; None when that is not known.
        evaluation: results as `Result.to_json` gives them.
        verdict: what they say of the run beside its rivals, in sentences.
        evaluation_pictures: of the results, by protocol.
        parameters: of the exported model; None while there is none.
        ended: why the run ended early; empty when it did not.
        not_finite: a sentence on the steps that moved nothing; empty when there were none.
        damaged: sentences on files that cannot be read.
    """

    folder: Path
    resolved: Resolved
    steps: list[dict[str, float]]
    looks: list[Look]
    skipped: list[tuple[str, str]] | None
    pictures: list[Picture]
    images: int | None
    labelled: int | None
    evaluation: list[dict[str, Any]]
    parameters: int | None
    verdict: list[str] = field(default_factory=list)
    evaluation_pictures: dict[str, list[Picture]] = field(default_factory=dict)
    ended: str = ""
    not_finite: str = ""
    damaged: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        """Steps done."""
        last_step = int(self.steps[-1]["step"]) + 1 if self.steps else 0
        return max([last_step, *(look.step for look in self.looks[-1:])])

    @property
    def planned(self) -> int:
        """Steps of the whole run; 0 while that is not measured."""
        steps = self.resolved.config.train.steps
        return 0 if steps == "auto" else steps

    @property
    def finished(self) -> bool:
        """Whether the last step was done and the model written."""
        return self.parameters is not None and self.done >= self.planned > 0

    @property
    def judged(self) -> frozenset[str]:
        """Names of the values that the monitor judged."""
        return frozenset().union(*(look.judged for look in self.looks))

    def of_steps(self, name: str) -> Series:
        """(step, value) of a scalar of the steps."""
        return [(int(entry["step"]), entry[name]) for entry in self.steps if name in entry]

    def of_looks(self, name: str) -> Series:
        """(step, value) of a value of the looks."""
        return [(look.step, look.values[name]) for look in self.looks if name in look.values]

    def over_time(self, name: str) -> list[tuple[float, float]]:
        """(seconds of wall-clock, value) of a value of the looks.

        A resumed run's clock goes on where the last look before it left it: what was done twice is not seen.
        """
        timed = [(look, look.elapsed) for look in self.looks if look.elapsed is not None]
        seconds = since_start([elapsed for _, elapsed in timed])
        return [(at, look.values[name]) for at, (look, _) in zip(seconds, timed, strict=True) if name in look.values]

    def floor(self, name: str) -> float | None:
        """The newest value of a floor: "pixels", "untrained" or "start" (the weights given), percent."""
        found = self.of_looks(f"knn_{name}")
        return found[-1][1] if found else None

    def floors(self) -> dict[str, float]:
        """All floors that were measured, in percent, by what a reader calls them."""
        return {label: level for name, label in FLOORS.items() if (level := self.floor(name)) is not None}

    @property
    def knn(self) -> float | None:
        """k-NN accuracy of the model, percent: of the newest look, or of the best where the run keeps that one."""
        found = [value for _, value in self.of_looks("knn")]
        if not found:
            return None
        return max(found) if self.resolved.config.health.stop_below_start else found[-1]

    @property
    def seconds_a_step(self) -> float | None:
        """Median over the steps that were timed."""
        found = [seconds for _, seconds in self.of_steps("seconds")]
        return median(found) if found else None


def since_start(elapsed: Sequence[float]) -> list[float]:
    """Seconds since a run was started, of seconds since it was started or resumed: the clock of a resumed run falls."""
    before, last = 0.0, 0.0
    found = []
    for seconds in elapsed:
        before += last if seconds < last else 0.0
        last = seconds
        found.append(before + last)
    return found


def read_record(folder: Path) -> Record:
    """Read a run's folder.

    Raises:
        UserError: when its config.yaml is missing or damaged: then it is no run.
    """
    run = RunFolder(folder)
    resolved = configuration.from_yaml(run.config)
    steps: list[dict[str, float]] = []
    looks: list[Look] = []
    ended = ""
    damaged: list[str] = []
    for entry in run.read_log():
        if "health" in entry:
            looks += _look(entry, damaged)
        elif "ended" in entry:
            ended = str(entry["ended"])
        else:
            steps.append(_finite(entry))
    drawn = _read_json(folder / "pictures" / "pictures.json", "draw the pictures again", damaged)
    measured = _read_json(folder / "evaluation.json", "run `belvedere evaluate` again", damaged)
    seen = _read_json(folder / "evaluation" / "pictures.json", "run `belvedere evaluate` again", damaged)
    return Record(
        folder=folder,
        resolved=resolved,
        steps=steps,
        looks=looks,
        skipped=_read_skipped(folder / "skipped.csv", damaged),
        pictures=_pictures(drawn.get("pictures", []), damaged),
        images=_count(drawn.get("images")),
        labelled=_count(drawn.get("labelled")),
        evaluation=_kept(measured, "results", is_result, damaged),
        verdict=_kept(measured, "verdict", lambda sentence: isinstance(sentence, str), damaged),
        evaluation_pictures={name: _pictures(items, damaged) for name, items in seen.items()},
        parameters=_parameters(folder / "model.safetensors", damaged),
        ended=ended,
        not_finite=run.told_not_finite(),
        damaged=damaged,
    )


def _look(entry: dict[str, Any], damaged: list[str]) -> list[Look]:
    """The look that a line of the log tells of; none where it is not as a run writes it."""
    judged, why, color = entry.get("judged", {}), entry.get("why"), entry.get("color")
    told = isinstance(why, list) and why and all(isinstance(sentence, str) for sentence in why)
    plain = isinstance(judged, dict) and isinstance(entry.get("look", {}), dict)
    if why is None or not told or not plain or color not in COLORS:
        damaged += [] if DAMAGED_LOOK in damaged else [DAMAGED_LOOK]
        return []
    values = _finite(judged) | _finite(entry.get("look", {}))
    elapsed = _finite(entry).get("elapsed")
    return [Look(entry["step"], values, str(entry["health"]), why, color, frozenset(judged), elapsed)]


def _count(found: Any) -> int | None:
    return found if isinstance(found, int) else None


def _finite(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among logged values; what was not finite was logged as null, and true or false is no number."""
    numbers = {name: x for name, x in values.items() if isinstance(x, int | float) and not isinstance(x, bool)}
    # A whole number may have any number of digits in JSON, and be beyond every float.
    return {name: x for name, x in numbers.items() if -sys.float_info.max <= x <= sys.float_info.max}


def _read_json(path: Path, advice: str, damaged: list[str]) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        damaged.append(f"{path.name} is damaged: {advice}.")
        return {}
    return content


def _kept(measured: dict[str, Any], name: str, is_one: Callable[[Any], bool], damaged: list[str]) -> list[Any]:
    """What an evaluation lists under a name, without what no evaluation writes."""
    found = measured.get(name, [])
    items = found if isinstance(found, list) else []
    kept = [item for item in items if is_one(item)]
    if found != kept:
        damaged.append(f"evaluation.json is damaged: what is not as an evaluation writes it is left out of its {name}.")
    return kept


def _pictures(drawn: Any, damaged: list[str]) -> list[Picture]:
    try:
        pictures = [Picture(**picture) for picture in drawn]
        if not all(isinstance(told, str) for picture in pictures for told in vars(picture).values()):
            raise TypeError("a picture is told of in texts")
        return pictures
    except TypeError:
        damaged.append("pictures.json is of another version: draw the pictures again.")
        return []


def _read_skipped(path: Path, damaged: list[str]) -> list[tuple[str, str]] | None:
    if not path.is_file():
        return None
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.reader(file))[1:]
    except csv.Error:
        damaged.append(f"{path.name} is damaged: what was set aside is not known.")
        return None
    return [(row[0], row[1]) for row in rows if len(row) >= 2]


def _parameters(path: Path, damaged: list[str]) -> int | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            count: int = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
            return count
    except SafetensorError:
        damaged.append(f"{path.name} is damaged: continue the run with --resume to write it again.")
        return None
