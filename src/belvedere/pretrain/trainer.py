"""One optimiser step, as the papers write it: views, targets, losses, backward, clip, step, teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.func import functional_call

from belvedere.backbones.contract import attended
from belvedere.config import Config
from belvedere.distributed import all_sum, join_batchnorm, world_size
from belvedere.measure.encoder import evaluating
from belvedere.measure.health import relative_gap
from belvedere.objectives.contract import Objective, is_global
from belvedere.pretrain.batch_statistics import BatchStatistics
from belvedere.pretrain.feed import MicroBatch
from belvedere.pretrain.gradients import PATCHES, GradientGroups, Gradients
from belvedere.pretrain.method import Batch, Branch, Jobs, Losses, Method, Plan, Targets, alter, answers_of, plan
from belvedere.pretrain.optim import build_optimizer, cancel_frozen, clip_global_norm, clip_per_tensor, layer_scales
from belvedere.pretrain.recompute import recompute_blocks
from belvedere.pretrain.rendering import Renders
from belvedere.pretrain.scoring import Scorer
from belvedere.pretrain.sharding import check_shardable, load_module, load_optimizer, shard, whole
from belvedere.pretrain.stopwatch import Stopwatch
from belvedere.pretrain.weighting import Weighting
from belvedere.schedules import Clock, cosine, linear_then_cosine, quarter_cosine, warmup_cosine
from belvedere.tasks.contract import Scene, Task
from belvedere.views.masks import attended_masks, draw_masks
from belvedere.views.params import ViewParams, send
from belvedere.views.policy import ViewPolicy
from belvedere.views.render import Program, render_views
from belvedere.views.sample import sample_views, whole_views
from belvedere.views.views import Views

# The backbone in the names of a branch's parameters; a mask token is none of the trunk's.
TRUNK = "backbone.model."

# Sums for `after_step` by whose they are, a task's name or this, and by name.
Stats: TypeAlias = dict[tuple[str, str], Tensor]
OBJECTIVE = "objective"


@dataclass(frozen=True)
class Parts:
    """What a run is composed of.

    `teacher` is a second network of the student's shape, or None; `labels` holds one class id an image, or None.
    """

    student: Branch
    teacher: Branch | None
    objective: Objective
    policy: ViewPolicy
    tasks: Mapping[str, Task]
    teacher_heads: Mapping[str, Mapping[str, nn.Module]]
    sizes: Tensor
    labels: Tensor | None

    @property
    def branches(self) -> list[Branch]:
        """The student, and its teacher where there is one."""
        return [self.student, *([] if self.teacher is None else [self.teacher])]


@dataclass
class StepReport:
    """What a step tells the log: the global mean loss, and numbers of this process."""

    loss: float
    images: int
    lr: float
    weight_decay: float
    moved: bool
    """False when loss or gradient was not finite: such a step changes no weight and no batch statistics."""
    policy_seconds: float = 0.0
    """What choosing and learning took beyond a step without a policy: rendering and scoring further candidates, and the
    policy's own update. Drawing parameters (redrawn crops of `iou` too) and operations in place of colours are part of
    making views and left out; times of whole steps have them."""
    scalars: dict[str, float] = field(default_factory=dict)


class Trainer:
    """Networks, optimiser and state of a run; `step` does one optimiser step.

    Every random number of a step comes from (seed, step, rank), so a resumed run needs no generator state.
    """

    def __init__(self, config: Config, parts: Parts, fabric: Fabric, steps_per_epoch: int) -> None:
        self.config, self.parts, self.fabric = config, parts, fabric
        self.steps_per_epoch = steps_per_epoch
        rule = config.train.weighting
        below_zero = [name for name, task in parts.tasks.items() if task.below_zero]
        if parts.objective.below_zero:
            below_zero.insert(0, str(config.objective.name))
        weighting = None
        if rule != "fixed":
            weighting = Weighting(rule, list(parts.tasks), parts.objective.has_loss, below_zero)
        self.method = Method(parts.student, parts.objective, parts.tasks, weighting)
        # What the objective's hooks move: the branches, with the heads that tasks keep on both sides beside them.
        online = {name: {head: task.get_submodule(head) for head in task.ema} for name, task in parts.tasks.items()}
        self._online = _with_heads(parts.student, online)
        self._averaged = None if parts.teacher is None else _with_heads(parts.teacher, parts.teacher_heads)
        if self._averaged is not None:
            self._averaged.to(fabric.device).requires_grad_(False)
        if fabric.world_size > 1:
            join_batchnorm(self.method)
            if self._averaged is not None:
                join_batchnorm(self._averaged)
        train = config.train
        if train.recompute:
            recompute_blocks(parts.student.backbone)
        self.sharded = train.shard and fabric.world_size > 1
        if train.shard:
            check_shardable(config, parts.student.backbone, parts.policy)
        if self.sharded:
            shard(self.method, [branch.backbone for branch in parts.branches], fabric.device)
        optimizer = build_optimizer(
            train.optimizer,
            self.method,
            lr=float(train.lr),
            weight_decay=train.weight_decay,
            decay=train.decay,
            bare_prefixes=("weighting.",),
            fixed_lr_prefixes=_fixed_lr(parts),
            lr_scales=layer_scales(parts.student.backbone.model, train.layer_decay, f"student.{TRUNK}"),
        )
        forward: Any = torch.compile(self.method) if train.compile else self.method
        self.wrapped, self.optimizer = fabric.setup(forward, optimizer)
        self._gradient_groups = GradientGroups(self.method)
        self._seen = BatchStatistics([self.method, *([] if self._averaged is None else [self._averaged])])
        self._policy_time = Stopwatch(fabric.device)
        # What policies did that the step had to do anyway, and the share of it.
        self._spared: list[tuple[Stopwatch, float]] = []
        # Put around each part of a step, by its name: see `profile`.
        self.around: Callable[[str], AbstractContextManager[object]] = nullcontext
        self.method.train()

    def clock(self, step: int) -> Clock:
        """The training clock at a step."""
        return Clock(step, self.steps_per_epoch, int(self.config.train.steps))

    def step(self, step: int, micro_batches: Sequence[MicroBatch], detail: bool = False) -> StepReport:
        """Do optimiser step number `step` on this process' micro-batches; with `detail`, diagnostics are computed too.

        A step whose loss or gradient is not finite moves no weight and no batch statistics; the report says so.
        """
        parts, clock = self.parts, self.clock(step)
        torch.manual_seed(_seed_of(self.config.train.seed, step, self.fabric.global_rank))
        lr, weight_decay = self._set_schedule(clock)
        self._hold_trunk(clock)
        self._seen.keep()
        parts.policy.begin_step(clock)
        parts.objective.before_target(self._online, self._averaged, clock)
        own = float(sum(len(index) for index, _ in micro_batches))
        count = all_sum(torch.full((), own, device=self.fabric.device))
        total = torch.zeros((), device=self.fabric.device)
        stats: Stats = {}
        scalars: dict[str, Tensor] = {}
        for place, micro_batch in enumerate(micro_batches):
            batch = self.prepare(micro_batch, clock)
            with self.fabric.no_backward_sync(self.wrapped, enabled=place + 1 < len(micro_batches)):
                with self.around("forward"):
                    losses: Losses = self.wrapped(batch)
                    loss = losses.local_sum()
                    whole = loss if batch.regulariser is None else loss + batch.regulariser
                with self.around("backward"):
                    self.fabric.backward(whole * (world_size() / count))
            total += loss.detach()
            with self._policy_time, self.around("policy"):
                pooled = losses.pooled if parts.teacher is None else batch.targets.pooled
                # Beside an objective without a loss, the tasks are all that a policy could climb.
                climbed = losses.per_image if parts.objective.has_loss else losses.trained
                parts.policy.observe(climbed.detach(), batch.views.params, batch.own or pooled)
            _add(stats, OBJECTIVE, losses.embeddings.stats)
            for name, task in parts.tasks.items():
                _add(stats, name, task.stats())
            if detail:
                scalars = self._detail(losses)
        with self._policy_time, self.around("policy"):
            parts.policy.end_step()
        gradients = self._gradient_groups.norms()
        scalars |= self._gradient_scalars(gradients, detail)
        # The one place where a step waits for the device, the patches' own step among diagnostics apart.
        asked = [all_sum(total) / count, count, gradients.total, *scalars.values()]
        mean, images, norm, *values = torch.stack([self._number(value) for value in asked]).tolist()
        told = dict(zip(scalars, values, strict=True))
        moves = math.isfinite(mean) and math.isfinite(norm)
        before = self._gradient_groups.patches() if detail else None
        if moves:
            with self.around("update"):
                self._update(clock, {key: all_sum(value) for key, value in stats.items()})
        else:
            self._seen.put_back()
        after = self._gradient_groups.patches() if detail else None
        if before is not None and after is not None:
            told["patch_step"] = float((after - before).norm() / before.norm())
        self.optimizer.zero_grad(set_to_none=True)
        spared = sum(share * watch.read() for watch, share in self._spared)
        self._spared.clear()
        return StepReport(mean, int(images), lr, weight_decay, moves, self._policy_time.read() - spared, told)

    def _number(self, value: Tensor) -> Tensor:
        """One number on the run's device, whatever a plug-in made it on and of."""
        return send(value.detach().float().reshape(()), self.fabric.device)

    def prepare(self, micro_batch: MicroBatch, clock: Clock) -> Batch:
        """Views chosen by the policy, and the targets, for one micro-batch of (indices, canvases)."""
        index, images = micro_batch
        parts, device = self.parts, self.fabric.device
        with self.around("copy"):
            images = [send(x, device) for x in images] if isinstance(images, list) else send(images, device)
        rows = torch.as_tensor(index)
        epoch = clock.step // clock.steps_per_epoch
        proposed = parts.policy.propose(rows, parts.sizes[rows], epoch, self.config.train.seed)

        render, score = partial(self.render, rows, images, clock), self.score_at(clock)
        renders = Renders(render, Stopwatch(device))
        with self._policy_time, self.around("policy"):
            chosen = parts.policy.select(proposed, renders, score)
        with self.around("views"):
            views = renders.winners(chosen).beside_pixels()
        self._spared.append((renders.watch, renders.spared))
        with self._policy_time, self.around("policy"):
            regulariser = parts.policy.regulariser(views, render, self._embed_frozen)
        views = replace(views, pixels=tuple(parts.policy.adversary(group) for group in views.pixels))
        labels = None if parts.labels is None else send(parts.labels[rows], device)
        shown = views
        if self.method.training:
            shown, labels = parts.objective.mixed(views, labels)
        more = partial(self._fresh, rows, images, epoch), partial(self._whole, rows, images)
        scene = alter(Scene(shown, labels, clock, *more), parts.tasks)
        asked = plan(scene, parts.objective, parts.tasks)
        known = score.teacher_of(chosen) if parts.policy.reuses_teacher else None
        with self.around("targets"):
            targets = self._targets(asked.target) if known is None else Targets(known[0], {}, known[1])
        self._spared.append((score.teacher_time, score.spared))
        law = parts.objective.mask_law(clock)
        if law is not None and law.attends:
            # The teacher sees all of a view, so what it looks at is known before the student's view is masked.
            attention = {slot: attended(targets.features["objective", slot]) for slot in targets.outputs}
            masks = attended_masks(law, scene.views.params, attention)
            scene = replace(scene, views=scene.views.replace(mask=masks))
            asked = plan(scene, parts.objective, parts.tasks)
        own = None
        if parts.policy.regularises and self._altered(views, asked):
            with self._policy_time, self.around("policy"), torch.no_grad():
                own = {slot: self._embed_frozen(views[slot]) for slot in views.names if is_global(slot)}
        return Batch(scene, asked, targets, parts.teacher_heads, regulariser, own)

    def _altered(self, views: Views, asked: Plan) -> bool:
        """Whether training pools other features than `_embed_frozen` of the global views that the policy made."""
        branch, jobs = self.parts.student, asked.student
        if self.parts.teacher is not None:
            branch, jobs = self.parts.teacher, asked.target
        if branch.pool is not None or branch.extra_tokens is not None:
            return True
        seen = {slot: jobs["objective", slot] for slot in views.names if is_global(slot)}
        return any(
            job.keep is not None or job.mask is not None or job.pixels.data_ptr() != views[slot].data_ptr()
            for slot, job in seen.items()
        )

    @torch.no_grad()
    def show(self, micro_batch: MicroBatch) -> dict[str, dict[str, Tensor]]:
        """What each task has to show of some images, with the networks as they are, in evaluation mode."""
        parts, clock = self.parts, self.clock(int(self.config.train.steps) - 1)
        parts.policy.begin_step(clock)
        with ExitStack() as stack:
            for module in (self.method, self._averaged):
                if module is not None:
                    stack.enter_context(evaluating(module))
            batch = self.prepare(micro_batch, clock)
            stack.enter_context(self.fabric.autocast())
            features = parts.student.encode(batch.plan.student)
            return {
                name: task.show(answers_of(name, batch, features), batch.scene, parts.teacher_heads[name])
                for name, task in parts.tasks.items()
            }

    def render(
        self, rows: Tensor, images: Tensor | list[Tensor], clock: Clock, params: ViewParams, scale: float = 1.0
    ) -> Views:
        """These views of a batch's canvases, at `size * scale`, with the patch masks that the objective wants.

        `rows` are the images' indices; `params` may be of some of them only.
        """
        if len(params.index) < len(rows):
            place = {image: i for i, image in enumerate(rows.tolist())}
            some = [place[image] for image in params.index.tolist()]
            if isinstance(images, Tensor):
                images = images.index_select(0, send(torch.tensor(some), images.device))
            else:
                images = [images[i] for i in some]
        views = self._pixels(images, params, scale, self.parts.policy.program)
        law = self.parts.objective.mask_law(clock)
        if law is None or law.attends:
            return views
        drawn = params.scaled(scale).select(slot for slot in params.slots if is_global(slot))
        return views.replace(mask=draw_masks(law, drawn, self.parts.student.backbone.patch))

    def _pixels(
        self, images: Tensor | list[Tensor], params: ViewParams, scale: float = 1.0, program: Program | None = None
    ) -> Views:
        mean, std = self.config.images.mean, self.config.images.std
        assert mean != "auto"
        assert std != "auto"
        return render_views(images, params, mean=mean, std=std, scale=scale, program=program)

    def _fresh(self, rows: Tensor, images: Tensor | list[Tensor], epoch: int, count: int) -> Tensor:
        """(count, B, C, h, w) further views by the law of the first global slot; for `Scene.fresh`."""
        first = self.parts.policy.slots[0]
        slots = [replace(first, name=f"fresh_{k}") for k in range(count)]
        params = sample_views(slots, rows, self.parts.sizes[rows], epoch, self.config.train.seed)
        return torch.stack([*map(self._pixels(images, params).__getitem__, params.slots)])

    def _whole(self, rows: Tensor, images: Tensor | list[Tensor]) -> Tensor:
        """(B, C, h, w) whole images at the size of the first global slot; for `Scene.whole`."""
        slot = self.parts.policy.slots[0]
        return self._pixels(images, whole_views(slot, rows, self.parts.sizes[rows]))[slot.name]

    def _embed_frozen(self, pixels: Tensor) -> Tensor:
        """(N, D) features of (N, C, h, w) pixels through frozen weights (the teacher's where there is one).

        In evaluation mode. Gradients reach pixels only, and no generator or buffer moves: the networks' training stays
        what it was.
        """
        backbone = (self.parts.teacher if self.parts.teacher is not None else self.parts.student).backbone
        # Buffers are copied, since the forward of training changes batch statistics before the backward reads them.
        weights = {name: x.detach() for name, x in backbone.named_parameters()}
        weights |= {name: x.clone() for name, x in backbone.named_buffers()}
        gradient = torch.is_grad_enabled()
        with evaluating(backbone), torch.set_grad_enabled(gradient), self.fabric.autocast():
            embedded: Tensor = functional_call(backbone, weights, pixels).cls
            return embedded

    @torch.no_grad()
    def _targets(self, jobs: Jobs) -> Targets:
        """Outputs of the teacher, or of the student itself where there is none, without gradient."""
        if not jobs:
            return Targets({}, {}, {})
        branch = self.parts.teacher if self.parts.teacher is not None else self.parts.student
        with self.fabric.autocast():
            features = branch.encode(jobs)
            own = {name[1]: found for name, found in features.items() if name[0] == "objective"}
            return Targets(branch.project(own), features, {slot: found.cls for slot, found in own.items()})

    def score_at(self, clock: Clock) -> Scorer:
        """The function that policies score candidates with at this step, on the unwrapped networks."""
        parts = self.parts
        return Scorer(
            parts.student, parts.teacher, parts.objective, self.fabric, clock, remember=parts.policy.reuses_teacher
        )

    def _set_schedule(self, clock: Clock) -> tuple[float, float]:
        """Set this step's learning rate and weight decay in the optimiser; returns both."""
        train = self.config.train
        peak, warmup = float(train.lr), min(int(train.warmup), clock.total_steps)
        if train.schedule == "dino":
            lr = warmup_cosine(clock.step, clock.total_steps, warmup, peak, train.lr_end)
        elif train.schedule == "simclr":
            lr = linear_then_cosine(clock.step, clock.total_steps, warmup, peak)
        elif train.schedule == "relvit":
            lr = quarter_cosine(clock.step, clock.total_steps, warmup, peak, train.lr_end)
        else:
            epoch = clock.step // clock.steps_per_epoch
            lr = cosine(epoch, clock.total_steps / clock.steps_per_epoch, peak, 0.0)
        weight_decay = train.weight_decay
        if train.weight_decay_end is not None:
            weight_decay = cosine(clock.step, clock.total_steps, weight_decay, train.weight_decay_end)
        for group in self.optimizer.param_groups:
            group["lr"] = (peak if group["fixed_lr"] else lr) * group["lr_scale"]
            group["weight_decay"] = weight_decay if group["decayed"] else 0.0
        return lr, weight_decay

    def _holds_trunk(self, clock: Clock) -> bool:
        return clock.step < round(self.config.train.freeze_trunk * clock.total_steps)

    def _hold_trunk(self, clock: Clock) -> None:
        """A trunk that is held drops no paths and keeps its batch statistics."""
        if self.config.train.freeze_trunk:
            for branch in self.parts.branches:
                branch.backbone.model.train(not self._holds_trunk(clock))

    def _update(self, clock: Clock, stats: Stats) -> None:
        train, parts = self.config.train, self.parts
        held = (TRUNK,) if self._holds_trunk(clock) else ()
        cancel_frozen(parts.student, (*parts.objective.frozen(clock), *held))
        for task in parts.tasks.values():
            cancel_frozen(task, task.frozen(clock))
        if train.clip_tensor:
            clip_per_tensor(self.method.parameters(), train.clip_tensor)
        if train.clip_global:
            clip_global_norm(self.method.parameters(), train.clip_global)
        self.optimizer.step()
        parts.objective.after_step(self._online, self._averaged, clock, _of(stats, OBJECTIVE))
        for name, task in parts.tasks.items():
            task.after_step(clock, _of(stats, name))

    @torch.no_grad()
    def _detail(self, losses: Losses) -> dict[str, Tensor]:
        scalars = {f"task/{name}": loss.mean() for name, loss in losses.tasks.items()}
        if self.method.weighting is not None:
            scalars |= self.method.weighting.scalars()
        if self.parts.teacher is not None:
            scalars["teacher_gap"] = relative_gap(self.parts.teacher, self.parts.student)
        return scalars | self.parts.objective.diagnose(losses.embeddings)

    def _gradient_scalars(self, gradients: Gradients, detail: bool) -> dict[str, Tensor]:
        """Norms before clipping: of the patch embedding at every step, since its spikes are short, else with detail."""
        groups = gradients.by_group() if detail else gradients.of(PATCHES)
        scalars = {f"grad/{group}": norm for group, norm in groups.items()}
        if detail:
            scalars["grad/all"] = gradients.total
        limits = self.config.train.clip_tensor, self.config.train.clip_global
        return scalars | ({"clip_rate": gradients.clip_rate(*limits)} if detail and any(limits) else {})

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, tensors and plain numbers only, for the leading process (see `whole`)."""
        return {
            "method": whole(self.method.state_dict()),
            "teacher": None if self._averaged is None else whole(self._averaged.state_dict()),
            "optimizer": whole(self.optimizer.state_dict()),
            "policy": self.parts.policy.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the state that `state_dict` gave; every tensor must match."""
        load_module(self.method, state["method"])
        if self._averaged is not None:
            load_module(self._averaged, state["teacher"])
        load_optimizer(self.optimizer.optimizer, state["optimizer"])
        self.parts.policy.load_state_dict(state["policy"])

    @property
    def evaluated(self) -> Branch:
        """The branch whose backbone is evaluated and exported."""
        if self.parts.objective.evaluates == "teacher":
            assert self.parts.teacher is not None
            return self.parts.teacher
        return self.parts.student


def _with_heads(branch: Branch, heads: Mapping[str, Mapping[str, nn.Module]]) -> nn.Module:
    tasks = nn.ModuleDict({task: nn.ModuleDict(dict(own)) for task, own in heads.items()})
    return nn.ModuleDict({"backbone": branch.backbone, "head": branch.head, "tasks": tasks})


def _fixed_lr(parts: Parts) -> tuple[str, ...]:
    """Name prefixes of `Method`'s parameters whose learning rate is not scheduled."""
    own = (f"tasks.{name}.{prefix}" for name, task in parts.tasks.items() for prefix in task.fixed_lr)
    return (*(f"student.{prefix}" for prefix in parts.objective.fixed_lr), *own)


def _add(sums: Stats, owner: str, more: Mapping[str, Tensor]) -> None:
    for name, value in more.items():
        key = owner, name
        sums[key] = sums[key] + value.detach() if key in sums else value.detach()


def _of(sums: Stats, owner: str) -> dict[str, Tensor]:
    return {name: value for (whose, name), value in sums.items() if whose == owner}


def _seed_of(seed: int, step: int, rank: int) -> int:
    """One number below 2^63 for torch's generator, different for every step and rank."""
    return (seed * 1_000_003 + step) * 65_537 % 2**62 + rank
