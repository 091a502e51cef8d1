"""Settings of `belvedere generate`: a typed schema, and values for this data where one is `auto`.

Torch is not imported here, so that a wrong key is answered at once. Defaults are those of the published code on
CIFAR-10 (spec patch_and_pretext 7), but for what a CPU could not train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from belvedere import plugins
from belvedere.config import read_flat, read_origins, with_origins
from belvedere.errors import UserError
from belvedere.explain import explain
from belvedere.schedules import batches
from belvedere.schema import Auto, Count, NotNegative, Positive, Probability, Section, Word

LARGEST_AUTO = 64
"""Pixels a side: larger images are made only where a user asks, since they cost hours."""
WARMUP = 3000
"""Steps of the published code, and at most a tenth of the run."""


class Images(Section):
    """What is learned and made: squares."""

    size: Count | Auto = "auto"
    channels: Count | Auto = "auto"
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"


class Network(Section):
    """What both networks have."""

    dim: Count | Auto = "auto"
    depth: Count = 4
    heads: Count | Auto = "auto"


class GeneratorSettings(Network):
    """Noise to images."""

    grid: Count = 8
    """Tokens a side; each paints a patch."""
    painter: Count | Auto = "auto"
    """Width of the layers that paint a patch."""


class DiscriminatorSettings(Network):
    """Images to how real they look."""

    patch: Count | Auto = "auto"
    overlap: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Pixels that a patch reaches into its neighbours."""


class AttentionSettings(Section):
    """Of both networks."""

    form: Literal["l2", "published", "dot"] = "l2"
    """`published` is the paper's code, its spectral norm and untied projections included."""
    sign: Literal["minus", "plus"] = "minus"
    tied: bool = True
    power: Literal[1, 2] = 2
    values: Literal["head", "tokens"] | Auto = "auto"


class Loss(Section):
    """Weights of the penalties."""

    r1: NotNegative = 0.1
    consistency_real: NotNegative = 1.0
    consistency_fake: NotNegative = 1.0
    augment: Literal["both", "second"] = "both"
    """Whether the discriminator always sees augmented images, or only for consistency."""


class Augment(Section):
    """DiffAug: what images go through before the discriminator, generated ones differentiably."""

    shift: Probability = 0.125
    """Most, as a share of the side."""
    shift_p: Probability = 0.8
    flip: Probability = 0.5
    colour_p: Probability = 0.8
    """Of brightness, saturation and contrast, each."""
    cutout: Probability = 0.5
    """Share of the side of a gray square."""
    cutout_p: Probability = 0.3


class Train(Section):
    """Budget, optimiser, machine."""

    epochs: Positive | None = None
    minutes: Positive | None = None
    steps: Count | Auto = "auto"
    batch: Count = 64
    lr: Positive = 1e-3
    lr_discriminator: Positive | Auto = "auto"
    warmup: Annotated[int, Field(ge=0)] | Auto = "auto"
    half_life: Positive = 1e6
    """Images after which the averaged generator has forgotten half; at most a twentieth of those seen so far."""
    seed: int = Field(0, ge=0)
    threads: Annotated[int, Field(ge=0)] = 0
    """0 = torch's own."""
    checkpoint_minutes: Positive = 5.0


class Samples(Section):
    """What is looked at on the way."""

    images: Count = 64
    every: Count | Auto = "auto"
    """Steps between two pictures."""
    measured: int = Field(1000, ge=64)
    """Generated and real images each that distances in an encoder are measured on."""


class Settings(Section):
    """A whole run."""

    data: str = ""
    images: Images = Images()
    generator: GeneratorSettings = GeneratorSettings()
    discriminator: DiscriminatorSettings = DiscriminatorSettings()
    attention: AttentionSettings = AttentionSettings()
    loss: Loss = Loss()
    augment: Augment = Augment()
    train: Train = Train()
    samples: Samples = Samples()
    encoder: Word = "none"
    """A run whose features the distances are measured in."""


@dataclass(frozen=True)
class Plan:
    """Settings and where each value came from (flat key -> origin)."""

    settings: Settings
    origin: dict[str, str] = field(default_factory=dict)

    def with_values(self, values: Mapping[str, tuple[Any, str]]) -> Plan:
        """A copy with flat keys replaced: key -> (value, origin)."""
        flat = flatten(self.settings) | {key: value for key, (value, _) in values.items()}
        return Plan(build(flat), self.origin | {key: why for key, (_, why) in values.items()})


