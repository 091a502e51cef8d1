"""A sharded network in two processes is the whole one in one process: losses, weights, checkpoints, looks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import pretrain, resume, words
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

from belvedere.distributed import own_part
from belvedere.errors import UserError
from belvedere.pretrain import checkpoint, sharding
from belvedere.pretrain.sharding import OLDEST_TORCH, note_on_shards
from processes import run_as_torchrun, torchrun_environment
from tiny import FORKS, SWIN, free_port, losses_of, read_metrics, run_command, tiles, tiny_canvases, tiny_trainer, train

pytestmark = pytest.mark.skipif(torch.__version__ < OLDEST_TORCH, reason=f"sharding needs torch {OLDEST_TORCH}")

# 23 images in batches of 8, 8 and 7: in two processes the last of an epoch is 4 + 3.
IMAGES, STEPS = 23, 2
SETTINGS: dict[str, Any] = {
    # Adam would blow the rounding of gradients that are truly zero up to whole steps.
    "train__optimizer": "sgd",
    "train__schedule": "dino",
    "train__lr": 0.01,
    "train__warmup": 1,
    "train__clip_tensor": 0.1,
    "train__clip_global": 0.3,
    "backbone__drop_path": 0,
}
# Of 33 numbers one process has 17 and the other 16.
UNEVEN = {"backbone__width": 33, "backbone__heads": 3, "backbone__init": "dino"}
# A micro-batch is another one in two processes: nothing in the loss may read the rest of it.
APART = {"train__accumulate": 2, "objective__use_bn": False, "objective__centering": "mean"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, SETTINGS) for name in ("simclr", "simsiam", "mocov3", "dino", "ibot")
}
CASES["hard and a task"] = ("dino", {**SETTINGS, "views__policy": "hard", "tasks": ["rotation"]})
CASES["micro-batches"] = ("dino", {**SETTINGS, **UNEVEN, **APART})
CASES["lars"] = ("simclr", {**SETTINGS, "train__optimizer": "lars", "train__layer_decay": 0.7})
CASES["swin"] = ("dino", {**SETTINGS, **SWIN})
# Of losses, norms and weights, relative to those above one.
TOLERANCE = 1e-5
# What of a step's scalars is of all processes.
GLOBAL = ("grad/", "clip_rate", "teacher_gap", "patch_step")

# Without BatchNorm, before which a bias has a gradient of truly zero; that of keys has it anyway.
ADAM: dict[str, Any] = {**SETTINGS, "train__optimizer": "adamw", "train__lr": 1e-3, "objective__use_bn": False}
NO_GRADIENT = "attn.qkv.bias"
# A tenth of a step, which is what weights move by whose moments were lost.
ADAM_TOLERANCE = 1e-4


def run_case(case: str, shard: bool) -> dict[str, Any]:
    """Losses and norms of every step, and the whole state after the last, which only the leading process has."""
    objective, settings = CASES[case]
    trainer, feed = tiny_trainer(objective, tiny_canvases(IMAGES), train__shard=shard, **settings)
    found: dict[str, Any] = {}
    for step, micro_batches in enumerate(feed.stream(0, STEPS)):
        report = trainer.step(step, micro_batches, detail=True)
        told = {name: float(x) for name, x in report.scalars.items() if name.startswith(GLOBAL)}
        found |= {f"{step} {name}": x for name, x in {"loss": report.loss, **told}.items()}
    return {**found, **_flat(trainer.state_dict())}


def _flat(state: Any, path: str = "") -> dict[str, Any]:
    """Path -> tensor of a nested state."""
    if isinstance(state, dict):
        return {name: x for key, part in state.items() for name, x in _flat(part, f"{path}/{key}").items()}
    return {path: state} if isinstance(state, torch.Tensor) else {}


def gap(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """The largest difference of numbers and tensors of the same name."""
    pairs = [(torch.as_tensor(x), torch.as_tensor(expected[name])) for name, x in found.items()]
    return max(float(((x - y).abs() / y.abs().clamp(min=1)).max()) for x, y in pairs)


def goes_on(folder: Path, file: str, shard: bool) -> dict[str, Any]:
    """Losses and final state of steps 2 and 3 after a checkpoint of two."""
    trainer, feed = tiny_trainer("dino", tiny_canvases(IMAGES), train__shard=shard, **ADAM)
    trainer.load_state_dict(checkpoint.load(folder / file)["trainer"])
    losses = torch.tensor([report.loss for report in train(trainer, feed, 2, 4)])
    return {"losses": losses, **_flat(trainer.state_dict())}


def writes(folder: Path, file: str, shard: bool) -> None:
    """A checkpoint after two steps."""
    trainer, feed = tiny_trainer("dino", tiny_canvases(IMAGES), train__shard=shard, **ADAM)
    train(trainer, feed, 0, 2)
    state = trainer.state_dict()
    if trainer.fabric.is_global_zero:
        checkpoint.save(folder / file, {"trainer": state})
    trainer.fabric.barrier()


def after_a_nan() -> dict[str, bool]:
    """A step for which one process finds a number of its part broken: whether it counts, and what it leaves."""
    trainer, feed = tiny_trainer("dino", tiny_canvases(IMAGES), train__shard=True, **SETTINGS)
    own = {name: own_part(p).detach() for name, p in trainer.method.named_parameters()}
    if trainer.fabric.global_rank == 1:
        own["student.backbone.model.blocks.0.attn.qkv.weight"][0, 0] = torch.nan
    before = {name: x.clone() for name, x in own.items()}
    report = train(trainer, feed, 0, 1)[0]
    return {"moved": report.moved, "same": all(x.equal(own[name]) for name, x in before.items() if x.isfinite().all())}


def share_held() -> dict[str, float]:
    """How much of the blocks a process holds after a step: of their weights, the teacher's, and the optimiser's."""
    trainer, feed = tiny_trainer("dino", tiny_canvases(IMAGES), train__shard=True, **ADAM)
    train(trainer, feed, 0, 1)
    blocks = [branch.backbone.get_submodule("model.blocks") for branch in trainer.parts.branches]
    student, teacher = ([*module.parameters()] for module in blocks)
    moments = [trainer.optimizer.state[p]["exp_avg"] for p in student]
    of = {"student": student, "teacher": teacher, "moments": moments}
    return {name: sum(own_part(x).numel() for x in held) / sum(x.numel() for x in held) for name, held in of.items()}


def _sharded(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {case: run_case(case, shard=True) for case in CASES}
    writes(folder, "sharded.pt", shard=True)
    found["alone -> sharded"] = goes_on(folder, "alone.pt", shard=True)
    found["sharded -> DDP"] = goes_on(folder, "sharded.pt", shard=False)
    return found | {"nan": after_a_nan(), "held": share_held()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharding")


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes found; all cases in one pair, since starting it takes longest."""
    torch.set_num_threads(1)
    writes(folder, "alone.pt", shard=False)
    return run_as_torchrun(folder, _sharded, folder)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_parts_train_as_one_with_all(case: str, both: list[dict[str, Any]]) -> None:
    expected = run_case(case, shard=False)
    leading, other = (found[case] for found in both)
    assert leading.keys() == expected.keys()
    # A checkpoint is written by the leading process only, and the other keeps nothing whole of the blocks for it.
    assert {".blocks." in name for name in leading.keys() - other.keys() if name.startswith("/method")} == {True}
    assert min(expected[f"{step} clip_rate"] for step in range(STEPS)) > 0
    for found in (leading, other):
        assert gap(found, expected) < TOLERANCE


