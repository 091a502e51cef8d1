"""Golden arrays of the official implementations: `golden("dino_loss")` gives arrays and hyper-parameters."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(os.environ.get("BELVEDERE_GOLDEN", Path(__file__).parent / "fixtures"))


@dataclass(frozen=True)
class Golden:
    """One fixture file: `g["name"]` is a torch tensor, `g.hparams` its settings, `g.names` its array names."""

    arrays: dict[str, np.ndarray]
    hparams: dict[str, Any]

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name].copy())

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def names(self) -> list[str]:
        return list(self.arrays)

    def state(self, prefix: str) -> dict[str, torch.Tensor]:
        """Tensors whose names start with `prefix`, the prefix cut off."""
        return {name[len(prefix) :]: self[name] for name in self.names if name.startswith(prefix)}


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Loader of a golden file by its name; fails (never skips) when the file is missing."""

    def load(name: str) -> Golden:
        with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        hparams = json.loads(str(arrays.pop("hparams"))) if "hparams" in arrays else {}
        return Golden(arrays, hparams)

    return load
