"""Fine-tuning of the whole network, beside the same network from scratch; leaves a classifier for `belvedere predict`.

The recipe `finetune` in the loop that pretrains: DeiT's as MoCo v3 transfers with it (arXiv:2104.02057), BEiT's
layer-wise decay; with `tasks=[relations]` RelViT's joint training (arXiv:2206.00481); spec evaluation 2.3. After every
epoch the held-out images are classified; the test images are read once, by the weights of the best epoch.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import confusion_matrix
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from belvedere import config as configuration
from belvedere.backbones.build import build_backbone
from belvedere.backbones.contract import Backbone
from belvedere.backbones.export import save_classifier
from belvedere.config import Resolved
from belvedere.errors import UserError
from belvedere.evaluate.classifier import classify
from belvedere.evaluate.contract import MAJORITY, RUN, UNTRAINED, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, resample
from belvedere.evaluate.scores import TOP, classification
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.floors import majority
from belvedere.pretrain.compose import facts_of, make_fabric, make_feed, make_trainer, quiet_engine, settle
from belvedere.pretrain.method import Branch

FOLDER = "classifier"
"""Where the run's classifier is left, in the run's folder."""
# What a result tells of the settled recipe, with the reason of each value.
TOLD = (
    "train.epochs",
    "train.steps",
    "train.batch",
    "train.lr",
    "train.lr_end",
    "train.warmup",
    "train.weight_decay",
    "train.layer_decay",
    "train.clip_global",
    "train.precision",
    "backbone.drop_path",
    "views.policy",
    "views.global_scale",
    "objective.label_smoothing",
    "objective.mixup",
    "objective.cutmix",
    "tasks",
)
# MoCo v3's transfers take 100 epochs. On a CPU that would be hours for a few thousand images, so there it is as many as
# show the network about this many images, between these limits.
EPOCHS, FEWEST_EPOCHS, SHOWN = 100, 10, 40_000


class Options(BaseModel):
    """Settings that take the place of the recipe's; null leaves what the recipe derives from the number of images."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    epochs: int | None = Field(None, ge=1)
    lr: float | None = Field(None, gt=0)
    """Peak learning rate of the classifier; that of a layer below it is multiplied by `layer_decay`."""
    layer_decay: float | None = Field(None, gt=0, le=1)
    """Of networks with trained weights; a fresh one has nothing to keep and learns all layers alike."""
    mixup: float | None = Field(None, ge=0)
    cutmix: float | None = Field(None, ge=0)
    smoothing: float | None = Field(None, ge=0, lt=1)
    batch: int | None = Field(None, ge=2)
    drop_path: float | None = Field(None, ge=0, lt=1)
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of an average of the weights, a step, that is chosen from and tested; 0 = off."""
    tasks: tuple[Literal["relations"], ...] = ()
    """Trained beside the classification, with the task's own defaults."""


@dataclass(frozen=True)
class Tuned:
    """How a network was fine-tuned.

    Attributes:
        resolved: every setting with its reason.
        accuracy: on the held-out images after each epoch, percent.
    """

    resolved: Resolved
    accuracy: list[float]

    @property
    def epoch(self) -> int:
        """The best one, counted from 1; of equals the first."""
        return 1 + self.accuracy.index(max(self.accuracy))


