"""A linear classifier on frozen features by SGD, reading and learning rate chosen, or a paper's recipe.

Spec evaluation 2.2. By default heads for the readings {cls, avg, cls+avg, last4} that the backbone has, times eight
learning rates, are trained side by side. The best is chosen on a tenth of the training images and trained again on all
of them; the test images are read once. `linear.recipe` takes a paper's own recipe instead (dino, mocov3, simsiam,
simsiam_cifar, scatsimclr, dinov2). All heads read cached features, so the crops that the papers augment with are left
out here, and the result says so. Raw pixels, the untrained network and the majority class go through the same lines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
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
from belvedere.evaluate.protocols._heads import Recipe, Setting, trained
from belvedere.evaluate.scores import TOP, classification
from belvedere.measure.floors import majority
from belvedere.measure.readings import Reading, possible_readings, settle, widest

GRID = tuple(float(rate) for rate in np.logspace(-3, 1, 8))
DINOV2_RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1)
# From this width on DINO reads cls+avg of the last block; below, the class tokens of the last four (ViT-S).
WIDE = 768


def grid(backbone: Backbone) -> Recipe:
    """Ours: every reading but the widest, at least 1,000 steps, so that small sets are learned to the end too."""
    readings = tuple(one for one in possible_readings(backbone) if one != "last4+avg")
    return Recipe(readings, GRID, batch=256, epochs=20, steps=1000, cosine="step")


def dino(backbone: Backbone) -> Recipe:
    """DINO (arXiv:2104.14294), EsViT and HVP with DINO."""
    wanted: tuple[Reading, ...] = ("cls+avg", "cls", "avg") if backbone.dim >= WIDE else ("last4", "cls", "avg")
    return Recipe((_first(backbone, wanted),), (0.001,), batch=1024, epochs=100)


def mocov3(backbone: Backbone) -> Recipe:
    """MoCo v3 (arXiv:2104.02057): the rate is 3 for a transformer and 0.1 for a convolutional network."""
    transformer = bool(backbone.block_dims)
    return Recipe((_first(backbone, ("cls", "avg")),), (3.0 if transformer else 0.1,), batch=1024, epochs=90)


def simsiam(backbone: Backbone) -> Recipe:
    """SimSiam (arXiv:2011.10566) as HVP runs it on ImageNet: LARS on the matrix, in large batches."""
    return Recipe((_first(backbone, ("cls", "avg")),), (0.1,), batch=4096, epochs=90, optimiser="lars")


def simsiam_cifar(backbone: Backbone) -> Recipe:
    """HVP's (arXiv:2310.03940) probe of SimSiam on CIFAR-10."""
    return Recipe((_first(backbone, ("cls", "avg")),), (30.0,), batch=256, epochs=100, scaled=False)


def scatsimclr(backbone: Backbone) -> Recipe:
    """ScatSimCLR (arXiv:2108.13939): Adam on standardised features, in the order of the images."""
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
    return Recipe(readings, DINOV2_RATES, batch=1024, epochs=1, steps=12_500, cosine="step")


RECIPES: dict[str, Callable[[Backbone], Recipe]] = {
    make.__name__: make for make in (grid, dino, mocov3, simsiam, simsiam_cifar, scatsimclr, dinov2)
}


