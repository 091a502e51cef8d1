"""A step asks the device for an answer once, whatever the network, batch and objective: more would stall CUDA."""

from __future__ import annotations

import traceback
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import belvedere
from belvedere import plugins
from belvedere.pretrain.trainer import Trainer
from belvedere.views.views import Views
from tiny import tiny_trainer, train

SOURCE = Path(belvedere.__file__).parent
# What the processor must know the result of before it goes on.
TO_HOST = (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item)
NUMBERS = (Tensor.__float__, Tensor.__int__, Tensor.__bool__, Tensor.__index__)
WAIT = {*TO_HOST, *NUMBERS, Tensor.nonzero, Tensor.equal, torch.nonzero, torch.equal}
# What makes or moves a tensor. To a device it waits, unless it says that it does not.
MADE_OF_NUMBERS = (torch.tensor, torch.as_tensor)
# What these read is for views that are compiled for the processor, in whose memory they are made.
OF_THE_PROCESSOR = ("views/render.py", "views/native.py")

# Which views are the hardest, and what the policy's own law has to learn from, is known on the device first.
ASKS = {"hard": {"views/policies/hard.py": 1}, "learned": {"views/policies/learned.py": 1}}

Place = Literal["device", "host", None]


class Waits(TorchFunctionMode):
    """Counts, by file of ours, what would wait for a device, without one.

    As if everything lay there that is made of weights, of rendered pixels or of what is sent without waiting. Crop
    boxes and strengths of views are numbers of the processor on every machine, and so are a policy's law and Adam's
    step counts, which torch moves where they are.
    """

    def __init__(self, trainer: Trainer) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        for module in (trainer.method, trainer.parts.teacher):
            if module is not None:
                _lay_all([*module.parameters(), *module.buffers()], "device")

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if _waits(function, args, kwargs, "device" in given):
            files = [Path(frame.filename) for frame in traceback.extract_stack()]
            own = [file.relative_to(SOURCE).as_posix() for file in files if file.is_relative_to(SOURCE)]
            theirs = any({"optim", "clip_grad.py"} & {*file.parts} for file in files)
            if own[-1] not in OF_THE_PROCESSOR and not theirs:
                self.found[own[-1]] += 1
        found = function(*args, **kwargs)
        if function is Tensor.cpu or function is Tensor.to:
            found = found.view_as(found)  # without a device it is the same tensor, which stays where it is
        moved = _target(function, args, kwargs) is not None
        if function is Tensor.cpu or (given <= {"host"} and not moved and "device" not in kwargs):
            _lay_all(found, "host")
        elif moved or "device" in given:
            _lay_all(found, "device")
        return found


def _place(tensor: Tensor) -> Place:
    place: Place = tensor.__dict__.get("place")
    return place


def _lay(tensor: Tensor, place: Place) -> None:
    tensor.__dict__["place"] = place


def _lay_all(found: Any, place: Place) -> None:
    for tensor in tree_leaves(found):
        if isinstance(tensor, Tensor):
            _lay(tensor, place)


def _waits(function: Any, args: Any, kwargs: Any, there: bool) -> bool:
    if function in WAIT:
        return there
    if function in (Tensor.__getitem__, Tensor.__setitem__):
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        return there and any(_stalls(x) for x in index)
    if function in MADE_OF_NUMBERS:
        return "device" in kwargs
    return not there and _target(function, args, kwargs) is not None and "non_blocking" not in kwargs


def _stalls(index: Any) -> bool:
    """A mask, of whose count the processor must know, or numbers that it has to copy to the device."""
    if isinstance(index, Tensor):
        return index.dtype == torch.bool or _place(index) == "host"
    return isinstance(index, list | np.ndarray)


def _target(function: Any, args: Any, kwargs: Any) -> Any:
    """The device, or the tensor on it, that a tensor is moved to."""
    if function is not Tensor.to:
        return None
    return next((x for x in (*args[1:], *kwargs.values()) if isinstance(x, torch.device | Tensor | str)), None)


def _laid(render: Any, *args: Any, **kwargs: Any) -> Views:
    views: Views = render(*args, **kwargs)
    _lay_all(views.pixels, "device")
    _lay_all(views.mask, "host")
    return views


def waits(objective: str, **settings: Any) -> dict[str, int]:
    """By file, those of the third step, which does not compute diagnostics."""
    trainer, feed = tiny_trainer(objective, train__steps=6, **settings)
    train(trainer, feed, 0, 2)
    micro_batches = next(feed.stream(2, 4))
    trainer.render = partial(_laid, trainer.render)  # type: ignore[method-assign]
    with Waits(trainer) as counted:
        report = trainer.step(2, micro_batches)
    # The loop logs these, and must not ask the device again.
    assert {type(value) for value in report.scalars.values()} == {float}
    return dict(counted.found)


# `mocov3` and the others; those that learn from labels or from a task alone have no loop of their own either.
@pytest.mark.parametrize("objective", sorted(set(plugins.about("objective")) - {"none"}))
def test_a_step_waits_once(objective: str) -> None:
    assert waits(objective) == {"pretrain/trainer.py": 1}


@pytest.mark.parametrize("task", sorted(plugins.about("task")))
def test_nor_with_a_task(task: str) -> None:
    assert waits("dino", tasks=[task]) == {"pretrain/trainer.py": 1}


@pytest.mark.parametrize("policy", sorted(plugins.about("policy")))
def test_a_policy_that_asks_asks_once(policy: str) -> None:
    assert waits("simclr", views__policy=policy) == {"pretrain/trainer.py": 1, **ASKS.get(policy, {})}


def test_nor_with_mixed_images() -> None:
    found = waits("supervised", objective__mixup=0.8, objective__cutmix=1.0, objective__erasing=0.25)
    assert found == {"pretrain/trainer.py": 1}


def test_nor_with_more_of_everything() -> None:
    assert waits("dino", backbone__depth=4, train__batch=12, train__accumulate=2) == {"pretrain/trainer.py": 1}


def test_masks_travel_with_the_hard_views_that_have_them() -> None:
    assert waits("ibot", views__policy="hard") == {"pretrain/trainer.py": 1, **ASKS["hard"]}


def test_masks_by_attention_are_counted_where_they_are() -> None:
    found = waits("ibot", objective__mask_shape="high")
    assert found == {"pretrain/trainer.py": 1, "backbones/contract.py": 2}  # two views
