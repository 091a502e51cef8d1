"""A run's networks and its policy as the last checkpoint has them, outside of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from belvedere.config import Resolved
from belvedere.images.canvases import Canvases
from belvedere.pretrain import checkpoint
from belvedere.pretrain.compose import make_trainer
from belvedere.pretrain.engine import make_fabric
from belvedere.pretrain.folder import RunFolder
from belvedere.pretrain.trainer import Trainer


@dataclass(frozen=True)
class Restored:
    """A trainer as it was after `step` steps; whether its images are `the_runs_own`."""

    trainer: Trainer
    step: int
    the_runs_own: bool


def restore(folder: RunFolder, resolved: Resolved, canvases: Canvases, device: str) -> Restored:
    """A trainer with the weights and the policy of a run's checkpoint.

    Args:
        resolved: the run's settled configuration; its policy may have been put into another one.
        canvases: what the trainer's views are to be drawn from; they need not be the run's images.

    Raises:
        UserError: when there is no checkpoint, or it is not of this configuration.
    """
    state = checkpoint.load_run(folder.checkpoint)
    trainer = make_trainer(resolved.config, canvases, make_fabric(device, str(resolved.config.train.precision)))
    # Other images than the run's may be fewer than a batch.
    trainer.steps_per_epoch = max(1, trainer.steps_per_epoch)
    take_up(trainer, state, folder)
    return Restored(trainer, int(state["step"]), state["data"] == canvases.fingerprint)


def take_up(trainer: Trainer, state: dict[str, Any], folder: RunFolder) -> None:
    """Put a checkpoint's tensors into a trainer.

    Raises:
        UserError: when a single one does not match.
    """
    with checkpoint.fitting(folder.checkpoint, "network"):
        trainer.load_state_dict(state["trainer"])
