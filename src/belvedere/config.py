"""One typed schema, one precedence: default < recipe < command line; what is still `auto` is derived from the data.

Torch is not imported here: a wrong recipe, plug-in or key is answered at once. A plug-in's own options
(`objective.prototypes`, `views.candidates`) are checked right after the plug-in's file is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from belvedere import plugins
from belvedere.errors import UserError

Auto = Literal["auto"]
Unit = tuple[float, float]
RECIPES = Path(__file__).parent / "recipes"


class Section(BaseModel):
    """Part of the core schema; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PluginSection(BaseModel):
    """Section whose other keys are options of the plug-in that it names."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Paper(Section):
    """What the paper used; the derivation scales from here, and gives these values back at the paper's size."""

    images: int = 1_281_167
    size: int = 224
    local_size: int = 96
    batch: int = 1024
    epochs: float = 100
    warmup_epochs: float = 10
    lr: float = 1e-3
    """Peak learning rate at the paper's batch."""
    lr_rule: Literal["sqrt", "linear"] = "sqrt"
    global_scale: Unit = (0.08, 1.0)
    local_scale: Unit = (0.05, 0.4)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    blur_p: tuple[float, float, float] = (0.5, 0.5, 0.5)
    drop_path: float = 0.0


class Images(Section):
    """How files become canvases."""

    canvas: int | Auto = "auto"
    """Short side of a decoded image, pixels."""
    channels: int | Auto = "auto"
    labels: str = "auto"
    """auto | none | folder | path of a CSV with `path,label`."""
    min_side: int = Field(8, ge=1)
    mean: tuple[float, ...] | Auto = "auto"
    std: tuple[float, ...] | Auto = "auto"
    workers: int | Auto = "auto"


class Views(PluginSection):
    """The slots of a view and the policy that fills them; other keys are the policy's options."""

    policy: str = "random"
    size: int | tuple[int, int] | Auto = "auto"
    globals: int = Field(2, ge=1)
    locals: int = Field(0, ge=0)
    local_size: int | tuple[int, int] | Auto = "auto"
    global_scale: Unit | Auto = "auto"
    local_scale: Unit | Auto = "auto"
    ratio: Unit = (3 / 4, 4 / 3)
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = Field(0.5, ge=0, le=1)
    jitter: tuple[float, float, float, float] | Auto = "auto"
    jitter_p: float = Field(0.8, ge=0, le=1)
    gray_p: float = Field(0.2, ge=0, le=1)
    blur_p: tuple[float, float, float] | Auto = "auto"
    """Of global_a, of the other globals, of the locals."""
    sigma: Unit = (0.1, 2.0)
    solarize_p: tuple[float, float, float] = (0.0, 0.0, 0.0)


class Backbone(Section):
    """The network."""

    name: str = "auto"
    patch: int | Auto = "auto"
    width: int | None = None
    depth: int | None = None
    heads: int | None = None
    drop_path: float | Auto = "auto"
    freeze_patch: bool = False
    positions: Literal["dino", "timm"] = "dino"
    """How position embeddings are resampled at other resolutions."""


class Objective(PluginSection):
    """The loss; other keys are the objective's options."""

    name: str = "dino"


class Train(Section):
    """Budget, optimiser, machine."""

    epochs: float | Auto | None = "auto"
    minutes: float | None = Field(None, gt=0)
    steps: int | Auto = "auto"
    batch: int | Auto = "auto"
    """Images per optimiser step, over all processes."""
    accumulate: int = Field(1, ge=1)
    optimizer: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float | Auto = "auto"
    lr_end: float = 0.0
    warmup: int | Auto = "auto"
    """Steps."""
    schedule: Literal["dino", "simclr"] = "dino"
    """Both warm up linearly and then follow a cosine; DINO's warm-up includes its peak, SimCLR's does not."""
    weight_decay: float = 0.05
    weight_decay_end: float | None = None
    decay: Literal["matrices", "all"] = "matrices"
    clip_tensor: float = Field(0.0, ge=0)
    """Largest gradient norm of each tensor by itself, 0 = off."""
    clip_global: float = Field(0.0, ge=0)
    """Largest gradient norm of all tensors together, 0 = off."""
    precision: Literal["float32", "bf16"] | Auto = "auto"
    compile: bool = False
    seed: int = 0
    checkpoint_minutes: float = Field(5.0, gt=0)
    threads: int | Auto = "auto"


