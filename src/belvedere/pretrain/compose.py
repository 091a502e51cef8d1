"""From a configuration and images to a trainer: every plug-in found by name, every `auto` settled."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from pydantic import BaseModel
from torch import nn

from belvedere import config as configuration
from belvedere import plugins
from belvedere.backbones.build import build_backbone
from belvedere.backbones.contract import Backbone
from belvedere.backbones.vit import set_plain_attention
from belvedere.backbones.weights import Weights, load_weights
from belvedere.config import Config, Resolved
from belvedere.derive import Facts, derive, derive_plugin
from belvedere.distributed import has_batchnorm
from belvedere.errors import UserError
from belvedere.images.canvases import Canvases
from belvedere.measure.encoder import Encoder, evaluating
from belvedere.objectives.contract import Objective, is_global
from belvedere.pretrain.feed import Feed
from belvedere.pretrain.method import Branch
from belvedere.pretrain.trainer import Parts, Trainer
from belvedere.schedules import Clock
from belvedere.tasks.contract import Surroundings, Task
from belvedere.views.cost import Work, forward_cost
from belvedere.views.policy import ViewPolicy
from belvedere.views.slots import Slot, ViewSettings, build_slots


def facts_of(canvases: Canvases, device: str) -> Facts:
    """What the derivation may know about the images and the machine."""
    mean, std = canvases.statistics()
    side = int(np.median(canvases.original.min(1)))
    classes, sizes = 0, np.zeros(0, np.int64)
    if canvases.labels is not None:
        classes = len(canvases.classes)
        sizes = np.bincount(canvases.labels[canvases.labels >= 0], minlength=classes)
    cpu, bf16 = device == "cpu", _has_bf16(device)
    found = Facts(len(canvases), side, canvases.channels, classes, mean, std, cpu=cpu, bf16=bf16)
    return replace(found, class_sizes=tuple(sizes.tolist()))


def _has_bf16(device: str) -> bool:
    """Whether the device has instructions for bfloat16; elsewhere it would be emulated, slower than float32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def device_of(asked: str) -> Literal["cpu", "cuda", "mps"]:
    """The device that `auto` stands for.

    Raises:
        UserError: when the device asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    names: tuple[Literal["cuda", "mps", "cpu"], ...] = ("cuda", "mps", "cpu")
    for name in names:
        if asked in (name, "auto") and there[name]:
            return name
    raise UserError(f"--device {asked}: not on this machine; use --device auto")


def settle(resolved: Resolved, facts: Facts) -> tuple[Resolved, Facts]:
    """Check the plug-ins' own options and fill in every `auto` that can be known from the facts.

    Raises:
        UserError: for a wrong option of a plug-in, or a combination that makes no sense.
    """
    resolved = with_plugins(resolved)
    resolved, facts = derive(resolved, facts)
    _check(resolved.config)
    resolved, facts = derive(resolved, replace(facts, dim=_width(resolved.config)))
    objective = plugins.load("objective", resolved.config.objective.name)
    options = dict(resolved.config.objective.model_extra or {})
    resolved = derive_plugin(resolved, "objective", objective.derive(options, facts))
    for name in resolved.config.tasks:
        rules = plugins.load("task", name).derive(resolved.config.task.get(name, {}), facts)
        resolved = derive_plugin(resolved, f"task.{name}", rules)
    if not objective.has_pairs and plugins.load("policy", resolved.config.views.policy).needs_pairs:
        raise UserError(
            f"views.policy={resolved.config.views.policy}: objective {resolved.config.objective.name} "
            "has no pairs of views to choose between; use --views random"
        )
    return resolved, facts


def _check(config: Config) -> None:
    """Refuse settings that do not fit each other or the images' channels.

    Raises:
        UserError: naming the setting.
    """
    channels = _number(config.images.channels)
    for key, numbers in (("images.mean", config.images.mean), ("images.std", config.images.std)):
        if numbers != "auto" and len(numbers) != channels:
            raise UserError(f"{key}: has length {len(numbers)}, but the images have {channels} channels")
    views, train = config.views, config.train
    objective: type[Objective] = plugins.load("objective", config.objective.name)
    if not objective.has_loss and not config.tasks:
        raise UserError(
            f"objective.name={config.objective.name}: has no loss of its own, so nothing would be learned; "
            "give it a task, as 'tasks=[relations]'"
        )
    if objective.has_pairs and views.globals + _number(views.locals) < 2:
        raise UserError(
            f"views.globals={views.globals}: objective {config.objective.name} compares views, so it needs at least "
            "two; make views.globals or views.locals larger"
        )
    if train.steps != "auto" and train.warmup != "auto" and train.warmup >= train.steps:
        raise UserError(f"train.warmup={train.warmup}: must be smaller than train.steps={train.steps}")
    if train.accumulate > _number(train.batch):
        raise UserError(f"train.accumulate={train.accumulate}: must be at most train.batch={train.batch}")


def with_plugins(resolved: Resolved) -> Resolved:
    """Import the plug-ins that a configuration names and put their options' defaults in.

    Raises:
        UserError: for an option that a plug-in does not know, a user's file that is no plug-in, or two tasks that
            cannot both have their way.
    """
    plugins.check_files()
    for kind, name in _named(resolved.config):
        resolved = configuration.with_plugin_defaults(resolved, kind, name, _options_model(resolved.config, kind, name))
    _refuse_two_replacements(resolved.config)
    return resolved


def _refuse_two_replacements(config: Config) -> None:
    """Refuse two tasks that each want pixels of its own in the place of the student's views.

    Raises:
        UserError: naming both.
    """
    replacing = [
        name
        for name in config.tasks
        if plugins.load("task", name).replaces(_options(config, "task", name), config.objective.name)
    ]
    if len(replacing) > 1:
        raise UserError(f"tasks {replacing[0]} and {replacing[1]} both replace the student's views: keep one")


def _named(config: Config) -> list[tuple[Literal["objective", "policy", "task"], str]]:
    tasks: list[tuple[Literal["objective", "policy", "task"], str]] = [("task", name) for name in config.tasks]
    return [("objective", config.objective.name), ("policy", config.views.policy), *tasks]


def view_settings(config: Config) -> ViewSettings:
    """The views of a settled configuration as the view engine reads them."""
    views = config.views
    names = [name for name in ViewSettings.__dataclass_fields__ if name not in ("size", "local_size")]
    core = {name: getattr(views, name) for name in names}
    return ViewSettings(size=pair(views.size), local_size=pair(views.local_size), **core)


def slots_of(config: Config) -> tuple[Slot, ...]:
    """The slots that a settled configuration describes."""
    return build_slots(view_settings(config), _number(config.images.channels))


def work_of(config: Config) -> Work:
    """What a step of a settled configuration costs an image with the `random` policy, in forward passes."""
    backbone = make_backbone(config, 0.0)
    tokens, local = (1 + math.prod(backbone.grid(pair(size))) for size in (config.views.size, config.views.local_size))
    width = backbone.dim
    return Work(
        globals=config.views.globals,
        locals=_number(config.views.locals),
        local=forward_cost(local, width) / forward_cost(tokens, width),
        teacher=plugins.load("objective", config.objective.name).has_teacher,
        tokens=tokens,
        width=width,
    )


def _width(config: Config) -> int:
    """Width of the features, from the network's shape alone."""
    with torch.device("meta"):
        return make_backbone(config, 0.0).dim


