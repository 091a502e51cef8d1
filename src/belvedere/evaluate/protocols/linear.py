"""A linear classifier on frozen features by SGD, reading and learning rate chosen, or a paper's recipe.

Spec evaluation 2.2. By default heads for the readings {cls, avg, cls+avg, last4} that the backbone has, times eight
learning rates, are trained side by side. The best is chosen on a tenth of the training images and trained again on all
of them; the test images are read once. `linear.recipe` takes a paper's own recipe instead (dino, mocov3, mae, simsiam,
simsiam_cifar, scatsimclr, dinov2).

Papers train on random crops and flips, which the frozen network encodes anew every epoch: `linear.augment=crops`, and
the default of their recipes with `--paper-protocol`. It costs a forward pass an image and epoch, for all heads
together; without, heads learn from cached features of whole images, which takes one pass an image. Whole images are
chosen by and answered on either way. Raw pixels, the untrained network and the majority class go through the same
lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat
from sklearn.metrics import confusion_matrix
from torch import Tensor

from belvedere.backbones.contract import Backbone
from belvedere.errors import UserError
from belvedere.evaluate.contract import MAJORITY, PIXELS, RUN, EvalData, Number, Protocol, Result, Subject
from belvedere.evaluate.intervals import DRAWS, resample
from belvedere.evaluate.protocols._crops import Crops, crops_of
from belvedere.evaluate.protocols._heads import Draw, Recipe, Setting, trained
from belvedere.evaluate.scores import TOP, classification
from belvedere.evaluate.splits import Labels, Rows
from belvedere.measure.floors import majority
from belvedere.measure.readings import Reading, possible_readings, settle, widest, width
from belvedere.views.slots import Interpolation

GRID = tuple(float(rate) for rate in np.logspace(-3, 1, 8))
DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
# From this width on DINO reads cls+avg of the last block; below, the class tokens of the last four (ViT-S).
WIDE = 768
GEM: Reading = "cls+gem"


def grid(backbone: Backbone) -> Recipe:
    """Ours: the readings of the papers' probes, at least 1,000 steps, so that small sets are learned to the end too."""
    readings = tuple(one for one in possible_readings(backbone) if one in ("cls", "avg", "cls+avg", "last4"))
    return Recipe(readings, GRID, batch=256, epochs=20, steps=1000, cosine="step")


def dino(backbone: Backbone) -> Recipe:
    """DINO (arXiv:2104.14294), EsViT and HVP with DINO."""
    wanted: tuple[Reading, ...] = ("cls+avg", "cls", "avg") if backbone.dim >= WIDE else ("last4", "cls", "avg")
    return Recipe((_first(backbone, wanted),), (0.001,), batch=1024, epochs=100, crops="bilinear")


def mocov3(backbone: Backbone) -> Recipe:
    """MoCo v3 (arXiv:2104.02057): the rate is 3 for a transformer and 0.1 for a convolutional network."""
    transformer = bool(backbone.block_dims)
    rates = (3.0 if transformer else 0.1,)
    return Recipe((_first(backbone, ("cls", "avg")),), rates, batch=1024, epochs=90, crops="bilinear")


def mae(backbone: Backbone) -> Recipe:
    """MAE (arXiv:2111.06377, appendix A.1): a BatchNorm before the probe (bn-linear), LARS in very large batches."""
    return Recipe(
        (_first(backbone, ("cls", "avg")),),
        (0.1,),
        batch=16_384,
        epochs=90,
        optimiser="lars",
        cosine="step",
        batchnorm=True,
        warmup=10 / 90,
        crops="bicubic",
    )


def simsiam(backbone: Backbone) -> Recipe:
    """SimSiam (arXiv:2011.10566) as HVP runs it on ImageNet: LARS on the matrix, in large batches."""
    readings = (_first(backbone, ("cls", "avg")),)
    return Recipe(readings, (0.1,), batch=4096, epochs=90, optimiser="lars", crops="bilinear")


def simsiam_cifar(backbone: Backbone) -> Recipe:
    """HVP's (arXiv:2310.03940) probe of SimSiam on CIFAR-10."""
    readings = (_first(backbone, ("cls", "avg")),)
    return Recipe(readings, (30.0,), batch=256, epochs=100, scaled=False, crops="bilinear")


def scatsimclr(backbone: Backbone) -> Recipe:
    """ScatSimCLR (arXiv:2108.13939): Adam on standardised features of whole images, in their order."""
    return Recipe(
        (_first(backbone, ("cls", "avg")),),
        (3e-4,),
        batch=64,
        epochs=100,
        optimiser="adam",
        weight_decay=1e-4,
        scaled=False,
        cosine="never",
        normal=False,
        shuffled=False,
        standardised=True,
    )


def dinov2(backbone: Backbone) -> Recipe:
    """DINOv2 (arXiv:2304.07193): 13 rates times {1, 4} blocks times {cls, cls+avg}, 12,500 steps."""
    wanted = ("cls", "cls+avg", "last4", "last4+avg")
    readings = tuple(one for one in possible_readings(backbone) if one in wanted) or possible_readings(backbone)
    return Recipe(readings, DINOV2_RATES, batch=1024, epochs=1, steps=12_500, cosine="step", crops="bicubic")


