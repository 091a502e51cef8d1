"""Two gloo processes with parts of every batch are one process with the whole, through the trainer and Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from belvedere import plugins
from processes import run_as_torchrun
from tiny import NARROW, NARROW_JIGSAW, tiny_canvases, tiny_trainer

# 23 images in batches of 8, 8 and 7: in two processes the last one is 4 + 3.
IMAGES, STEPS = 23, 4
# Of the largest gradient. Without batch statistics the gap is 1e-7.
TOLERANCE = 1e-5
FILES = sorted((Path(__file__).parent / "plugins").glob("*.py"))
# Plain SGD: Adam would blow the rounding of gradients that are truly zero up to whole steps.
SETTINGS: dict[str, Any] = {
    "train__optimizer": "sgd",
    "train__warmup": 1,
    "train__clip_tensor": 0,
    "backbone__drop_path": 0,
}
CASES = {name: (name, SETTINGS) for name in plugins.names("objective")}
CASES["dino-tasks"] = ("dino", {**SETTINGS, "tasks": ["mean_colour", "upside_down"]})
CASES["dino-batchnorm"] = ("dino", {**SETTINGS, "objective__use_bn": True})
CASES["simclr-hard"] = ("simclr", {**SETTINGS, "views__policy": "hard"})
CASES["ibot-hard"] = ("ibot", {**SETTINGS, "views__policy": "hard", "views__fraction": 0.8})
CASES["simclr-resnet"] = (
    "simclr",
    {
        **SETTINGS,
        "backbone__name": "resnet18",
        "backbone__patch": "auto",
        "backbone__width": None,
        "backbone__depth": None,
        "backbone__heads": None,
        "backbone__freeze_patch": False,
    },
)

# One cell a task and one a policy; objectives with and without a teacher, with negatives and without, in turn.
OTHERS = ("simsiam", "mocov3", "dino", "simclr", "ibot")
OWN: dict[str, dict[str, Any]] = {
    # Donors come from the process's own images.
    "reconstruct": {"task__reconstruct__replace": 0.0},
    "jigsaw": {"task__jigsaw__dropout": 0.0, **NARROW_JIGSAW},
}
for place, task in enumerate(plugins.names("task")):
    CASES[f"{task}-task"] = (OTHERS[place % len(OTHERS)], {**SETTINGS, "tasks": [task], **OWN.get(task, {})})
for policy in sorted({*plugins.names("policy")} - {"random", "hard"}):
    CASES[f"{policy}-views"] = ("simclr", {**SETTINGS, "views__policy": policy})

SLOW = {"simclr-resnet": pytest.mark.slow}


def run_case(case: str) -> dict[str, Any]:
    """Losses, gradients at every step, and all state after it.

    Weights all but stand still over the steps that are compared, since batch statistics of 8 images multiply rounding
    from step to step; then one real step shows that the update is the same.
    """
    return {**_run(case, lr=1e-6, steps=STEPS), **{f"moving {k}": x for k, x in _run(case, lr=0.05, steps=1).items()}}


def _run(case: str, lr: float, steps: int) -> dict[str, Any]:
    objective, settings = CASES[case]
    settings = {**(NARROW if objective == "simsiam" else {}), **settings}
    torch.set_num_threads(1)
    trainer, feed = tiny_trainer(objective, tiny_canvases(IMAGES), train__lr=lr, train__schedule="dino", **settings)
    found: dict[str, Any] = {}

    def note(*_: Any) -> None:
        for name, p in trainer.method.named_parameters():
            if p.grad is not None:
                found[f"{step} gradient {name}"] = p.grad.clone()

    trainer.optimizer.optimizer.register_step_pre_hook(note)
    for step, micro_batches in enumerate(feed.stream(0, steps)):
        report = trainer.step(step, micro_batches)
        found[f"{step} loss"] = torch.tensor(report.loss)
        found[f"{step} images"] = torch.tensor(report.images)
    for owner, module in (("method", trainer.method), ("teacher", trainer.parts.teacher)):
        if module is not None:
            found |= {f"{owner} {name}": tensor.clone() for name, tensor in module.state_dict().items()}
    return found


def _with_plugins(case: str) -> dict[str, Any]:
    for file in FILES:
        plugins.add_file(file)
    return run_case(case)


@pytest.mark.parametrize("case", [pytest.param(case, marks=SLOW.get(case, ())) for case in CASES])
def test_two_uneven_processes_train_as_one(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_user_files", {})
    whole = _with_plugins(case)
    assert [int(whole[f"{step} images"]) for step in range(STEPS)] == [8, 8, 7, 8]
    largest = max(tensor.abs().max().item() for name, tensor in whole.items() if "gradient" in name)
    assert largest > 1e-4
    for part in run_as_torchrun(tmp_path, _with_plugins, case):
        assert part.keys() == whole.keys()
        for name, expected in whole.items():
            found = part[name]
            gap = (found.double() - expected.double()).abs().max().item() / max(1.0, largest)
            assert gap <= TOLERANCE, f"{name}: {gap:.3g}"
