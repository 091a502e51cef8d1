"""Fine-tuning of the whole network, beside the same network from scratch; leaves a classifier for `belvedere predict`.

The recipe `finetune` in the loop that pretrains: DeiT's as MoCo v3 transfers with it (arXiv:2104.02057), BEiT's
layer-wise decay; with `tasks=[relations]` RelViT's joint training (arXiv:2206.00481); spec evaluation 2.3. A
transformer that was trained without position embeddings gets fresh ones, as RelViT's does (spec patch_and_pretext 3.3).
After every epoch the held-out images are classified. The number of epochs that did best is then trained again on all
training images, as every probe is, with the same settings and the same learning rate at every share of an epoch; the
test images are read once. So it costs about twice one training. Papers instead choose the epoch on the test images,
which need no second training (`--paper-protocol`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from belvedere import config as configuration
from belvedere.backbones.build import build_backbone
from belvedere.backbones.contract import Backbone
from belvedere.backbones.export import save_classifier
from belvedere.backbones.vit import Init
from belvedere.backbones.weights import POSITIONS
from belvedere.config import Config, Resolved
from belvedere.errors import UserError
from belvedere.evaluate.classifier import classify
from belvedere.evaluate.contract import MAJORITY, RUN, UNTRAINED, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, resample
from belvedere.evaluate.scores import TOP, classification
from belvedere.evaluate.splits import Rows
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder
from belvedere.measure.floors import majority
from belvedere.pretrain.compose import facts_of, make_feed, make_trainer, settle
from belvedere.pretrain.engine import make_fabric, quiet_engine
from belvedere.pretrain.method import Branch
from belvedere.schedules import batches

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
    "views.flip",
    "objective.class_weights",
    "objective.label_smoothing",
    "objective.mixup",
    "objective.cutmix",
    "objective.erasing",
    "tasks",
)
# MoCo v3's transfers take 100 epochs. On a CPU that would be hours for a few thousand images, so there it is as many as
# show a network about 40,000 images: ViT-Ti learned from 107 images of 32 px a second of one core, from 66 of 96 px, so
# that takes 6 to 10 minutes, and at most as long again for the second training. That a larger set is gone through 10
# times all the same is our judgement, not measured.
EPOCHS, FEWEST_EPOCHS, SHOWN = 100, 10, 40_000
# The law that fresh positions are drawn by: small and trained, whatever the network was drawn by.
POSITIONS_AS: Init = "dino"
ADDED = "fresh position embeddings are added, the network was trained without"


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
    erasing: float | None = Field(None, ge=0, le=1)
    """Probability that a rectangle of an image is filled with noise."""
    smoothing: float | None = Field(None, ge=0, lt=1)
    balanced: bool = False
    """Every class counts alike in the loss, however few images it has."""
    policy: Literal["randaugment", "trivial", "random"] | None = None
    """View policy; random crops and mirrors only, and leaves colours alone."""
    flip: float | None = Field(None, ge=0, le=1)
    """Probability that a view is mirrored; null: 0.5, and 0 where the run never mirrored its own."""
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
        accuracy: on the held-out images after each epoch, percent; the mean over classes where those count alike.
        task_losses: of every loss of the tasks, its mean over the last batch of each epoch; empty without tasks.
    """

    resolved: Resolved
    accuracy: list[float]
    task_losses: dict[str, list[float]]

    @property
    def epoch(self) -> int:
        """The best one, counted from 1; of equals the first."""
        return 1 + self.accuracy.index(max(self.accuracy))