class Monitor(Section):
    """What is watched while training."""

    log_every: int = Field(10, ge=1)
    """Steps between two lines of metrics.jsonl with more than the loss."""
    probe: int = Field(1024, ge=16)
    """Images of the fixed probe set of the health page."""
    knn: int = Field(2000, ge=0)
    """Most images of the online k-NN, 0 = off."""
    every: float | Auto = "auto"
    """Epochs between two looks at health and k-NN."""


class Health(Section):
    """What ends a run early."""

    stop: bool = True
    """Stop when the output is constant or not finite over 200 steps."""


class Config(Section):
    """A whole run."""

    recipe: str = "dino"
    paper: Paper = Paper()
    images: Images = Images()
    views: Views = Views()
    backbone: Backbone = Backbone()
    objective: Objective = Objective()
    tasks: tuple[str, ...] = ()
    task: dict[str, dict[str, Any]] = {}
    train: Train = Train()
    monitor: Monitor = Monitor()
    health: Health = Health()


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values came from (flat key -> origin)."""

    config: Config
    origin: dict[str, str] = field(default_factory=dict)

    def with_values(self, values: Mapping[str, tuple[Any, str]]) -> Resolved:
        """A copy with flat keys replaced: key -> (value, origin)."""
        flat = flatten(self.config)
        flat.update({key: value for key, (value, _) in values.items()})
        origin = {**self.origin, **{key: why for key, (_, why) in values.items()}}
        return Resolved(build(flat), origin)

    def auto_keys(self) -> list[str]:
        """Keys whose value is still to be derived."""
        return [key for key, value in flatten(self.config).items() if value == "auto" and key not in _KEEP_AUTO]


# Keys for which "auto" is a way of working and not a value to derive.
_KEEP_AUTO = {"images.labels"}


def flatten(config: Config) -> dict[str, Any]:
    """Flat `section.key` -> value, in the schema's order; lists for tuples."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict) and (value or prefix != "task"):
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else key, inner)
        elif value != {}:
            flat[prefix] = value

    walk("", config.model_dump(mode="json"))
    return flat


