"""One precedence: default < recipe < command line; what is still `auto` is derived from the data (`derive`).

Torch is not imported here: a wrong recipe, plug-in or key is answered at once. A plug-in's own options
(`objective.prototypes`, `views.candidates`) are checked right after the plug-in's file is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from belvedere import plugins
from belvedere.errors import UserError
from belvedere.explain import explain
from belvedere.schema import Config

__all__ = ["Config", "Resolved"]
RECIPES = Path(__file__).parent / "recipes"


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
# What hard views can do with local views; `policies.hard` in Python takes it as `locals`.
_LOCAL_VIEWS = ("fixed", "scored", "choose")


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
        _check_key(key, value)
        *sections, name = key.split(".")
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[name] = value
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(_first_fault(error)) from None


def _check_key(key: str, value: Any) -> None:
    """Refuse a key that neither the core schema nor a plug-in can have, and a value that was meant otherwise.

    Raises:
        UserError: naming the nearest key, or how it is written.
    """
    known = known_keys()
    section = key.partition(".")[0]
    # {a,b} is {a: null, b: null} in YAML.
    set_like = isinstance(value, dict) and value and all(inner is None for inner in value.values())
    if set_like and not _is_section(key):
        raise UserError(f"{key}: a list is written in square brackets, {key}=[{','.join(map(str, value))}]")
    if key == "views.locals" and value in _LOCAL_VIEWS:
        raise UserError(f"{key}: is how many local views there are; write views.local_views={value}")
    if key in known or (section == "task" and key.count(".") == 2):
        return
    if section == "task":
        raise UserError(f"{key}: write an option of a task as task.NAME.OPTION")
    if _is_section(key):
        first = next(iter(value)) if isinstance(value, dict) and value else "KEY"
        raise UserError(f"{key}: is a section and holds no value; write its keys as {key}.{first}")
    if key.count(".") != 1 or section not in ("views", "objective"):
        raise UserError(f"unknown key '{key}': {_nearest_key(key, known)}")


def _is_section(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name in known_keys())


def _nearest_key(word: str, known: Sequence[str]) -> str:
    """The clause that names the key that was meant: the same last word in another section, or the nearest spelling."""
    candidates = [key for key in known if not key.startswith("paper.")] if not word.startswith("paper") else known
    name = word.rpartition(".")[2]
    same = [key for key in candidates if key.rpartition(".")[2] == name]
    close = get_close_matches(word, same, 1, 0.0) or get_close_matches(word, candidates, 1, 0.6)
    return f"did you mean '{close[0]}'?" if close else "`belvedere recipes show dino` lists all keys"


def _first_fault(error: ValidationError) -> str:
    """One line for the first key that pydantic found wrong."""
    errors = error.errors(include_url=False)
    key = _key_of(errors[0])
    return f"{key}: {explain([one for one in errors if _key_of(one) == key])}"


def _key_of(error: ErrorDetails) -> str:
    # Pydantic appends the member of a union that it tried; our keys are lower-case names of fields.
    location = [str(part) for part in error["loc"]]
    known = known_keys()
    return next((key for n in range(len(location), 0, -1) if (key := ".".join(location[:n])) in known), location[0])


@cache
def known_keys() -> tuple[str, ...]:
    """All keys of the core schema."""
    return tuple(flatten(Config()))


class _Loader(yaml.SafeLoader):
    """Plain values, each written out and untagged: aliases of aliases stand for more than any memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias, *NAME: write the value out")
        # A tag asks for a type that the text may not be of, on which PyYAML fails in ways of its own.
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("it has a tag, !NAME: write the value without it")
        return super().compose_node(parent, index)


# What a text that is no YAML raises: also of dates that there are not, of a thousand brackets, and of numbers in
# base 60 (`1:0:0.5`) with hundreds of places.
_NO_YAML = (yaml.YAMLError, ValueError, RecursionError, OverflowError)