RECIPES: dict[str, Callable[[Backbone], Recipe]] = {
    make.__name__: make for make in (grid, dino, mocov3, mae, simsiam, simsiam_cifar, scatsimclr, dinov2)
}


class Options(BaseModel):
    """The recipe, and what of it is to be otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: Literal["grid", "dino", "mocov3", "mae", "simsiam", "simsiam_cifar", "scatsimclr", "dinov2"] = "grid"
    readings: tuple[Reading, ...] | None = Field(None, min_length=1)
    rates: tuple[PositiveFloat, ...] | None = Field(None, min_length=1)
    """Learning rates at a batch of 256 to choose from."""
    epochs: int | None = Field(None, ge=1)
    augment: Literal["auto", "none", "crops"] = "auto"
    """crops: learn from random crops and flips, encoded anew every epoch; none: from cached features of whole images;
    auto: as the paper of the recipe where `--paper-protocol` is on, else none."""


@dataclass(frozen=True)
class Read:
    """What the heads of a subject learn from and answer on.

    Attributes:
        train, test: (N, D) and (M, D) features of the images as they are, on the device that trains.
        columns: of each reading in them.
        crops: what is learned from in the place of `train`, where there are crops.
    """

    train: Tensor
    test: Tensor
    columns: dict[str, slice]
    crops: Crops | None

    def draw(self, rows: Rows) -> Draw | None:
        """Crops of the training images `rows`, numbered from 0."""
        crops = self.crops
        return None if crops is None else lambda epoch, some: crops(epoch, rows[some])


class Linear(Protocol):
    """Top-1, top-5 (from six classes on), balanced accuracy and, of unbalanced classes, F1 in percent."""

    Options = Options

    def run(self, data: EvalData) -> Result:
        """Train, choose and read a probe of every subject.

        Raises:
            UserError: when all training images are of one class, or a backbone has not the reading asked for.
        """
        if len(np.unique(data.train_labels)) < 2:
            raise UserError("linear: all training images are of one class, a probe needs two")
        recipes = {name: self._recipe(data, subject) for name, subject in data.subjects.items()}
        augment = self._augment(data, recipes[RUN])
        if self._crops(data, recipes[RUN]) is not None:
            print(f"linear: {augment}", flush=True)
        counts = resample(len(data.test_labels), data.seed)
        metrics: dict[str, dict[str, Number]] = {}
        grids: dict[str, dict[str, float]] = {}
        chosen: dict[str, dict[str, Any]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, subject in data.subjects.items():
            read = self._read(data, subject, recipes[name])
            found = _choose(data, read, recipes[name])
            grids[name], chosen[name] = found.grid, {**found.setting._asdict(), "epochs": found.epochs}
            logits = _again(data, read, found, recipes[name]) if found.logits is None else found.logits
            shares: NDArray[np.float64] = logits.double().softmax(1).cpu().numpy()
            ranking = np.argsort(-shares, axis=1, kind="stable")[:, :TOP]
            metrics[name] = classification(ranking, data.test_labels, len(data.classes), counts)
            items[name] = {"top1": (ranking[:, 0] == data.test_labels).astype(np.float64)}
            draws[name] = {
                "predictions": ranking[:, 0],
                "confidence": shares.max(1),
                "confusion": confusion_matrix(data.test_labels, ranking[:, 0], labels=range(len(data.classes))),
            }
        always = np.tile(majority(data.train_labels, len(data.classes))[:TOP], (len(data.test_labels), 1))
        metrics[MAJORITY] = classification(always, data.test_labels, len(data.classes), counts)
        return Result(
            protocol="linear",
            metrics=metrics,
            chosen={"setting": chosen, "on": data.choice.said, "accuracy": grids},
            settings={
                "recipe": self.options.recipe,
                "heads": {name: {**asdict(one), "readings": list(one.readings)} for name, one in recipes.items()},
                "epochs_read": "every one" if data.paper else "the last",
                "probe": {name: "bn-linear" if one.batchnorm else "linear" for name, one in recipes.items()},
                "augment": augment,
                "interval": f"95 % bootstrap over {len(data.test_labels)} test images, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def _recipe(self, data: EvalData, subject: Subject) -> Recipe:
        """The recipe for a subject, with what the user set otherwise; pixels have one reading only."""
        asked = self.options
        backbone = (subject.encoder or data.encoders[RUN]).backbone
        recipe = RECIPES[asked.recipe](backbone)
        if asked.readings is not None and subject.encoder is not None:
            recipe = replace(recipe, readings=tuple(dict.fromkeys(settle(backbone, one) for one in asked.readings)))
        if subject.encoder is None:
            recipe = replace(recipe, readings=(PIXELS,))
        if asked.rates is not None:
            recipe = replace(recipe, rates=tuple(sorted(set(asked.rates))))
        return recipe if asked.epochs is None else replace(recipe, epochs=asked.epochs, steps=0)

    def _crops(self, data: EvalData, recipe: Recipe) -> Interpolation | None:
        """How crops are resampled; None: there are none."""
        asked = self.options.augment
        if asked == "auto":
            return recipe.crops if data.paper else None
        return (recipe.crops or "bicubic") if asked == "crops" else None

    def _augment(self, data: EvalData, recipe: Recipe) -> str:
        """What heads learn from, and what that costs."""
        images, fit = len(data.train), len(data.choice.fit)
        if self._crops(data, recipe) is None:
            return "none: heads learn from cached features of whole images"
        passes = recipe.length(fit) * fit + (0 if data.paper else recipe.length(images) * images)
        return (
            f"crops: random crops and flips, encoded anew every epoch: {passes:,} forward passes of each network, "
            f"beside the {images + len(data.test):,} of whole images that cached features take (linear.augment=none)"
        )

    def _read(self, data: EvalData, subject: Subject, recipe: Recipe) -> Read:
        """The features of a subject: one forward pass an image, two where GeM is asked for."""
        readings: tuple[Reading, ...] = ()
        columns = {PIXELS: slice(None)}
        if subject.encoder is None:
            train, test = data.features[subject.name]
        else:
            readings, columns = _sources(subject.encoder.backbone, recipe)
            train, test = (
                torch.cat([subject.features(images, reading) for reading in readings], 1)
                for images in (data.train, data.test)
            )
        how = self._crops(data, recipe)
        crops = (
            None if how is None else crops_of(subject, readings, data.train, how, data.seed, data.device, data.mirrored)
        )
        return Read(train.to(data.device), test.to(data.device), columns, crops)


def _first(backbone: Backbone, wanted: tuple[Reading, ...]) -> Reading:
    """The first of the readings wanted that the backbone has; every one has "avg"."""
    possible = possible_readings(backbone)
    return next(one for one in wanted if one in possible)


def _sources(backbone: Backbone, recipe: Recipe) -> tuple[tuple[Reading, ...], dict[str, slice]]:
    """The readings that hold all those of a recipe, and the columns of each where they stand side by side."""
    widest_one, joint = widest(backbone)
    columns = {str(name): part for name, part in joint.items()}
    if GEM not in recipe.readings:
        return (widest_one,), columns
    start = width(backbone, widest_one)
    return (widest_one, GEM), {**columns, GEM: slice(start, start + width(backbone, GEM))}


def _seen(labels: Labels, classes: int, logits: Tensor) -> Tensor:
    """Logits, those of classes without training images at minus infinity."""
    unseen = torch.from_numpy(np.setdiff1d(np.arange(classes), labels)).to(logits.device)
    return logits.index_fill(-1, unseen, -torch.inf)


@dataclass(frozen=True)
class Chosen:
    """The best head.

    Attributes:
        grid: accuracy of every head in percent.
        epochs: after which it is read.
        logits: (M, classes) of the test images, where it was chosen on them; else it is trained again.
    """

    grid: dict[str, float]
    setting: Setting
    epochs: int
    logits: Tensor | None


def _choose(data: EvalData, read: Read, recipe: Recipe) -> Chosen:
    """Train all heads and take the best one; of equals the first reading, the lowest rate.

    Heads are read after the last epoch; on the test images, which papers choose on, after every one.
    """
    x, val_x = data.choice.of(read.train, read.test)
    labels, truth = data.choice.of(data.train_labels, data.test_labels)
    y, val_y = (torch.from_numpy(part).to(x.device) for part in (labels, truth))
    settings, last = recipe.settings(), recipe.length(len(x))
    best, epochs, winner = torch.full((len(settings),), -1.0), [0] * len(settings), 0
    kept: Tensor | None = None
    draw = read.draw(data.choice.fit)
    for epoch, heads in trained(x, y, settings, read.columns, recipe, len(data.classes), data.seed, draw):
        if not data.paper and epoch < last:
            continue
        with torch.no_grad():
            logits = heads(val_x)
        # A head that diverged is right nowhere.
        finite, logits = logits.isfinite().all(2), _seen(labels, len(data.classes), logits)
        right = (logits.argmax(2) == val_y[:, None]) & finite
        for i, accuracy in enumerate((100 * right.double().mean(0)).tolist()):
            if accuracy > best[i]:
                best[i], epochs[i] = accuracy, epoch
        winner = int(best.argmax())
        if data.paper and epochs[winner] == epoch:
            kept = logits[:, winner].clone()
    found = {str(setting): round(float(value), 4) for setting, value in zip(settings, best, strict=True)}
    return Chosen(found, settings[winner], epochs[winner] if data.paper else recipe.length(len(read.train)), kept)


def _again(data: EvalData, read: Read, chosen: Chosen, recipe: Recipe) -> Tensor:
    """(M, classes) logits of the test images, by the chosen head trained on all training images."""
    labels, classes = data.train_labels, len(data.classes)
    y, draw = torch.from_numpy(labels).to(read.train.device), read.draw(np.arange(len(labels)))
    run = trained(read.train, y, [chosen.setting], read.columns, recipe, classes, data.seed, draw)
    head = next(heads for epoch, heads in run if epoch == chosen.epochs)
    with torch.no_grad():
        return _seen(labels, classes, head(read.test)[:, 0])
