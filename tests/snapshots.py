"""All that a trainer is, to be compared bit for bit."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from belvedere.pretrain.trainer import Trainer


def snapshot(trainer: Trainer) -> dict[str, Any]:
    """Everything that scoring must leave alone."""
    parts = trainer.parts
    branches = [trainer.method, *([parts.teacher] if parts.teacher is not None else [])]
    return {
        "state": copy.deepcopy(trainer.state_dict()),
        "flags": [module.training for branch in branches for module in branch.modules()],
        "wants": [p.requires_grad for branch in branches for p in branch.parameters()],
        "gradients": [p.grad for branch in branches for p in branch.parameters()],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "python": random.getstate(),
    }


def assert_same(a: Any, b: Any) -> None:
    """Equal bit for bit, however deep."""
    assert type(a) is type(b)
    if isinstance(a, Tensor | np.ndarray):
        assert np.array_equal(np.asarray(a), np.asarray(b), equal_nan=True)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b
