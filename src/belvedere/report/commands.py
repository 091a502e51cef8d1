"""What to type to use a run and to make it again."""

from __future__ import annotations

import json
import shlex
from typing import Any

from belvedere import config as configuration
from belvedere.report.record import Record
from belvedere.scatnet import read_name

_FLAGS = {
    "backbone.name": "--backbone",
    "views.policy": "--views",
    "objective.name": "--objective",
    "train.epochs": "--epochs",
    "train.minutes": "--minutes",
}


def given(record: Record) -> dict[str, Any]:
    """The settings that the user gave, flat."""
    flat = configuration.flatten(record.resolved.config)
    origin = record.resolved.origin
    return {key: flat[key] for key, why in origin.items() if key != "recipe" and why.startswith("command line")}


def commands(record: Record) -> list[tuple[str, str]]:
    """(what it does, command) for everything that can be done with a run."""
    run = shlex.quote(str(record.folder))
    data = shlex.quote(record.resolved.config.data or "DATA")
    recipe = shlex.quote(record.resolved.config.recipe)
    words = [f"{_FLAGS[key]} {_value(value)}" for key, value in given(record).items() if key in _FLAGS]
    words += [f"{shlex.quote(key)}={_value(value)}" for key, value in given(record).items() if key not in _FLAGS]
    asked = " ".join([f"belvedere pretrain {data} --recipe", recipe, *words])
    again = f"belvedere pretrain {data} --recipe {shlex.quote(str(record.folder / 'config.yaml'))}"
    longer = " --epochs MORE" if record.finished else ""
    continued = f"belvedere pretrain {data} --out {run}{longer} --resume"
    return [
        ("The run as it was asked for", asked),
        ("The same run with every derived value fixed", f"{again} --out NEW_RUN"),
        ("Train it longer" if record.finished else "Continue it where it stopped", continued),
        ("Measure it on labelled images", f"belvedere evaluate {run} LABELLED"),
        ("One vector an image", f"belvedere embed {run} {data} --out vectors.npz"),
        ("Write this page anew", f"belvedere report {run}"),
    ]


def python_lines(record: Record) -> list[tuple[str, str]]:
    """(library, code) that loads the model."""
    folder = repr(str(record.folder))
    local = repr(f"local-dir:{record.folder}")
    found = [
        (
            "belvedere",
            f"import belvedere\nencoder = belvedere.load({folder})\n# images: uint8 tensor (n, h, w, C)\n"
            "features = encoder(encoder.preprocess(images))",
        ),
    ]
    if read_name(record.resolved.config.backbone.name) is None:
        found.append(
            (
                "timm alone",
                f"import timm\nmodel = timm.create_model({local}, pretrained=True).eval()\n"
                "# pixels: float tensor (n, C, H, W), normalised with the mean and std above\nfeatures = model(pixels)",
            )
        )
    return found


def _value(value: Any) -> str:
    """A setting as the command line takes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    text = json.dumps(value, separators=(",", ":")) if isinstance(value, list | dict) else str(value)
    return shlex.quote(text)