def test_a_checkpoint_goes_on_sharded_or_not(both: list[dict[str, Any]], folder: Path) -> None:
    """Written by one process or by two with parts, read by two with parts, by two with all, and by one."""
    expected = goes_on(folder, "alone.pt", shard=False)
    assert any(name.startswith("/optimizer") and name.endswith("exp_avg_sq") for name in expected)
    others = {name: both[0][name] for name in ("alone -> sharded", "sharded -> DDP")}
    for name, found in {**others, "sharded -> alone": goes_on(folder, "sharded.pt", shard=False)}.items():
        assert found.keys() == expected.keys(), name
        assert gap({key: x for key, x in found.items() if not key.endswith(NO_GRADIENT)}, expected) < ADAM_TOLERANCE
        assert found["losses"] == pytest.approx(expected["losses"], abs=TOLERANCE), name


def test_a_process_holds_half_of_the_blocks(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["held"] == {"student": 0.5, "teacher": 0.5, "moments": 0.5}


def test_a_number_that_breaks_in_one_part_stops_the_step_in_both(both: list[dict[str, Any]]) -> None:
    assert [found["nan"] for found in both] == [{"moved": False, "same": True}] * 2


# --- what is refused --------------------------------------------------------------------------------------------------

RESNET = {"backbone__name": "resnet18", "backbone__patch": "auto", "backbone__freeze_patch": False} | dict.fromkeys(
    ("backbone__width", "backbone__depth", "backbone__heads")
)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"train__compile": True}, "compiled code keeps no weights that come and go"),
        (RESNET, "backbone resnet18 has no transformer blocks to share out"),
        ({"views__policy": "learned"}, "views.policy=learned sends gradients through copies of whole weights"),
        ({"views__policy": "hard", "views__inner": "learned"}, "views.policy=hard sends gradients through copies"),
    ],
    ids=["compile", "resnet", "learned", "learned inside hard"],
)
def test_what_sharding_does_not_go_with_is_refused(settings: dict[str, Any], why: str) -> None:
    """In one process too, where nothing would be sharded yet."""
    with pytest.raises(UserError, match=f"^train.shard=true: {why}"):
        tiny_trainer("simclr", tiny_canvases(IMAGES), train__shard=True, **settings)