class Finetune(Protocol):
    """Top-1, top-5 (from six classes on) and balanced accuracy in percent."""

    Options = Options

    def run(self, data: EvalData) -> Result:
        """Fine-tune every subject that is a network on a part of the training images, and classify the test images.

        Raises:
            UserError: when the training images are of one class, or too few to choose an epoch on.
        """
        if len(np.unique(data.train_labels[data.choice.fit])) < 2:
            raise UserError("finetune: the images to train on are of one class, a classifier needs two")
        counts = resample(len(data.test_labels), data.seed)
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        tuned: dict[str, Tuned] = {}
        kept = ""
        for name, encoder in data.encoders.items():
            branch, tuned[name] = self.tune(encoder, data, fresh=name == UNTRAINED)
            probabilities = classify(_Logits(branch), encoder.preprocess, data.test, data.device)
            ranking = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
            metrics[name] = classification(ranking, data.test_labels, len(data.classes), counts)
            items[name] = {"top1": (ranking[:, 0] == data.test_labels).astype(np.float64)}
            draws[name] = {
                "predictions": ranking[:, 0],
                "confidence": probabilities.max(1),
                "confusion": confusion_matrix(data.test_labels, ranking[:, 0], labels=range(len(data.classes))),
            }
            if name == RUN:
                kept = _leave(branch, data)
        always = np.tile(majority(data.train_labels, len(data.classes))[:TOP], (len(data.test_labels), 1))
        metrics[MAJORITY] = classification(always, data.test_labels, len(data.classes), counts)
        return Result(
            protocol="finetune",
            metrics=metrics,
            chosen={
                "epoch": {name: one.epoch for name, one in tuned.items()},
                "on": f"{data.choice.said}, trained on the other {len(data.choice.fit)}",
                "accuracy": {name: one.accuracy for name, one in tuned.items()},
            },
            settings={
                "recipe": {name: _told(one.resolved) for name, one in tuned.items()},
                "ema": self.options.ema,
                "classifier": kept,
                "interval": f"95 % bootstrap over {len(data.test_labels)} test images, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def tune(self, encoder: Encoder, data: EvalData, fresh: bool) -> tuple[Branch, Tuned]:
        """Train a copy of a network end to end: the branch with the best epoch's weights, and how it came there.

        Args:
            fresh: the network's weights are random.
        """
        fit, val = data.choice.fit, data.choice.val
        images = replace(data.train.subset(fit), labels=data.train_labels[fit], classes=data.classes)
        held, held_y = (data.test, data.test_labels) if data.choice.on_test else (data.train, data.train_labels)
        held, held_y = held.subset(val), held_y[val]
        device = torch.device(data.device).type
        resolved = self._settle(encoder, images, data, device, fresh)
        config = resolved.config
        with quiet_engine(), torch.random.fork_rng(devices=[]):
            fabric = make_fabric(device, str(config.train.precision))
            backbone = copy_of(encoder.backbone, float(config.backbone.drop_path), data.seed)
            trainer = make_trainer(config, images, fabric, backbone=backbone)
            feed = make_feed(config, images, fabric)
            averaged = ModelEmaV3(trainer.parts.student, decay=self.options.ema) if self.options.ema else None
            shown = trainer.parts.student if averaged is None else averaged.module
            accuracy: list[float] = []
            best: Mapping[str, Tensor] = {}
            for step, micro_batches in enumerate(feed.stream(0, int(config.train.steps))):
                trainer.step(step, micro_batches)
                if averaged is not None:
                    averaged.update(trainer.parts.student)
                if (step + 1) % feed.steps_per_epoch == 0:
                    said = classify(_Logits(shown), encoder.preprocess, held, data.device).argmax(1)
                    accuracy.append(100 * float((said == held_y).mean()))
                    if accuracy[-1] == max(accuracy) and accuracy.count(accuracy[-1]) == 1:
                        best = copy.deepcopy(shown.state_dict())
        shown.load_state_dict(best)
        return shown, Tuned(resolved, accuracy)

    def _settle(self, encoder: Encoder, images: Canvases, data: EvalData, device: str, fresh: bool) -> Resolved:
        """The recipe with the user's options, and every other value derived from these images.

        Raises:
            UserError: for a batch larger than the images.
        """
        backbone, options = encoder.backbone, self.options
        if options.batch is not None and options.batch > len(images):
            raise UserError(f"finetune.batch={options.batch}: larger than the {len(images)} images to train on")
        network = {f"backbone.{name}": value for name, value in backbone.settings.items()} | {
            "backbone.name": backbone.architecture,
            "views.size": list(encoder.size),
            "images.channels": encoder.channels,
            "images.mean": list(encoder.mean),
            "images.std": list(encoder.std),
            "train.seed": data.seed,
        }
        asked = {
            "train.epochs": options.epochs,
            "train.lr": options.lr,
            "train.layer_decay": options.layer_decay,
            "train.batch": options.batch,
            "backbone.drop_path": options.drop_path,
            "objective.mixup": options.mixup,
            "objective.cutmix": options.cutmix,
            "objective.label_smoothing": options.smoothing,
            "tasks": list(options.tasks) or None,
        }
        values: dict[str, tuple[Any, str]] = {"train.epochs": derive_epochs(len(images), cpu=device == "cpu")}
        values |= {key: (value, "asked for") for key, value in asked.items() if value is not None}
        if fresh:
            values["train.layer_decay"] = 1.0, "fresh weights: all layers learn alike"
        resolved = configuration.resolve("finetune", network | {key: value for key, (value, _) in values.items()})
        settled, _ = settle(resolved.with_values(values), facts_of(images, device))
        return settled


def derive_epochs(images: int, cpu: bool) -> tuple[int, str]:
    """Epochs for so many images to train on, and why."""
    if not cpu:
        return EPOCHS, "MoCo v3's transfers"
    epochs = min(EPOCHS, max(FEWEST_EPOCHS, round(SHOWN / images)))
    return epochs, f"about {SHOWN:,} images shown on a CPU, {FEWEST_EPOCHS} to {EPOCHS} epochs"


class _Logits(nn.Module):
    """Normalised pixels -> (N, K) float32 logits of a branch with the objective's head."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.branch.head(self.branch.backbone(pixels))["cls"]
        return logits.float()


def copy_of(backbone: Backbone, drop_path: float, seed: int) -> Backbone:
    """A second network with the same weights, and stochastic depth, which a backbone is built with.

    Raises:
        UserError: when the copy would not be the same function, as with another number of heads.
    """
    copied = build_backbone(
        backbone.architecture,
        size=backbone.size,
        channels=backbone.channels,
        drop_path=drop_path,
        seed=seed,
        **backbone.settings,
    )
    # Shapes do not show heads: weights trained with 6 load into 8 and compute nonsense.
    other = [key for key, value in backbone.model_args.items() if copied.model_args.get(key) != value]
    if other:
        raise UserError(
            f"finetune: {backbone.architecture} was trained with {other[0]}={backbone.model_args[other[0]]}, "
            f"and would be fine-tuned with {copied.model_args.get(other[0])}"
        )
    copied.model.load_state_dict(backbone.model.state_dict())
    return copied


def _told(resolved: Resolved) -> dict[str, Any]:
    """Value and reason of every setting of a recipe that is told."""
    flat = configuration.flatten(resolved.config)
    return {key: {"value": flat[key], "why": resolved.origin.get(key, "default")} for key in TOLD}


def _leave(branch: Branch, data: EvalData) -> str:
    """Write the run's classifier, where there is a place for it and timm has its network; says where."""
    backbone = branch.backbone
    if data.folder is None:
        return "not kept"
    if not backbone.in_timm:
        return f"not kept: {backbone.architecture} is no network that timm has"
    encoder = data.encoders[RUN]
    linear: Any = branch.head.get_submodule("linear")
    save_classifier(backbone, linear, data.folder / FOLDER, mean=encoder.mean, std=encoder.std, classes=data.classes)
    return FOLDER