def flatten(settings: Settings) -> dict[str, Any]:
    """Flat `section.key` -> value, in the schema's order."""
    flat: dict[str, Any] = {}
    for name, value in settings.model_dump(mode="json").items():
        flat |= {f"{name}.{key}": inner for key, inner in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def build(flat: Mapping[str, Any]) -> Settings:
    """The settings of flat keys.

    Raises:
        UserError: for an unknown key (with the nearest), or a value of the wrong kind.
    """
    known = list(flatten(Settings()))
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        if key not in known:
            raise UserError(f"unknown key '{key}': {plugins.nearest(key, known)}")
        section, _, name = key.partition(".")
        if name:
            tree.setdefault(section, {})[name] = value
        else:
            tree[section] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        key = ".".join(str(part) for part in errors[0]["loc"][:2])
        key = key if key in known else key.partition(".")[0]
        same = [one for one in errors if one["loc"][: key.count(".") + 1] == tuple(key.split("."))]
        raise UserError(f"{key}: {explain(same)}") from None


def plan(given: Mapping[str, Any]) -> Plan:
    """What the user gave over the defaults.

    Raises:
        UserError: as `build`, and for more than one budget.
    """
    budgets = [key for key in ("train.epochs", "train.minutes", "train.steps") if given.get(key) not in (None, "auto")]
    if len(budgets) > 1:
        raise UserError(f"give one budget, not both {budgets[0]} and {budgets[1]}")
    return Plan(build(given), dict.fromkeys(given, "command line"))


def derive(found: Plan, *, images: int, side: int, cpu: bool) -> Plan:
    """Values for what is still `auto`, but for steps that minutes have to be measured for.

    Args:
        images: their number.
        side: their median short side, pixels.
        cpu: whether that trains.

    Raises:
        UserError: for images, a grid and patches that do not fit together.
    """
    new: dict[str, tuple[Any, str]] = {}
    settings = found.settings
    grid = settings.generator.grid

    def fill(key: str, value: Any, why: str) -> Any:
        known = flatten(settings)[key]
        if known == "auto":
            new[key] = value, why
            return value
        return known

    largest = max(grid, min(side, LARGEST_AUTO) // grid * grid)
    size = fill("images.size", largest, f"images of {side} px, at most {LARGEST_AUTO}, on a grid of {grid}")
    why = "a CPU's" if cpu else "the paper's"
    for network in ("generator", "discriminator"):
        dim = fill(f"{network}.dim", 96 if cpu else 384, why)
        heads = next(count for count in (dim // (24 if cpu else 64), 4, 3, 2, 1) if count > 0 and dim % count == 0)
        fill(f"{network}.heads", heads, f"a width of {dim}")
    by_distance = settings.attention.form == "l2" and settings.attention.tied
    why = "no slope without bound" if by_distance else "of tokens, where no projection is the head's own"
    values = fill("attention.values", "head" if by_distance else "tokens", why)
    if values == "head" and not by_distance:
        raise UserError("attention.values=head: needs attention.form=l2 and attention.tied=true")
    why = "a CPU's" if cpu else "the paper's"
    fill("generator.painter", 64 if cpu else 512, why)
    patch = fill("discriminator.patch", max(1, size // 8), f"8 x 8 of them in {size} px")
    fill("discriminator.overlap", patch // 2, "half a patch")
    fill("train.lr_discriminator", settings.train.lr, "the generator's")
    if size % grid:
        raise UserError(f"images.size={size}: generator.grid={grid} does not divide it")
    if size % patch:
        raise UserError(f"images.size={size}: discriminator.patch={patch} does not divide it")
    for network, part in (("generator", settings.generator), ("discriminator", settings.discriminator)):
        heads, dim = (new.get(f"{network}.{key}", (getattr(part, key), ""))[0] for key in ("heads", "dim"))
        if dim % heads:
            raise UserError(f"{network}.heads={heads}: does not divide {network}.dim={dim}")
    if images < settings.train.batch:
        raise UserError(f"train.batch={settings.train.batch}: there are only {images} images")
    if settings.train.minutes is None:
        per_epoch = batches(images, settings.train.batch)
        epochs = settings.train.epochs or (20 if cpu else 200)
        why = f"{epochs:g} epochs of {per_epoch} steps"
        _end(fill, fill("train.steps", max(1, round(epochs * per_epoch)), why))
    elif settings.train.steps != "auto":
        _end(fill, int(settings.train.steps))
    return found.with_values(new)


def _end(fill: Any, steps: int) -> None:
    fill("train.warmup", min(WARMUP, steps // 10), f"the paper's {WARMUP}, at most a tenth of {steps} steps")
    fill("samples.every", max(1, -(-steps // 10)), "ten pictures")


def to_yaml(found: Plan) -> str:
    """The run's `generator.yaml`: flat keys, each line with what its value came from."""
    return with_origins("# Settings of a run of `belvedere generate`", flatten(found.settings), found.origin)


def from_yaml(path: Path) -> Plan:
    """Read a run's settings back, origins included.

    Raises:
        UserError: when the file is damaged.
    """
    flat = read_flat(path)
    return Plan(build(flat), read_origins(path, flat))