def test_an_older_torch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.6.0+cpu"))
    with pytest.raises(UserError, match=rf"train\.shard=true: needs torch {OLDEST_TORCH} or newer, this is 2\.6\.0"):
        tiny_trainer("dino", tiny_canvases(IMAGES), train__shard=True)


def test_cuda_is_said_to_be_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "world_size", lambda: 2)
    assert "no two CUDA devices have run it yet" in note_on_shards(torch.device("cuda"))
    assert note_on_shards(torch.device("cpu")) == ""


# --- whole runs -------------------------------------------------------------------------------------------------------


def _command(rank: int, port: int, arguments: list[str], output: str, cache: str) -> None:
    os.environ |= torchrun_environment(rank, port)
    run_command(arguments, output, cache)


def in_two_processes(photos: Path, out: Path, *more: str, **settings: Any) -> str:
    """`belvedere pretrain` in two processes; what the leading one said."""
    arguments = ["pretrain", str(photos), "--recipe", "dino", "--out", str(out), *more, *words(**settings)]
    port, outputs = free_port(), [out.with_name(f"{out.name}.{rank}.txt") for rank in range(2)]
    processes = [
        FORKS.Process(target=_command, args=(rank, port, arguments, str(output), str(photos.with_name("cache"))))
        for rank, output in enumerate(outputs)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], [output.read_text() for output in outputs]
    return outputs[0].read_text()


def numbers_of_looks(run: Path) -> list[dict[str, float]]:
    """The numbers of all looks at a run, times apart."""
    return [entry["look"] for entry in read_metrics(run) if "look" in entry]


@pytest.mark.slow
def test_a_sharded_run_is_looked_at_guarded_resumed_and_reported_as_any(tmp_path: Path) -> None:
    """From given weights, with labels and a task that has pictures; then one process goes on with it."""
    photos = tmp_path / "photos"
    for number, tile in enumerate(tiles(40)):
        place = photos / ("cats" if number % 4 == 2 else "others")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / f"{number:03}.png")
    run_of: dict[str, Any] = {
        "train__steps": 6,
        "backbone__drop_path": 0.0,
        "monitor__probe": 16,
        "monitor__every": 0.5,
    }
    first = pretrain(photos, tmp_path / "first", **run_of)
    assert first.wait() == 0, first.output
    run_of |= {"tasks": "[rotation]", "health__stop_below_start": True, "train__lr": 1e-3, "objective__use_bn": False}
    given = "--init", str(tmp_path / "first")
    alone = pretrain(photos, tmp_path / "alone", *given, **run_of)
    assert alone.wait() == 0, alone.output
    told = in_two_processes(photos, tmp_path / "sharded", *given, **run_of, train__shard=True)
    assert "report: " in told
    assert "best:   k-NN" in told
    assert {path.name for path in (tmp_path / "sharded").iterdir()} == {p.name for p in (tmp_path / "alone").iterdir()}
    assert (tmp_path / "sharded" / "pictures" / "rotation.webp").is_file()
    expected, found = (numbers_of_looks(tmp_path / name) for name in ("alone", "sharded"))
    assert len(found) == len(expected) == 4
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=1e-2, abs=1e-3)
    models = [load_file(tmp_path / name / "model.safetensors") for name in ("alone", "sharded")]
    assert gap(*models) < ADAM_TOLERANCE
    states = [_flat(checkpoint.load(tmp_path / name / "checkpoint.pt")["trainer"]) for name in ("alone", "sharded")]
    assert states[0].keys() == states[1].keys()
    assert gap({key: x for key, x in states[1].items() if not key.endswith(NO_GRADIENT)}, states[0]) < ADAM_TOLERANCE
    start = load_file(tmp_path / "first" / "model.safetensors")["blocks.0.attn.qkv.weight"]
    assert (states[1]["/method/student.backbone.model.blocks.0.attn.qkv.weight"] - start).abs().max() > 1e-3
    more = resume(photos, tmp_path / "sharded", "train.steps=8")
    assert more.wait() == 0, more.output
    assert "train.shard=true: this one process holds the whole network" in more.output
    more = resume(photos, tmp_path / "alone", "train.steps=8")
    assert more.wait() == 0, more.output
    one, two = losses_of(tmp_path / "alone"), losses_of(tmp_path / "sharded")
    assert [step for step, _ in two] == list(range(8))
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-3)
