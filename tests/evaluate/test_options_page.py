"""docs/evaluation.md names every option of every protocol with its default, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from belvedere import plugins
from belvedere.config import parse_overrides
from belvedere.images.masks import MaskOptions

PAGE = Path(__file__).parents[2] / "docs" / "evaluation.md"
ROW = re.compile(r"^\| `(\w+\.\w+)` \| `([^`]*)` \| (\S.*) \|$", re.M)


def shown(default: Any) -> str:
    """A default as a user types it, numbers as short as they can be."""
    if isinstance(default, tuple):
        return f"[{', '.join(map(shown, default))}]"
    if isinstance(default, bool) or default is None:
        return {True: "true", False: "false", None: "null"}[default]
    return f"{default:g}" if isinstance(default, float) else str(default)


def in_code() -> dict[str, str]:
    """PROTOCOL.OPTION -> default, of everything that `belvedere evaluate` can be told."""
    models: dict[str, type[BaseModel]] = {
        name: plugins.load("protocol", name).Options for name in plugins.names("protocol")
    }
    models["masks"] = MaskOptions
    return {
        f"{name}.{option}": shown(field.default)
        for name, model in sorted(models.items())
        for option, field in model.model_fields.items()
    }


def test_the_page_names_every_option_and_its_default() -> None:
    page = {option: default for option, default, _ in ROW.findall(PAGE.read_text(encoding="utf-8"))}
    code = in_code()
    missing = [f"| `{option}` | `{default}` | ... |" for option, default in code.items() if page.get(option) != default]
    assert not missing, "write into docs/evaluation.md:\n" + "\n".join(missing)
    assert list(page) == list(code)  # neither more nor in another order


def test_a_default_can_be_typed_as_it_stands_on_the_page() -> None:
    for option, default in in_code().items():
        name, _, key = option.partition(".")
        model = MaskOptions if name == "masks" else plugins.load("protocol", name).Options
        typed = model.model_validate({key: parse_overrides([f"{option}={default}"])[option]})
        assert shown(getattr(typed, key)) == default