class Finetune(Protocol):
    """Top-1, top-5 (from six classes on), balanced accuracy and, of unbalanced classes, F1 in percent."""

    Options = Options

    def run(self, data: EvalData) -> Result:
        """Fine-tune every subject that is a network, and classify the test images.

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
        others = "all" if data.choice.on_test else "the other"
        kept = ""
        for name, encoder in data.encoders.items():
            branch, tuned[name] = self.tune(encoder, data, fresh=name == UNTRAINED)
            probabilities = classify(Logits(branch), encoder.preprocess, data.test, data.device)
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
                "on": f"{data.choice.said}, trained on {others} {len(data.choice.fit)}",
                "accuracy": {name: one.accuracy for name, one in tuned.items()},
                "task_losses": {name: one.task_losses for name, one in tuned.items()},
            },
            settings={
                "recipe": {name: _told(one.resolved) for name, one in tuned.items()},
                "ema": self.options.ema,
                "refit": _refit(data),
                "classifier": kept,
                "interval": f"95 % bootstrap over {len(data.test_labels)} test images, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def tune(self, encoder: Encoder, data: EvalData, fresh: bool) -> tuple[Branch, Tuned]:
        """Train a copy of a network end to end: the branch that is tested, and how it came there.

        Args:
            fresh: the network's weights are random.
        """
        fit, val = data.choice.fit, data.choice.val
        device = torch.device(data.device).type
        images = _labelled(data, fit)
        held, held_y = (data.test, data.test_labels) if data.choice.on_test else (data.train, data.train_labels)
        held, held_y = held.subset(val), held_y[val]
        resolved = self._settle(encoder, images, data, device, fresh)
        accuracy: list[float] = []
        task_losses: dict[str, list[float]] = {}
        best: dict[str, Tensor] = {}

        def look(branch: Branch, told: dict[str, float]) -> None:
            for name in (name for name in told if name.startswith("task/")):
                task_losses.setdefault(name.removeprefix("task/"), []).append(told[name])
            said = classify(Logits(branch), encoder.preprocess, held, data.device).argmax(1)
            score = balanced_accuracy_score if self.options.balanced else accuracy_score
            accuracy.append(100 * float(score(held_y, said)))
            if data.choice.on_test and accuracy.index(max(accuracy)) == len(accuracy) - 1:
                best.update(copy.deepcopy(branch.state_dict()))

        epochs = int(resolved.config.train.steps) // batches(len(images), int(resolved.config.train.batch))
        branch = self._train(encoder, images, resolved.config, device, epochs, look)
        tuned = Tuned(resolved, accuracy, task_losses)
        if data.choice.on_test:
            branch.load_state_dict(best)
            return branch, tuned
        every = _labelled(data, np.arange(len(data.train)))
        longer = _for_more(resolved.config, epochs, len(every))
        return self._train(encoder, every, longer, device, tuned.epoch, None), tuned

    def _train(
        self,
        encoder: Encoder,
        images: Canvases,
        config: Config,
        device: str,
        epochs: int,
        look: Callable[[Branch, dict[str, float]], None] | None,
    ) -> Branch:
        """Train a copy of a network for the first epochs of a settled configuration.

        `look` is called after each, with the branch and the last step's scalars.
        """
        with quiet_engine(), torch.random.fork_rng(devices=[]):
            fabric = make_fabric(device, str(config.train.precision))
            drop_path = float(config.backbone.drop_path)
            backbone = copy_of(encoder.backbone, drop_path, config.train.seed, positions=True)
            trainer = make_trainer(config, images, fabric, backbone=backbone)
            feed = make_feed(config, images, fabric)
            averaged = ModelEmaV3(trainer.parts.student, decay=self.options.ema) if self.options.ema else None
            shown: Branch = trainer.parts.student if averaged is None else averaged.module
            for step, micro_batches in enumerate(feed.stream(0, epochs * feed.steps_per_epoch)):
                ends = look is not None and (step + 1) % feed.steps_per_epoch == 0
                report = trainer.step(step, micro_batches, detail=ends)
                if averaged is not None:
                    averaged.update(trainer.parts.student)
                if look is not None and ends:
                    look(shown, report.scalars)
        return shown

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
            "objective.erasing": options.erasing,
            "objective.label_smoothing": options.smoothing,
            "objective.class_weights": "auto" if options.balanced else None,
            "views.policy": options.policy,
            "views.flip": options.flip,
            "tasks": list(options.tasks) or None,
        }
        values: dict[str, tuple[Any, str]] = {"train.epochs": derive_epochs(len(images), cpu=device == "cpu")}
        values |= {key: (value, "asked for") for key, value in asked.items() if value is not None}
        if options.flip is None and not data.mirrored:
            values["views.flip"] = 0.0, "the run never mirrored its views"
        if lacks_positions(backbone):
            values["backbone.pos_embed"] = True, ADDED
            values["backbone.init"] = POSITIONS_AS, "fresh positions that are small and trained, as RelViT adds them"
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


def _labelled(data: EvalData, rows: Rows) -> Canvases:
    """Some of the training images, with the labels of the evaluation."""
    return replace(data.train.subset(rows), labels=data.train_labels[rows], classes=data.classes)


def _for_more(config: Config, epochs: int, images: int) -> Config:
    """A settled configuration for more images: as many epochs, and the same part of them to warm up.

    Nothing else is derived again, so that what is trained is what was chosen.
    """
    steps = epochs * batches(images, int(config.train.batch))
    warmup = min(steps - 1, round(int(config.train.warmup) * steps / int(config.train.steps)))
    return config.model_copy(update={"train": config.train.model_copy(update={"steps": steps, "warmup": warmup})})


def _refit(data: EvalData) -> str:
    """On what the tested weights were trained."""
    if data.choice.on_test:
        return f"none: all {len(data.train)} training images were trained on"
    return f"all {len(data.train)} training images, for the chosen number of epochs"


class Logits(nn.Module):
    """Normalised pixels -> (N, K) float32 logits of a branch with the objective's head."""

    def __init__(self, branch: Branch) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.branch.head(self.branch.backbone(pixels))["cls"]
        return logits.float()


