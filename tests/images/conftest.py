"""Real pictures on disk, and the messy folder."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from skimage import data


@pytest.fixture(scope="session")
def picture() -> NDArray[np.uint8]:
    """A photograph, 512x512 RGB."""
    return np.asarray(data.astronaut())


@pytest.fixture(scope="session")
def gray() -> NDArray[np.uint8]:
    """A gray photograph, 256x256, with values from 0 to 255."""
    return np.ascontiguousarray(np.asarray(data.camera())[::2, ::2])


@pytest.fixture
def photos(tmp_path: Path, picture: NDArray[np.uint8]) -> Path:
    """Six different JPEGs: cats/0..3 of 120x90 (w x h), and dogs/4 and dogs/5 of 80x100."""
    root = tmp_path / "photos"
    for i in range(6):
        folder, (height, width) = ("cats", (90, 120)) if i < 4 else ("dogs", (100, 80))
        (root / folder).mkdir(parents=True, exist_ok=True)
        top = 60 * i
        Image.fromarray(picture[top : top + height, top : top + width]).save(root / folder / f"{i}.jpg", quality=95)
    return root


@pytest.fixture(scope="session")
def messy(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The messy folder, unpacked."""
    place = tmp_path_factory.mktemp("messy")
    with tarfile.open(shared_data / "messy_folder.tar") as tar:
        tar.extractall(place, filter="fully_trusted")
    return place / "messy_folder"


@pytest.fixture(scope="session")
def manifest(shared_data: Path) -> list[dict[str, Any]]:
    """The entries of the messy folder's manifest."""
    entries: list[dict[str, Any]] = json.loads((shared_data / "messy_folder_manifest.json").read_text())["entries"]
    return entries