def make_backbone(config: Config, drop_path: float, mask_token: bool = False) -> Backbone:
    """The network of a settled configuration, deterministic in the seed; no plug-in is needed to build it."""
    b = config.backbone
    assert b.init != "auto"
    assert b.heads != "auto"
    backbone = build_backbone(
        b.name,
        size=pair(config.views.size),
        channels=_number(config.images.channels),
        patch=None if b.patch == "auto" else b.patch,
        width=b.width,
        depth=b.depth,
        heads=b.heads,
        drop_path=drop_path,
        freeze_patch=b.freeze_patch is True,
        class_token=b.class_token,
        pos_embed=b.pos_embed,
        positions=b.positions,
        init=b.init,
        mask_token=mask_token,
        seed=config.train.seed,
    )
    sizes = [("views.size", config.views.size)]
    if config.views.locals:
        sizes.append(("views.local_size", config.views.local_size))
    for name, size in sizes:
        if any(side % backbone.unit for side in pair(size)):
            raise UserError(f"{name}={size}: must be a multiple of the patch size {backbone.unit}")
    return backbone


def make_parts(
    config: Config, canvases: Canvases, weights: Weights | None = None, backbone: Backbone | None = None
) -> Parts:
    """Networks, objective, policy and tasks of a settled configuration; the same seed gives the same weights.

    Student and teacher both start from `weights` where there are any. `backbone` is a network that is there already.
    """
    objective_class: type[Objective] = plugins.load("objective", config.objective.name)
    if backbone is None:
        backbone = make_backbone(config, float(config.backbone.drop_path), objective_class.wants_mask)
    if weights is not None:
        load_weights(weights, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed + 1)
        objective = objective_class(_options(config, "objective", config.objective.name), backbone.dim)
        student = Branch(backbone, objective.make_head())
        teacher = _teacher(config, objective, student) if objective.has_teacher else None
        around = _surroundings(config, backbone)
        tasks: dict[str, Task] = {
            name: plugins.load("task", name)(_options(config, "task", name), around) for name in config.tasks
        }
    teacher_heads = {name: _target_heads(task, averaged=teacher is not None) for name, task in tasks.items()}
    _lend(tasks, teacher_heads, student, teacher)
    policy = make_policy(config, backbone.channels)
    _check_policy(policy, objective, student, teacher, tasks)
    sizes = torch.from_numpy(canvases.sizes)
    labels = None if canvases.labels is None else torch.from_numpy(canvases.labels)
    return Parts(student, teacher, objective, policy, tasks, teacher_heads, sizes, labels)


