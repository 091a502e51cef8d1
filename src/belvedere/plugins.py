"""Plug-ins are files: `objectives/dino.py` is the objective `dino`.

Names are read from file names alone, so a wrong one is answered before torch is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from belvedere.errors import UserError

_PACKAGE = Path(__file__).parent
# kind -> (module that holds the plug-ins, contract class)
_KINDS = {
    "objective": ("objectives", "belvedere.objectives.contract:Objective"),
    "policy": ("views/policies", "belvedere.views.policy:ViewPolicy"),
    "task": ("tasks", "belvedere.tasks.contract:Task"),
    "protocol": ("evaluate/protocols", "belvedere.evaluate.contract:Protocol"),
}
# Files of a plug-in folder that hold what plug-ins share.
_SHARED = {"contract"}
_user_files: dict[str, Path] = {}


def add_file(path: str | Path) -> None:
    """Make a user's own file a plug-in, named after the file (`--plugin my_loss.py` adds `my_loss`).

    Raises:
        UserError: when the file does not exist or its name is no Python name.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--plugin {path}: there is no such file")
    if not file.stem.isidentifier():
        raise UserError(f"--plugin {path}: rename the file, '{file.stem}' is no Python name")
    _user_files[file.stem] = file


def names(kind: str) -> list[str]:
    """Names of all plug-ins of a kind ("objective", "policy", "task", "protocol"), the user's own files included.

    A user's file is listed under every kind, since its kind shows only once it is imported.
    """
    folder = _PACKAGE / _KINDS[kind][0]
    own = {file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")} - _SHARED
    return sorted(own | set(_user_files))


def nearest(word: str, known: list[str]) -> str:
    """The clause of an error message that names the known words, the nearest one first."""
    close = get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(sorted(known))}"


def check_name(kind: str, name: str) -> None:
    """Refuse an unknown plug-in name without importing anything.

    Raises:
        UserError: naming the nearest known plug-in.
    """
    if name not in names(kind):
        raise UserError(f"unknown {kind} '{name}': {nearest(name, names(kind))}")


def load(kind: str, name: str) -> type[Any]:
    """Import a plug-in's file and return its one class that fulfils the contract of its kind.

    Raises:
        UserError: when the name is unknown or the file holds no such class.
    """
    check_name(kind, name)
    folder, contract_path = _KINDS[kind]
    contract_module, contract_name = contract_path.split(":")
    contract = getattr(importlib.import_module(contract_module), contract_name)
    if name in _user_files:
        module = _import_file(_user_files[name])
    else:
        module = importlib.import_module(f"belvedere.{folder.replace('/', '.')}.{name}")
    for _, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, contract) and member.__module__ == module.__name__:
            found: type[Any] = member
            return found
    raise UserError(f"{module.__file__}: holds no class derived from {contract_name}, so it is no {kind}")


def _import_file(path: Path) -> Any:
    module_name = f"belvedere_plugin_{path.stem}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module