def parse_value(text: str) -> Any:
    """A command-line value as YAML reads it (`0.3`, `[1, 2]`, `true`, `none`); what is none is a text."""
    try:
        value = yaml.load(text, _Loader)
    except _NO_YAML:
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
            raise UserError(f"'{word}' is no section.key=value (put a glob in quotes: 'photos/*.jpg')")
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
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, *_NO_YAML) as error:
        raise UserError(f"{path}: cannot be read as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"{path}: must hold lines of `section.key: value`")
    return content


def load_recipe(name: str) -> dict[str, Any]:
    """Flat keys of a recipe, by its name or the path of a YAML file.

    Raises:
        UserError: when there is no such recipe, with the nearest name.
    """
    if _is_path(name):
        if not Path(name).is_file():
            raise UserError(f"--recipe {name}: there is no such file")
        return read_flat(Path(name))
    if name not in recipe_names():
        raise UserError(f"unknown recipe '{name}': {plugins.nearest(name, recipe_names())}")
    return read_flat(RECIPES / f"{name}.yaml")


def _is_path(recipe: str) -> bool:
    return "/" in recipe or "." in recipe


def resolve(recipe: str | None, overrides: Mapping[str, Any]) -> Resolved:
    """Default < recipe < command line, checked as far as is possible without importing a plug-in.

    Without a recipe it is the default one.

    Raises:
        UserError: for an unknown recipe, key or plug-in name, or a value of the wrong kind.
    """
    recipe = recipe or Config().recipe
    flat = load_recipe(recipe)
    if overrides.get("objective.name", flat.get("objective.name")) != flat.get("objective.name"):
        # Settings of the recipe's own objective say nothing of another one.
        flat = {key: value for key, value in flat.items() if not key.startswith("objective.")}
    origin = dict.fromkeys(flat, f"recipe {recipe}")
    flat.update(overrides)
    origin.update(dict.fromkeys(overrides, "command line"))
    for key, value in _budget(overrides).items():
        flat[key], origin[key] = value, "another budget was given"
    if not _is_path(recipe) or "recipe" not in flat:
        flat["recipe"], origin["recipe"] = recipe, "--recipe"
    config = build(flat)
    plugins.check_name("objective", config.objective.name)
    plugins.check_name("policy", config.views.policy)
    for task in config.tasks:
        plugins.check_name("task", task)
    return Resolved(config, {key: origin.get(key, "default") for key in flatten(config)})


def _budget(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the other two budgets become when the user gives one of them.

    Raises:
        UserError: when more than one is given.
    """
    flags = {"train.epochs": "--epochs", "train.minutes": "--minutes", "train.steps": "train.steps"}
    asked = [key for key in flags if given.get(key) not in (None, "auto")]
    if len(asked) > 1:
        raise UserError(f"give one budget, not both {flags[asked[0]]} and {flags[asked[1]]}")
    return {key: "auto" if key == "train.steps" else None for key in flags if asked and key not in asked}


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
        errors = error.errors(include_url=False)
        word = str(errors[0]["loc"][0]) if errors[0]["loc"] else name
        key = f"{section}.{word}"
        if errors[0]["type"] == "extra_forbidden":
            known = [f"{section}.{option}" for option in model.model_fields]
            known += [k for k in known_keys() if k.startswith(f"{section}.")]
            raise UserError(f"unknown key '{key}': {plugins.nearest(key, known)}") from None
        raise UserError(f"{key}: {explain([one for one in errors if one['loc'][:1] == (word,)])}") from None


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
    head = "# Resolved configuration of a belvedere run; itself a recipe: --recipe THIS_FILE"
    return with_origins(head, flatten(resolved.config), resolved.origin)


def with_origins(head: str, flat: Mapping[str, Any], origin: Mapping[str, str]) -> str:
    """YAML of flat keys under a comment, each line with what its value came from; `read_origins` reads them back."""
    lines = [head]
    for key, value in flat.items():
        text = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True).strip()[1:-1]
        lines.append(f"{f'{key}: {text}':44}  # {origin.get(key, 'default')}")
    return "\n".join(lines) + "\n"


def from_yaml(path: Path) -> Resolved:
    """Read a run's `config.yaml` back, origins included.

    Raises:
        UserError: when it is damaged.
    """
    flat = read_flat(path)
    return Resolved(build(flat), read_origins(path, flat))


def read_origins(path: Path, flat: Mapping[str, Any]) -> dict[str, str]:
    """What the value of each of these keys came from, in a file of `with_origins`."""
    origin = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, rest = line.partition(": ")
        if key in flat:
            origin[key] = rest.rpartition("  # ")[2]
    return origin
