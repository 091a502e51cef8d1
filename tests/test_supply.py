"""What belvedere depends on: every package has its reason, and is used."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
MODULES = {
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "scikit-image": "skimage",
    "umap-learn": "umap",
}


def names(requirements: list[str]) -> set[str]:
    """The packages of a list of requirements, without belvedere's own extras."""
    return {canonicalize_name(Requirement(one).name) for one in requirements} - {"belvedere"}


def project() -> tuple[set[str], dict[str, set[str]]]:
    """Packages that everybody installs, and those of each extra."""
    found = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {extra: names(needs) for extra, needs in found["optional-dependencies"].items() if extra != "dev"}
    return names(found["dependencies"]), extras


def imported() -> set[str]:
    """Top-level names of every import in the package, wherever it stands."""
    found = set()
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found


def test_every_dependency_has_a_reason() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    always = {canonicalize_name(name) for name, reason in rows if "`" not in name and reason.strip()}
    extras = {
        name.split("`")[1]: {canonicalize_name(one.strip()) for one in name.partition(":")[2].split(",")}
        for name, _ in rows
        if name.startswith("`") and ":" in name
    }
    needed, wanted = project()
    assert needed <= always
    assert extras == wanted


def test_every_dependency_is_imported_and_every_import_is_a_dependency() -> None:
    needed, extras = project()
    # pydantic's own errors are those of the core that it comes with; triton comes with torch where torch has CUDA.
    found = imported() - set(sys.stdlib_module_names) - {"belvedere", "pydantic_core", "triton"}
    modules = {MODULES.get(name, name.replace("-", "_")): name for name in needed}
    assert set(modules) <= found
    optional = {MODULES.get(name, name.replace("-", "_")) for names in extras.values() for name in names}
    assert found <= set(modules) | optional
