"""What each task learned, drawn once at the end of a run: one file a task, named as the task is."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.pretrain.trainer import Trainer
from belvedere.report.drawing import Picture
from belvedere.report.selection import pixels_of
from belvedere.views.draws import permutation

SHOWN = 64
"""Images that tasks are asked about; most pictures draw the first few of them."""


def draw_tasks(folder: Path, trainer: Trainer, encoder: Encoder, canvases: Canvases) -> list[Picture]:
    """Ask every task of a run what it has to show, and draw it into `folder`; a user's own tasks have no picture.

    A task `name` is drawn by `report/tasks/name.py`: `draw(folder, shown, encoder) -> list[Picture]`, where `shown`
    is what its `show` gave and `encoder` knows mean and std of the pixels.
    """
    if not trainer.parts.tasks:
        return []
    seed = trainer.config.train.seed
    index = permutation(seed, 0, len(canvases), "task pictures")[: min(SHOWN, int(trainer.config.train.batch))]
    shown = trainer.show((index, pixels_of(trainer, canvases, index)))
    pictures: list[Picture] = []
    for name, found in shown.items():
        drawing = f"{__name__}.{name}"
        if found and find_spec(drawing) is not None:
            on_cpu = {key: tensor.float().cpu() for key, tensor in found.items()}
            pictures += import_module(drawing).draw(folder, on_cpu, encoder)
    return pictures
