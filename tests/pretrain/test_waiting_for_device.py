"""A step asks the device for an answer once, whatever the network, batch and objective: more would stall CUDA."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import belvedere
from belvedere import plugins
from tiny import tiny_trainer, train

SOURCE = Path(belvedere.__file__).parent
# What the processor must know the result of before it goes on.
NUMBERS = (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__)
WAIT = {*NUMBERS, Tensor.cpu, Tensor.numpy, Tensor.nonzero, Tensor.equal, torch.nonzero, torch.equal}

# The masked patches of two views, picked for teacher and student: how many there are is known when the mask is.
MASKED = {"ibot": {"objectives/ibot.py": 4}}


class Waits(TorchFunctionMode):
    """Counts, by file of ours, what would wait for a device.

    Crop boxes and strengths of views are numbers of the processor on every machine, and so are Adam's step counts: what
    views/ and torch/optim read is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in WAIT or _has_mask_or_list(function, args):
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            if not any("optim" in file.parts for file in files):
                own = [file.relative_to(SOURCE).as_posix() for file in files if file.is_relative_to(SOURCE)]
                self.found[own[-1]] += 1
        return function(*args, **(kwargs or {}))


def _has_mask_or_list(function: Any, args: Any) -> bool:
    """A mask as an index, of whose count the processor must know, or a list, which it copies to the device."""
    if function not in (Tensor.__getitem__, Tensor.__setitem__):
        return False
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    return any(isinstance(one, list) or (isinstance(one, Tensor) and one.dtype == torch.bool) for one in index)


def waits(objective: str, **settings: Any) -> dict[str, int]:
    """By file, those of the third step, which does not compute diagnostics."""
    trainer, feed = tiny_trainer(objective, train__steps=6, **settings)
    train(trainer, feed, 0, 2)
    micro_batches = next(feed.stream(2, 4))
    with Waits() as counted:
        report = trainer.step(2, micro_batches)
    # The loop logs these, and must not ask the device again.
    assert {type(value) for value in report.scalars.values()} == {float}
    return {file: count for file, count in counted.found.items() if not file.startswith("views/")}


# `mocov3` and the others; those that learn from labels or from a task alone have no loop of their own either.
@pytest.mark.parametrize("objective", sorted(set(plugins.about("objective")) - {"none"}))
def test_a_step_waits_once(objective: str) -> None:
    assert waits(objective) == {"pretrain/trainer.py": 1, **MASKED.get(objective, {})}


def test_nor_with_more_of_everything() -> None:
    assert waits("dino", backbone__depth=4, train__batch=12, train__accumulate=2) == {"pretrain/trainer.py": 1}