def build(flat: Mapping[str, Any]) -> Config:
    """The typed configuration of flat keys.

    Raises:
        UserError: for an unknown key (with the nearest), or a value of the wrong kind.
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        parts = key.split(".")
        branch = tree
        for part in parts[:-1]:
            branch = branch.setdefault(part, {})
            if not isinstance(branch, dict):
                raise UserError(f"{key}: '{part}' is a value and has no keys")
        branch[parts[-1]] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error)) from None


def _explain(error: ValidationError) -> str:
    """One line for the first thing pydantic found wrong."""
    first = error.errors(include_url=False)[0]
    # pydantic appends the member of a union that it tried; our keys are lower-case names of fields.
    location = [str(part) for part in first["loc"]]
    key = next((k for n in range(len(location), 0, -1) if (k := ".".join(location[:n])) in known_keys()), None)
    if first["type"] == "extra_forbidden":
        word = ".".join(location)
        return f"unknown key '{word}': {plugins.nearest(word, known_keys())}"
    key = key or ".".join(location)
    return f"{key}: {first['msg'].lower()} (given: {first['input']!r})"


def known_keys() -> list[str]:
    """All keys of the core schema."""
    return list(flatten(Config()))


def parse_value(text: str) -> Any:
    """A command-line value as YAML reads it (`0.3`, `[1, 2]`, `true`, `none`)."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        if value.lower() == "none":
            return None
        try:  # YAML 1.1 reads 1e-4 as text
            return float(value) if value[:1] in "+-.0123456789" else value
        except ValueError:
            return value
    return value


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`section.key=value` words as flat keys.

    Raises:
        UserError: for a word without `=`.
    """
    values = {}
    for word in words:
        key, sign, text = word.partition("=")
        if not sign or not key:
            raise UserError(f"'{word}' is neither an option nor section.key=value")
        values[key.strip()] = parse_value(text)
    return values


def recipe_names() -> list[str]:
    """Names of the recipes that ship."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def read_flat(path: Path) -> dict[str, Any]:
    """A flat YAML file of keys.

    Raises:
        UserError: when the file is no YAML mapping of flat keys.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: must hold lines of `section.key: value`")
    return content


def load_recipe(name: str) -> dict[str, Any]:
    """Flat keys of a recipe, by its name or the path of a YAML file.

    Raises:
        UserError: when there is no such recipe, with the nearest name.
    """
    path = RECIPES / f"{name}.yaml" if "/" not in name and "." not in name else Path(name)
    if not path.is_file():
        raise UserError(f"unknown recipe '{name}': {plugins.nearest(name, recipe_names())}")
    return read_flat(path)


def resolve(recipe: str, overrides: Mapping[str, Any]) -> Resolved:
    """Default < recipe < command line, checked as far as is possible without importing a plug-in.

    Raises:
        UserError: for an unknown recipe, key or plug-in name, or a value of the wrong kind.
    """
    flat = load_recipe(recipe)
    origin = dict.fromkeys(flat, f"recipe {recipe}")
    flat.update(overrides)
    origin.update(dict.fromkeys(overrides, "command line"))
    if overrides.get("train.minutes") is not None and overrides.get("train.epochs") in (None, "auto"):
        flat["train.epochs"] = None
    if overrides.get("train.epochs") is not None:
        flat["train.minutes"] = None
        if overrides.get("train.minutes") is not None:
            raise UserError("give --epochs or --minutes, not both")
    flat["recipe"] = flat.get("recipe", recipe) if "/" in recipe or "." in recipe else recipe
    config = build(flat)
    plugins.check_name("objective", config.objective.name)
    plugins.check_name("policy", config.views.policy)
    for task in config.tasks:
        plugins.check_name("task", task)
    return Resolved(config, {key: origin.get(key, "default") for key in flatten(config)})


def plugin_options(
    config: Config, kind: Literal["objective", "policy", "task"], name: str, model: type[BaseModel]
) -> BaseModel:
    """The validated options of a plug-in, read from its section.

    Raises:
        UserError: for an option that neither the core schema nor the plug-in knows, with the nearest one.
    """
    section, given = _section_of(config, kind, name)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        word = str(first["loc"][0]) if first["loc"] else name
        key = f"{section}.{word}"
        if first["type"] == "extra_forbidden":
            known = [f"{section}.{option}" for option in model.model_fields]
            known += [k for k in known_keys() if k.startswith(f"{section}.")]
            raise UserError(f"unknown key '{key}': {plugins.nearest(key, known)}") from None
        raise UserError(f"{key}: {first['msg'].lower()} (given: {first['input']!r})") from None


def with_plugin_defaults(
    resolved: Resolved, kind: Literal["objective", "policy", "task"], name: str, model: type[BaseModel]
) -> Resolved:
    """A copy in which every option of a plug-in stands, defaults included."""
    options = plugin_options(resolved.config, kind, name, model).model_dump(mode="json")
    section, _ = _section_of(resolved.config, kind, name)
    return resolved.with_values(
        {
            f"{section}.{option}": (value, resolved.origin.get(f"{section}.{option}", "default"))
            for option, value in options.items()
        }
    )


def _section_of(config: Config, kind: str, name: str) -> tuple[str, dict[str, Any]]:
    if kind == "objective":
        return "objective", dict(config.objective.model_extra or {})
    if kind == "policy":
        return "views", dict(config.views.model_extra or {})
    return f"task.{name}", dict(config.task.get(name, {}))


def to_yaml(resolved: Resolved) -> str:
    """The run's `config.yaml`: itself a recipe, each line with what its value came from."""
    lines = ["# Resolved configuration of a belvedere run; itself a recipe: --recipe THIS_FILE"]
    for key, value in flatten(resolved.config).items():
        text = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True).strip()[1:-1]
        lines.append(f"{key}: {text}  # {resolved.origin.get(key, 'default')}")
    return "\n".join(lines) + "\n"


def from_yaml(path: Path) -> Resolved:
    """Read a run's `config.yaml` back, origins included.

    Raises:
        UserError: when it is damaged.
    """
    flat = read_flat(path)
    origin = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, rest = line.partition(": ")
        if key in flat:
            origin[key] = rest.rpartition("  # ")[2]
    return Resolved(build(flat), origin)
