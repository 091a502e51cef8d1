"""Benchmark scripts run in the tests' own process, which has everything imported."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[..., str]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """`script(module, *words)`: what a benchmark writes when it is started with these words."""

    def run(module: ModuleType, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [str(module.__file__), *words])
        module.main()
        return capsys.readouterr().out

    return run


def thinned(source: Path, target: Path, every: int) -> None:
    """An archive with one in so many files of another, so that seconds will do."""
    with tarfile.open(source) as whole, tarfile.open(target, "w") as some:
        for member in [member for member in whole if member.isfile()][::every]:
            some.addfile(member, whole.extractfile(member))


@pytest.fixture(scope="session")
def few_cifar10(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with CIFAR-10's archives, under their names, with 1,000 training and 500 test images."""
    folder = tmp_path_factory.mktemp("few_cifar10")
    for name in ("cifar10_train20k.tar.gz", "cifar10_test10k.tar.gz"):
        thinned(shared_data / name, folder / name, 20)
    return folder


@pytest.fixture(scope="session")
def few_imagenette(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with Imagenette's archive, under its name, with every twentieth image."""
    folder = tmp_path_factory.mktemp("few_imagenette")
    thinned(shared_data / "imagenette128.tar", folder / "imagenette128.tar", 20)
    return folder
