"""What each task learned, drawn once at the end of a run: one file a task, named as the task is."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.pretrain.trainer import Trainer
from belvedere.report.drawing import Picture
from belvedere.report.selection import pixels_of
from belvedere.views.draws import permutation

SHOWN = 64
"""Images that tasks are asked about; most pictures draw the first few of them."""


Shown = Mapping[str, Mapping[str, Tensor]]


def ask_tasks(trainer: Trainer, canvases: Canvases) -> Shown:
    """What every task of a run has to show of some images, by the task's name."""
    if not trainer.parts.tasks:
        return {}
    seed = trainer.config.train.seed
    index = permutation(seed, 0, len(canvases), "task pictures")[: min(SHOWN, int(trainer.config.train.batch))]
    found = trainer.show((index, pixels_of(trainer, canvases, index)))
    return {name: {key: tensor.float().cpu() for key, tensor in own.items()} for name, own in found.items()}


def draw_tasks(folder: Path, shown: Shown, encoder: Encoder) -> list[Picture]:
    """Draw it into `folder`; a user's own tasks have no picture.

    A task `name` is drawn by `report/tasks/name.py`: `draw(folder, shown, encoder) -> list[Picture]`, where `shown`
    is what its `show` gave and `encoder` knows mean and std of the pixels.
    """
    pictures: list[Picture] = []
    for name, found in shown.items():
        drawing = f"{__name__}.{name}"
        if found and find_spec(drawing) is not None:
            pictures += import_module(drawing).draw(folder, found, encoder)
    return pictures