def _surroundings(config: Config, backbone: Backbone) -> Surroundings:
    """What the tasks of a settled configuration are built beside."""
    mean, std = config.images.mean, config.images.std
    assert mean != "auto"
    assert std != "auto"
    sizes = {slot.name: slot.size for slot in slots_of(config)}
    return Surroundings(
        dim=backbone.dim,
        patch_dim=backbone.patch_dim,
        patch=backbone.patch,
        channels=backbone.channels,
        can=frozenset(backbone.can),
        has_class_token=backbone.has_class_token,
        has_positions=backbone.has_positions,
        grids={slot: backbone.grid(size) for slot, size in sizes.items()},
        sizes=sizes,
        objective=config.objective.name,
        objective_options=_options(config, "objective", config.objective.name),
        mean=tuple(mean),
        std=tuple(std),
    )


def _lend(
    tasks: Mapping[str, Task],
    teacher_heads: Mapping[str, Mapping[str, nn.Module]],
    student: Branch,
    teacher: Branch | None,
) -> None:
    """Give the branches what a task has for their forwards: its own pooling, and the student its extra tokens.

    Raises:
        UserError: when two tasks have the same for them.
    """
    for what, names in {
        "pools": [name for name, task in tasks.items() if task.pools],
        "extra_tokens": [name for name, task in tasks.items() if task.extra_tokens is not None],
    }.items():
        if len(names) > 1:
            raise UserError(f"tasks {names[0]} and {names[1]} both have {what.replace('_', ' ')}: keep one")
    for name, task in tasks.items():
        if task.pools:
            online = {head: task.get_submodule(head) for head in task.ema}
            student.pool = partial(task.pool, heads=online)
            if teacher is not None:
                teacher.pool = partial(task.pool, heads=teacher_heads[name])
        if task.extra_tokens is not None:
            student.backbone.refuse(extra_tokens=True)
            student.extra_tokens = partial(getattr, task, "extra_tokens")


def make_policy(config: Config, channels: int) -> ViewPolicy:
    """The view policy of a settled configuration, as it is before the first step."""
    policy_class: type[ViewPolicy] = plugins.load("policy", config.views.policy)
    return policy_class(_options(config, "policy", config.views.policy), slots_of(config), channels)