class Options(BaseModel):
    """The recipe, and what of it is to be otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: Literal["grid", "dino", "mocov3", "simsiam", "simsiam_cifar", "scatsimclr", "dinov2"] = "grid"
    readings: tuple[Reading, ...] | None = Field(None, min_length=1)
    rates: tuple[PositiveFloat, ...] | None = Field(None, min_length=1)
    """Learning rates at a batch of 256 to choose from."""
    epochs: int | None = Field(None, ge=1)


class Linear(Protocol):
    """Top-1, top-5 (from six classes on) and balanced accuracy in percent."""

    Options = Options

    def run(self, data: EvalData) -> Result:
        """Train, choose and read a probe of every subject.

        Raises:
            UserError: when all training images are of one class, or a backbone has not the reading asked for.
        """
        if len(np.unique(data.train_labels)) < 2:
            raise UserError("linear: all training images are of one class, a probe needs two")
        recipes = {name: self._recipe(data, subject) for name, subject in data.subjects.items()}
        counts = resample(len(data.test_labels), data.seed)
        metrics: dict[str, dict[str, Number]] = {}
        grids: dict[str, dict[str, float]] = {}
        chosen: dict[str, dict[str, Any]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, subject in data.subjects.items():
            train, test, columns = _features(data, subject)
            grids[name], setting, epochs = _choose(data, train, test, columns, recipes[name])
            chosen[name] = {**setting._asdict(), "epochs": epochs}
            shares = _answers(data, train, test, columns, setting, epochs, recipes[name])
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
                "crops": "none: heads are trained on cached features of whole images, without augmentation",
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


def _first(backbone: Backbone, wanted: tuple[Reading, ...]) -> Reading:
    """The first of the readings wanted that the backbone has; every one has "avg"."""
    possible = possible_readings(backbone)
    return next(one for one in wanted if one in possible)


def _features(data: EvalData, subject: Subject) -> tuple[Tensor, Tensor, dict[str, slice]]:
    """(N, D) of the training and (M, D) of the test images, one forward pass each, and the columns of every reading."""
    if subject.encoder is None:
        train, test = data.features[subject.name]
        return train.to(data.device), test.to(data.device), {PIXELS: slice(None)}
    reading, columns = widest(subject.encoder.backbone)
    train, test = (subject.features(images, reading).to(data.device) for images in (data.train, data.test))
    return train, test, {str(name): part for name, part in columns.items()}


def _choose(
    data: EvalData, train: Tensor, test: Tensor, columns: dict[str, slice], recipe: Recipe
) -> tuple[dict[str, float], Setting, int]:
    """Accuracy of every head in percent, the best one and its epochs; of equals the first reading, the lowest rate.

    Heads are read after the last epoch; on the test images, which papers choose on, after every one.
    """
    x, val_x = data.choice.of(train, test)
    y, val_y = (torch.from_numpy(part).to(x.device) for part in data.choice.of(data.train_labels, data.test_labels))
    settings, last = recipe.settings(), recipe.length(len(x))
    best = torch.full((len(settings),), -1.0)
    epochs = [0] * len(settings)
    for epoch, heads in trained(x, y, settings, columns, recipe, len(data.classes), data.seed):
        if not data.paper and epoch < last:
            continue
        with torch.no_grad():
            logits = heads(val_x)
        # A head that diverged is right nowhere.
        right = (logits.argmax(2) == val_y[:, None]) & logits.isfinite().all(2)
        for i, accuracy in enumerate((100 * right.double().mean(0)).tolist()):
            if accuracy > best[i]:
                best[i], epochs[i] = accuracy, epoch
    winner = int(best.argmax())
    found = {str(setting): round(float(value), 4) for setting, value in zip(settings, best, strict=True)}
    return found, settings[winner], epochs[winner] if data.paper else recipe.length(len(train))


def _answers(
    data: EvalData,
    train: Tensor,
    test: Tensor,
    columns: dict[str, slice],
    setting: Setting,
    epochs: int,
    recipe: Recipe,
) -> NDArray[np.float64]:
    """(M, classes) probabilities of the test images, by the chosen head trained on all training images.

    A class without training images has none.
    """
    y = torch.from_numpy(data.train_labels).to(train.device)
    head = next(
        heads
        for epoch, heads in trained(train, y, [setting], columns, recipe, len(data.classes), data.seed)
        if epoch == epochs
    )
    with torch.no_grad():
        logits = head(test)[:, 0].double()
    unseen = np.setdiff1d(np.arange(len(data.classes)), data.train_labels)
    logits[:, torch.from_numpy(unseen).to(logits.device)] = -torch.inf
    shares: NDArray[np.float64] = logits.softmax(1).cpu().numpy()
    return shares
