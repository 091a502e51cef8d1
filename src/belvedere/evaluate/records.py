"""What `belvedere evaluate` leaves in files: results by protocol, and the values of single test items beside them.

A later call on the same thing adds its protocols to the file of an earlier one; results of anything else are put aside
under another name first, so that all numbers in one file may stand in one table.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from belvedere.atomic import write_atomically, write_text
from belvedere.errors import UserError
from belvedere.evaluate.contract import Number, Result
from belvedere.evaluate.stored import is_result
from belvedere.evaluate.verdict import verdicts
from belvedere.images.npy import members, read_member

Values = NDArray[np.float64]

# What all results of one file are measured on and with, and how a user is told that it is another.
_SHARED = {
    "reading": "another reading of the encoder",
    "encoder": "other weights of the run",
    "seed": "another seed",
    "selected_on_test": "another way to choose settings (--paper-protocol)",
    "split": "another split",
    "train": "other training images, labels, masks or objects",
    "test": "other test images, labels, masks or objects",
    "other": "other images elsewhere",
    "subjects": "other encoders beside the run",
}


def join(results: Sequence[Result], path: Path) -> tuple[list[Result], str]:
    """The results that are already at `path` with the new ones in the place of those of the same protocol.

    A protocol that failed now does not take the place of one that had not.

    Returns:
        The results to write, and why those at `path` cannot stand beside the new ones and only the new ones are
        returned; "" where they can, or there are none.
    """
    if not path.is_file():
        return list(results), ""
    try:
        old = read_results(path)
    except UserError:
        return list(results), "they cannot be read"
    differs = _difference(old, results)
    if differs:
        return list(results), f"they are of {differs}"
    done = {result.protocol: result for result in old}
    worked = {result.protocol for result in old if result.metrics}
    return list(
        (done | {one.protocol: one for one in results if one.metrics or one.protocol not in worked}).values()
    ), ""


def put_aside(path: Path) -> Path:
    """Rename the results at `path`, their items and their pictures: "a.json" to the first of "a-1.json", ... free."""
    number = 1
    while any(_numbered(part, number).exists() for part in _parts(path)):
        number += 1
    # The file that the others belong to comes last: while it is there they are still missed.
    for part in reversed(_parts(path)):
        if part.exists():
            part.rename(_numbered(part, number))
    return _numbered(path, number)


def twins_told(settings: Mapping[str, Any]) -> str:
    """A sentence on test images with a twin in training, from a result's settings; "" where there are none."""
    count = settings.get("twins", {}).get("images", 0)
    if not count:
        return ""
    named = ", ".join(f"{test} like {train}" for test, train in settings["twins"]["pairs"][:3])
    look = "test image looks like the twin" if count == 1 else "test images look like twins"
    return f"{count} {look} of a training image, and flatter the numbers if so ({named})"


def write_results(results: Sequence[Result], path: Path) -> None:
    """Write results as JSON; equal seeds give equal files but for the key "seconds".

    Beside it, as `.npz` of the same name, the values of single test items that `compare` reads.
    """
    seconds = {result.protocol: result.settings.get("seconds") for result in results}
    timeless = [{key: value for key, value in result.settings.items() if key != "seconds"} for result in results]
    plain = [replace(result, settings=told).to_json() for result, told in zip(results, timeless, strict=True)]
    seed = results[0].settings["seed"] if results else 0
    found = {"results": plain, "verdict": verdicts(results, seed), "seconds": seconds}
    text = json.dumps(found, indent=2, sort_keys=True, allow_nan=False)
    items = {
        f"{result.protocol}/{subject}/{metric}": values
        for result in results
        for subject, metrics in result.items.items()
        for metric, values in metrics.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    # The file that the items belong to comes last: one without them would be taken for damaged.
    write_atomically(path.with_suffix(".npz"), lambda beside: _save(beside, items))
    write_text(path, text + "\n")


def read_results(path: Path) -> list[Result]:
    """The results that were written to a JSON file, without what is only drawn.

    Raises:
        UserError: when it or its `.npz` is damaged or missing.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not all(map(is_result, found["results"])):
            raise ValueError("results that no protocol writes")
        results = [_result(plain, found["seconds"]) for plain in found["results"]]
        by_protocol = {result.protocol: result.items for result in results}
        with ZipFile(path.with_suffix(".npz")) as archive:
            for key, info in members(archive).items():
                # A subject may be a path.
                protocol, _, rest = key.partition("/")
                subject, _, metric = rest.rpartition("/")
                values = read_member(archive, info)
                if values.ndim not in (1, 2) or values.dtype.kind not in "buif" or not values.size:
                    raise ValueError(f"{key} holds no number an item")
                by_protocol.get(protocol, {}).setdefault(subject, {})[metric] = values
    except Exception as error:  # damaged archives raise whatever their readers like
        raise UserError(f"{path}: it or its .npz cannot be read; run `belvedere evaluate` again") from error
    return results


def _result(plain: dict[str, Any], seconds: Mapping[str, float | None]) -> Result:
    name = str(plain["protocol"])
    metrics = {
        subject: {metric: Number(**number) for metric, number in numbers.items()}
        for subject, numbers in plain["metrics"].items()
    }
    result = Result(name, metrics, plain["chosen"], plain["settings"])
    return (
        result if seconds.get(name) is None else replace(result, settings=result.settings | {"seconds": seconds[name]})
    )


def _difference(old: Sequence[Result], new: Sequence[Result]) -> str:
    """In what both differ that they have to share; "" if in nothing."""
    for key, words in _SHARED.items():
        here, there = ([one.settings[key] for one in results if key in one.settings][:1] for results in (old, new))
        # Only protocols that compare bring other images; those without any agree with all.
        unlike = here and there if key == "other" else here or there
        if unlike and here != there:
            return words
    return ""


def _parts(path: Path) -> list[Path]:
    """The files and the folder of one evaluation."""
    return [path, path.with_suffix(".npz"), path.with_suffix("")]


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}-{number}{path.suffix}")


def _save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    # Into memory first: an archive that the disk has no room for complains once more when it is let go.
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **dict[str, Any](arrays))
    path.write_bytes(buffer.getvalue())