def _check_policy(
    policy: ViewPolicy, objective: Objective, student: Branch, teacher: Branch | None, tasks: Mapping[str, Task]
) -> None:
    """What a policy asks of the networks they must be able to do, and to do again.

    Raises:
        UserError: naming the setting.
    """
    slots, scale = policy.scores_at
    for slot in slots:
        small = tuple(max(1, round(side * scale)) for side in slot.size)
        if any(side % student.backbone.unit for side in small):
            raise UserError(
                f"views.scale={scale:g}: {slot.name} would be scored at {small[0]} x {small[1]} px, which patches of "
                f"{student.backbone.unit} do not fill; take a scale that gives whole patches"
            )
    if policy.scores_by.startswith("block"):
        with torch.no_grad(), evaluating(student.backbone):
            pixels = torch.zeros(1, student.backbone.channels, *student.backbone.size)
            stages = student.backbone(pixels, need=("stages",)).stages or []
        if int(policy.scores_by.removeprefix("block")) >= len(stages):
            raise UserError(f"views.scorer={policy.scores_by}: this network has block0 to block{len(stages) - 1}")
    why = ""
    if policy.reuses_teacher and teacher is None:
        why = "this objective has no teacher"
    elif policy.reuses_teacher and teacher is not None and has_batchnorm(teacher):
        # A teacher must say the same in eval mode and in a step to be asked once.
        why = "this teacher's BatchNorm answers by the batch; DINO's goes with objective.use_bn=false"
    elif policy.reuses_teacher and tasks:
        why = f"task {next(iter(tasks))} may read the teacher's patches"
    elif policy.reuses_teacher and any(objective.is_target(s.name) and not is_global(s.name) for s in policy.slots):
        why = "this objective's teacher reads local views too, which are not scored"
    elif policy.reuses_teacher and objective.target_needs(Clock(0, 1, 1)):
        why = "this objective's masks follow the teacher's attention"
    if why:
        raise UserError(f"views.reuse_teacher=true: {why}")


def _teacher(config: Config, objective: Objective, student: Branch) -> Branch:
    """A second network in storage of its own that starts as the student.

    Stochastic depth and the mask token are the student's only.
    """
    teacher = Branch(make_backbone(config, 0.0), objective.make_target_head())
    missing, _ = teacher.load_state_dict(student.state_dict(), strict=False)
    if missing:
        raise RuntimeError(f"the teacher has tensors that the student lacks: {', '.join(missing)}")
    return teacher


def _target_heads(task: Task, averaged: bool) -> dict[str, nn.Module]:
    """The heads that a task's targets come from: copies that follow as the teacher does, or the online heads."""
    heads = {name: task.get_submodule(name) for name in task.ema}
    return copy.deepcopy(heads) if averaged else heads


def _options(config: Config, kind: Literal["objective", "policy", "task"], name: str) -> Any:
    return configuration.plugin_options(config, kind, name, _options_model(config, kind, name))


def _options_model(config: Config, kind: Literal["objective", "policy", "task"], name: str) -> type[BaseModel]:
    """The model of a plug-in's options; a policy around another policy takes that one's options too."""
    plugin = plugins.load(kind, name)
    options: type[BaseModel] = plugin.Options
    if kind == "policy":
        options = plugin.options_model(config.views.model_extra or {})
    return options


def make_trainer(
    config: Config,
    canvases: Canvases,
    fabric: Fabric,
    weights: Weights | None = None,
    backbone: Backbone | None = None,
) -> Trainer:
    """A trainer at step 0; see `make_parts`."""
    parts = make_parts(config, canvases, weights, backbone)
    plain = fabric.device.type == "cpu" and config.train.precision == "bf16"
    for branch in parts.branches:
        set_plain_attention(branch.backbone.model, plain)
    return Trainer(config, parts, fabric, make_feed(config, canvases, fabric).steps_per_epoch)


def make_feed(config: Config, canvases: Canvases, fabric: Fabric) -> Feed:
    """The data order of a run."""
    train = config.train
    device = fabric.device
    return Feed(
        canvases,
        _number(train.batch),
        train.seed,
        fabric.global_rank,
        fabric.world_size,
        train.accumulate,
        device,
        # The rest is for the networks, which need more than they did when this is asked.
        room=torch.cuda.mem_get_info(device)[0] // 8 if device.type == "cuda" else 0,
    )


def make_encoder(config: Config, backbone: Backbone) -> Encoder:
    """A backbone with the run's test transform."""
    assert config.images.mean != "auto"
    assert config.images.std != "auto"
    precision: Literal["fp32", "bf16"] = "bf16" if config.train.precision == "bf16" else "fp32"
    return Encoder(backbone, pair(config.views.size), config.images.mean, config.images.std, precision=precision)


def with_steps(facts: Facts, steps: int) -> Facts:
    """The facts of a run of that many steps."""
    assert facts.steps_per_epoch is not None
    return replace(facts, steps=steps, epochs=steps / facts.steps_per_epoch)


def _number(value: int | Literal["auto"]) -> int:
    assert value != "auto"
    return value


def pair(size: int | tuple[int, int] | Literal["auto"]) -> tuple[int, int]:
    """(h, w) of a settled size."""
    assert size != "auto"
    return (size, size) if isinstance(size, int) else size
