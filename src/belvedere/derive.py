"""The one dial: every value that is still `auto`, from the number of images, their size, the batch and the budget.

Each rule reads like a sentence and gives its reason; at full ImageNet size with the paper's batch it gives the paper's
value back. Rules run in order, so that a later one reads what an earlier one filled in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from belvedere.config import Config, Resolved
from belvedere.scatnet import read_name
from belvedere.schedules import batches
from belvedere.schema import Paper

Value = tuple[Any, str]


@dataclass(frozen=True)
class Facts:
    """What is known about the data and the machine.

    Attributes:
        images: number of images.
        side: median short side of the images, pixels.
        channels: of the images.
        classes: of their labels, 0 without.
        class_sizes: labelled images of each class.
        mean, std: measured, per channel, in [0, 1].
        cpu: whether the run is on a CPU.
        bf16: whether the device computes in bfloat16.
        batch, steps, steps_per_epoch, epochs, dim: filled in as they become known.
        paper: what the recipe's paper used.
    """

    images: int
    side: int
    channels: int = 3
    classes: int = 0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    cpu: bool = False
    bf16: bool = True
    batch: int | None = None
    steps: int | None = None
    steps_per_epoch: int | None = None
    epochs: float | None = None
    dim: int | None = None
    class_sizes: tuple[int, ...] = ()
    paper: Paper = field(default_factory=Paper)


# Width of ViT-S, the narrowest network of the papers; a narrower one bears a proportionally larger step, up to twice.
NARROWEST = 384
MOST_FOR_WIDTH = 2.0
LARGE = 100_000
# Images a batch on a CPU: recipes of small batches are not cut further down.
FEWEST = 32
# Least share of a short run's steps to warm up over: iBOT's 10 of 800 epochs would be a dozen steps.
SHORT_WARMUP = 0.1
# Smallest share of the image that a global view shows where there are no local ones: DINO's code.
WITHOUT_LOCALS = 0.14
IMAGENET = Facts(images=1_281_167, side=375, classes=1000)


def _size(c: Config, f: Facts) -> Value | None:
    most = min(c.paper.size, 96) if f.cpu else c.paper.size
    given = c.backbone.patch if c.backbone.patch != "auto" else None
    why = "the most that a CPU trains in reasonable time" if most < c.paper.size else "the paper's"
    if f.side < most:
        most, why = f.side, f"images are {f.side} px"
    elif given is None:
        return most, why
    # A Swin's maps are halved three times.
    step = 8 * (given or 4) if _is_swin(c) else given or (16 if most >= 96 else 8)
    size = step * max(1, round(most / step))
    return (max(16, size), why) if given is None else (size, f"{why}, in whole patches")


def _is_swin(c: Config) -> bool:
    return c.backbone.name.startswith("swin")


def _patch(c: Config, f: Facts) -> Value | None:
    scatnet = read_name(c.backbone.name)
    if scatnet is not None:
        return scatnet.stride, "the stride of its scattering transform"
    size = min(_pair(c.views.size))
    if _is_swin(c):
        # The last map is an eighth of the first: 2 x 2 are the fewest that can be told apart.
        return (4, "the paper's") if size >= 64 else (2, f"a last map of {-(-size // 16)} x {-(-size // 16)} cells")
    if size >= 160:
        return 16, "the paper's"
    if size >= 48 or f.cpu:
        return 8, f"a grid of {size // 8} x {size // 8} at {size} px"
    return 4, f"a grid of {size // 4} x {size // 4} at {size} px"


def _local_size(c: Config, f: Facts) -> Value | None:
    patch = int(c.backbone.patch)
    wanted = min(_pair(c.views.size)) * c.paper.local_size / c.paper.size
    most = min(_pair(c.views.size)) // patch
    return min(max(2, round(wanted / patch)), most) * patch, "the paper's share of the global size, in whole patches"


def _canvas(c: Config, f: Facts) -> Value | None:
    side = round(max(_pair(c.views.size)) * 256 / 224)
    return side, "256/224 of the global size: what the test transform needs"


def _locals(c: Config, f: Facts) -> Value | None:
    across = min(_pair(c.views.local_size)) // int(c.backbone.patch)
    if c.paper.locals and across < 3:
        return 0, f"a local view of {across} x {across} patches would tell too little"
    return c.paper.locals, "the paper's"


def _global_scale(c: Config, f: Facts) -> Value | None:
    low, high = c.paper.global_scale
    if c.paper.locals and not c.views.locals:
        low = min(low, WITHOUT_LOCALS)
    # Our judgement, not measured: .08 of a 32-px image is 9 px, mostly blur once it is enlarged.
    floor = (0.45 * min(_pair(c.views.size)) / f.side) ** 2
    if floor > low:
        return [round(min(floor, high / 2), 3), high], "no crop under 0.45 of its output's side"
    return [low, high], "the paper's" if low == c.paper.global_scale[0] else "DINO's without local views"


def _local_scale(c: Config, f: Facts) -> Value | None:
    low, high = c.paper.local_scale
    floor = (min(_pair(c.views.local_size)) / 2 / f.side) ** 2
    if floor > low:
        return [round(min(floor, high / 2), 3), high], "no crop under half its output's side"
    return [low, high], "the paper's"


def _jitter(c: Config, f: Facts) -> Value | None:
    strengths = c.paper.jitter
    if f.side <= 64 and max(strengths) > 0.5:
        return [round(x / 2, 3) for x in strengths], "half the paper's on small images, as SimCLR on CIFAR"
    return list(strengths), "the paper's"


def _blur(c: Config, f: Facts) -> Value | None:
    if min(_pair(c.views.size)) <= 64:
        return [0.0, 0.0, 0.0], "no blur on small images"
    return list(c.paper.blur_p), "the paper's"


def _backbone(c: Config, f: Facts) -> Value | None:
    if f.cpu:
        return "vit_tiny", "a CPU"
    return ("vit_small", "the paper's smallest") if f.images >= 20_000 else ("vit_tiny", "under 20,000 images")


def _heads(c: Config, f: Facts) -> Value | None:
    paper = c.backbone.name.split("_patch")[0] == "vit_small" and c.backbone.width in (None, NARROWEST)
    return (c.paper.heads, "the paper's ViT-S") if paper else (None, "the named network's")


def _freeze_patch(c: Config, f: Facts) -> Value | None:
    if read_name(c.backbone.name) is not None:
        return False, "a scattering network has no patch projection"
    if c.paper.freeze_patch and f.images < LARGE:
        return False, "trained under 100,000 images, our judgement: freezing cures an instability of large runs"
    return c.paper.freeze_patch, "the paper's"


def _init(c: Config, f: Facts) -> Value | None:
    if f.images >= LARGE or c.paper.init == "mocov3":
        return c.paper.init, "the paper's"
    return "mocov3", "under 100,000 images, our judgement: larger first weights and fixed positions to learn sooner"


def _drop_path(c: Config, f: Facts) -> Value | None:
    return (c.paper.drop_path, "the paper's") if f.images >= LARGE else (0.0, "off under 100,000 images")


def _batch(c: Config, f: Facts) -> Value | None:
    most = max(min(c.paper.batch, FEWEST), c.paper.batch // 16) if f.cpu else min(c.paper.batch, 512)
    few = 2 ** max(1, int(math.log2(max(f.images, 2) / 8)))
    if few < most:
        return few, "at least 8 batches an epoch"
    if f.cpu:
        return most, f"a sixteenth of the paper's on a CPU, at least {FEWEST}"
    return most, "one device" if most < c.paper.batch else "the paper's"


def _epochs(c: Config, f: Facts) -> Value | None:
    if c.train.minutes is not None:
        return None, "a budget in minutes was given"
    if c.train.steps != "auto":
        return None, "a number of steps was given"
    if f.cpu:
        return None, "no budget was given: 30 minutes on a CPU"
    grown = c.paper.epochs * math.sqrt(c.paper.images / f.images)
    return min(800.0, round(grown)), "the paper's epochs x sqrt(ImageNet's images / yours), at most 800"


def _minutes(c: Config, f: Facts) -> Value | None:
    if c.train.epochs is None and c.train.minutes is None and c.train.steps == "auto":
        return 30.0, "no budget was given: 30 minutes on a CPU"
    return None


def _steps(c: Config, f: Facts) -> Value | None:
    if c.train.epochs is None or f.steps_per_epoch is None:
        return None
    return max(1, round(float(c.train.epochs) * f.steps_per_epoch)), f"{c.train.epochs:g} epochs"


def _lr(c: Config, f: Facts) -> Value | None:
    ratio = int(c.train.batch) / c.paper.batch
    if c.paper.lr_rule == "linear":
        return _rounded(c.paper.lr * ratio), "the paper's x batch / its batch"
    if f.dim is None:
        return None
    narrow = min(max(1.0, NARROWEST / f.dim), MOST_FOR_WIDTH)
    why = (
        "" if narrow == 1 else f" x {NARROWEST} / width" if narrow < MOST_FOR_WIDTH else f" x {narrow:g} for its width"
    )
    return _rounded(c.paper.lr * math.sqrt(ratio) * narrow), f"the paper's x sqrt(batch / its batch){why}"


def _warmup(c: Config, f: Facts) -> Value | None:
    if f.steps is None:
        return None
    share, why = c.paper.warmup_epochs / c.paper.epochs, "as the paper"
    if 0 < share < SHORT_WARMUP and f.steps < 10_000:
        share, why = SHORT_WARMUP, "as a run under 10,000 steps needs"
    steps = max(1, round(f.steps * share)) if share else 0
    return min(steps, f.steps - 1), f"{100 * share:.0f} % of the steps, {why}"


def _precision(c: Config, f: Facts) -> Value | None:
    return ("bf16", "the device has it") if f.bf16 else ("float32", "this device has no bf16")


def _every(c: Config, f: Facts) -> Value | None:
    if f.steps is None or f.steps_per_epoch is None:
        return None
    epochs = f.steps / f.steps_per_epoch
    if f.images >= 100_000:
        return 1.0, "every epoch"
    return max(1.0, float(round(epochs / 20))), "20 looks a run"


def _threads(c: Config, f: Facts) -> Value | None:
    return 0, "torch's own choice"


def _workers(c: Config, f: Facts) -> Value | None:
    return 0, "one a core"


def _channels(c: Config, f: Facts) -> Value | None:
    return f.channels, "the images'"


def _mean(c: Config, f: Facts) -> Value | None:
    return [round(x, 4) for x in f.mean], "measured"


def _std(c: Config, f: Facts) -> Value | None:
    return [round(max(x, 1e-3), 4) for x in f.std], "measured"


RULES: list[tuple[str, Callable[[Config, Facts], Value | None]]] = [
    ("images.channels", _channels),
    ("images.workers", _workers),
    ("views.size", _size),
    ("images.canvas", _canvas),
    ("backbone.name", _backbone),
    ("backbone.patch", _patch),
    ("backbone.heads", _heads),
    ("backbone.drop_path", _drop_path),
    ("backbone.freeze_patch", _freeze_patch),
    ("backbone.init", _init),
    ("views.local_size", _local_size),
    ("views.locals", _locals),
    ("views.global_scale", _global_scale),
    ("views.local_scale", _local_scale),
    ("views.jitter", _jitter),
    ("views.blur_p", _blur),
    ("images.mean", _mean),
    ("images.std", _std),
    ("train.batch", _batch),
    ("train.epochs", _epochs),
    ("train.minutes", _minutes),
    ("train.steps", _steps),
    ("train.lr", _lr),
    ("train.warmup", _warmup),
    ("train.precision", _precision),
    ("train.threads", _threads),
    ("monitor.every", _every),
]


def derive(resolved: Resolved, facts: Facts) -> tuple[Resolved, Facts]:
    """Fill every core key that is still `auto` and can be known now; returns the facts that became known on the way.

    Call it again when more is known (the number of steps, after calibration): what is filled stays.
    """
    for key, rule in RULES:
        section, name = key.split(".")
        current = getattr(getattr(resolved.config, section), name)
        if current == "auto" or (key == "train.minutes" and current is None):
            found = rule(resolved.config, facts)
            if found is not None:
                resolved = resolved.with_values({key: found})
        facts = _learn(resolved.config, facts)
    return resolved, facts


def derive_plugin(resolved: Resolved, section: str, rules: dict[str, Value]) -> Resolved:
    """Fill the options of a plug-in that are still `auto` from what its own `derive` says."""
    auto = set(resolved.auto_keys())
    return resolved.with_values(
        {f"{section}.{option}": found for option, found in rules.items() if f"{section}.{option}" in auto}
    )


def _learn(c: Config, f: Facts) -> Facts:
    f = replace(f, paper=c.paper)
    if f.batch is None and c.train.batch != "auto":
        # A batch larger than the data is refused later, in words.
        f = replace(f, batch=c.train.batch, steps_per_epoch=max(1, batches(f.images, c.train.batch)))
    if f.steps is None and c.train.steps != "auto" and f.steps_per_epoch is not None:
        f = replace(f, steps=c.train.steps, epochs=c.train.steps / f.steps_per_epoch)
    return f


def _rounded(value: float) -> float:
    """Four digits say all that a rule knows."""
    return float(f"{value:.4g}")


def _pair(size: Any) -> tuple[int, int]:
    """(h, w) of a size that may be one number."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
