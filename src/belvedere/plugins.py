"""Plug-ins are files: `objectives/dino.py` is the objective `dino`.

Names are read from file names alone, so a wrong one is answered before torch is imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
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
        UserError: when the file does not exist or is no Python, or its name is no Python name or another plug-in's.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--plugin {path}: there is no such file")
    if not file.stem.isidentifier():
        raise UserError(f"--plugin {path}: rename the file, '{file.stem}' is no Python name")
    try:
        ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise UserError(f"--plugin {path}{line}: is no Python ({getattr(error, 'msg', error)})") from None
    own = {name for kind in _KINDS for name in _own_names(kind)}
    if file.stem in own or _user_files.get(file.stem, file).absolute() != file.absolute():
        raise UserError(f"--plugin {path}: rename the file, there is a plug-in '{file.stem}' already")
    _user_files[file.stem] = file


def names(kind: str) -> list[str]:
    """Names of all plug-ins of a kind ("objective", "policy", "task", "protocol"), the user's own files included.

    A user's file is listed under every kind, since its kind shows only once it is imported.
    """
    return sorted(_own_names(kind) | set(_user_files))


def _own_names(kind: str) -> set[str]:
    folder = _PACKAGE / _KINDS[kind][0]
    return {file.stem for file in folder.glob("*.py") if not file.stem.startswith("_")} - _SHARED


def about(kind: str) -> dict[str, str]:
    """The first line of every own plug-in's docstring, by name; nothing is imported."""
    folder = _PACKAGE / _KINDS[kind][0]
    files = {name: (folder / f"{name}.py").read_text(encoding="utf-8") for name in sorted(_own_names(kind))}
    return {name: (ast.get_docstring(ast.parse(text)) or "").split("\n")[0] for name, text in files.items()}


def nearest(word: str, known: list[str]) -> str:
    """The clause of an error message that names the nearest known word, or all of them where none is near."""
    if not known:
        return "there is none yet"
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
    if name in _user_files:
        module = _import_file(_user_files[name])
    else:
        module = importlib.import_module(f"belvedere.{_KINDS[kind][0].replace('/', '.')}.{name}")
    contract = _contract(kind)
    found = _class_of(module, contract)
    if found is None:
        raise UserError(f"{module.__file__}: holds no class derived from {contract.__name__}, so it is no {kind}")
    return found


def check_files() -> None:
    """Import the user's own files, also those that no setting names.

    Raises:
        UserError: for a file that cannot be imported, or holds no class that fulfils a contract.
    """
    contracts = [_contract(kind) for kind in _KINDS] if _user_files else []
    for path in _user_files.values():
        module = _import_file(path)
        if not any(_class_of(module, contract) for contract in contracts):
            wanted = ", ".join(contract.__name__ for contract in contracts)
            raise UserError(f"--plugin {path}: holds no class derived from one of {wanted}")


def _contract(kind: str) -> type[Any]:
    module, name = _KINDS[kind][1].split(":")
    contract: type[Any] = getattr(importlib.import_module(module), name)
    return contract


def _class_of(module: ModuleType, contract: type[Any]) -> type[Any] | None:
    """The first class that the module itself defines and that fulfils a contract."""
    for _, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, contract) and member.__module__ == module.__name__:
            found: type[Any] = member
            return found
    return None


def _import_file(path: Path) -> ModuleType:
    module_name = f"belvedere_plugin_{path.stem}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    # A user's file may raise anything; it is told as one line that names the place.
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.absolute()]
        raise UserError(f"--plugin {path}, line {lines[-1]}: {type(error).__name__}: {error}") from error
    return module