def lacks_positions(backbone: Backbone) -> bool:
    """Whether it is a transformer that was trained without position embeddings (RelViT)."""
    return backbone.settings.get("pos_embed") is False


def copy_of(backbone: Backbone, drop_path: float, seed: int, positions: bool = False) -> Backbone:
    """A second network with the same weights, and stochastic depth, which a backbone is built with.

    Args:
        positions: give a transformer without position embeddings fresh ones; all else is the backbone's.

    Raises:
        UserError: when the copy would not be the same function, as with another number of heads.
    """
    adds = positions and lacks_positions(backbone)
    settings = backbone.settings | ({"pos_embed": True, "init": POSITIONS_AS} if adds else {})
    copied = build_backbone(
        backbone.architecture,
        size=backbone.size,
        channels=backbone.channels,
        drop_path=drop_path,
        seed=seed,
        **settings,
    )
    # Shapes do not show heads: weights trained with 6 load into 8 and compute nonsense.
    kept = {key: value for key, value in backbone.model_args.items() if not (adds and key == "pos_embed")}
    other = [key for key, value in kept.items() if copied.model_args.get(key) != value]
    if other:
        raise UserError(
            f"{backbone.architecture} was trained with {other[0]}={backbone.model_args[other[0]]}, "
            f"and a copy to train would have {copied.model_args.get(other[0])}"
        )
    state = backbone.model.state_dict()
    if adds:
        state[POSITIONS] = copied.model.get_parameter(POSITIONS).detach()
    copied.model.load_state_dict(state)
    return copied


def _told(resolved: Resolved) -> dict[str, Any]:
    """Value and reason of every setting of a recipe that is told; of positions where they are new."""
    flat, origin = configuration.flatten(resolved.config), resolved.origin
    positions = ["backbone.pos_embed"] if origin.get("backbone.pos_embed") == ADDED else []
    return {key: {"value": flat[key], "why": origin.get(key, "default")} for key in (*TOLD, *positions)}


def _leave(branch: Branch, data: EvalData) -> str:
    """Write the run's classifier, where there is a place for it and timm has its network; says where."""
    backbone = branch.backbone
    if data.folder is None:
        return "not kept"
    if not backbone.in_timm:
        return f"not kept: {backbone.architecture} is no network that timm has"
    encoder = data.encoders[RUN]
    linear: Any = branch.head.get_submodule("linear")
    place, mean, std = data.folder / FOLDER, encoder.mean, encoder.std
    save_classifier(backbone, linear, place, mean=mean, std=std, classes=data.classes, cutting=data.train.cutting)
    return FOLDER
