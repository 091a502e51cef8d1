"""The student side of a method as one module with one forward a micro-step: what Fabric wraps and torch compiles.

Forwards are merged: the objective and all tasks say what they want encoded, and everything of one branch, one
resolution and the same flags runs in one call (DINO's multi-crop rule, spec objectives 1.7). Where the backbone has a
BatchNorm, views run one by one, so that each has its own batch statistics; the head always takes them one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from belvedere.backbones.contract import Backbone, Features
from belvedere.distributed import has_batchnorm
from belvedere.errors import UserError
from belvedere.objectives.contract import Embeddings, Objective, Output
from belvedere.pretrain.weighting import Weighting
from belvedere.tasks.contract import Answer, Request, Scene, Task
from belvedere.views.views import Views


@dataclass(frozen=True)
class Job:
    """One picture batch to encode: (B, C, h, w) pixels and the flags of the forward.

    `places` (M,) are those of the masked patches, see `Features`.
    """

    pixels: Tensor
    mask: Tensor | None = None
    places: Tensor | None = None
    keep: Tensor | None = None
    pos_embed: bool = True
    need: tuple[str, ...] = ()

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind share a forward."""
        kept = None if self.keep is None else self.keep.shape[1]
        return (*self.pixels.shape[1:], self.mask is not None, kept, self.pos_embed)


Jobs = dict[tuple[str, ...], Job]


class Branch(nn.Module):
    """A backbone and the objective's head: the student, or its teacher.

    Attributes:
        pool: a task's own way to the global vector, from features with `raw_patches`; None keeps the backbone's.
        extra_tokens: gives (E, D) tokens of a task that every view is encoded with, or None. Both are functions, so
            that the task's modules have one owner.
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.one_by_one = has_batchnorm(backbone)
        self.pool: Callable[[Features], Tensor] | None = None
        self.extra_tokens: Callable[[], Tensor] | None = None

    def encode(self, jobs: Jobs) -> dict[tuple[str, ...], Features]:
        """Run all jobs, those of one kind in one call."""
        groups: dict[object, list[tuple[str, ...]]] = {}
        for name, job in jobs.items():
            groups.setdefault(name if self.one_by_one else job.kind, []).append(name)
        features: dict[tuple[str, ...], Features] = {}
        for names in groups.values():
            members = [jobs[name] for name in names]
            masks = [job.mask for job in members if job.mask is not None]
            keeps = [job.keep for job in members if job.keep is not None]
            needs = [flag for job in members for flag in job.need]
            joint = self.backbone(
                _cat([job.pixels for job in members]),
                mask=_cat(masks) if masks else None,
                keep=_cat(keeps) if keeps else None,
                pos_embed=members[0].pos_embed,
                extra_tokens=None if self.extra_tokens is None else self.extra_tokens(),
                need=tuple(dict.fromkeys(needs if self.pool is None else [*needs, "raw_patches"])),
            )
            if self.pool is not None:
                joint = replace(joint, cls=self.pool(joint))
            parts = joint.split([len(job.pixels) for job in members])
            features |= {name: replace(part, places=jobs[name].places) for name, part in zip(names, parts, strict=True)}
        return features

    def project(self, features: Mapping[str, Features]) -> dict[str, Output]:
        """The head on every slot."""
        return {slot: self.head(slot_features) for slot, slot_features in features.items()}


@dataclass(frozen=True)
class Plan:
    """What a batch asks of both branches, and who gets what."""

    requests: dict[tuple[str, str], Request]
    student: Jobs
    target: Jobs


def alter(scene: Scene, tasks: Mapping[str, Task]) -> Scene:
    """The scene with the views that tasks altered for all, one after the other."""
    for task in tasks.values():
        scene = replace(scene, views=task.alter(scene))
    return scene


def plan(scene: Scene, objective: Objective, tasks: Mapping[str, Task]) -> Plan:
    """Merge what the objective and the tasks want encoded.

    Without a teacher the targets are the student's own outputs, so what it encodes anyway is not encoded again.

    Raises:
        UserError: when two tasks want to replace the student's views.
    """
    views = scene.views
    masks, places = views.mask or {}, views.places or {}
    requests = {
        (task_name, name): request
        for task_name, task in tasks.items()
        for name, request in task.requests(scene).items()
    }
    replacing = [key for key, request in requests.items() if request.how == "replace"]
    if len(replacing) > 1:
        raise UserError(f"tasks {replacing[0][0]} and {replacing[1][0]} both replace the student's views: keep one")
    replaced = dict(requests[replacing[0]].pixels or {}) if replacing else {}
    kept = dict(requests[replacing[0]].keep or {}) if replacing else {}
    seen = {slot: replaced.get(slot, views[slot]) for slot in views.names}
    requests = {key: _masked(_seen(request, seen, kept), masks) for key, request in requests.items()}
    student: Jobs = {
        ("objective", slot): Job(x, masks.get(slot), places.get(slot), kept.get(slot)) for slot, x in seen.items()
    }
    target: Jobs = {}
    if objective.has_teacher:
        needs = objective.target_needs(scene.clock)
        slots = [slot for slot in views.names if objective.is_target(slot)]
        target = {("objective", slot): Job(views[slot], need=needs) for slot in slots}
    for key, request in requests.items():
        jobs = _jobs(key, request, views)
        if request.branch in ("student", "both"):
            student.update(jobs)
        if request.branch in ("target", "both"):
            target.update(jobs)
    student = _merge(student)
    if not objective.has_teacher:
        target = {name: job for name, job in target.items() if _known(job, student) is None}
    return Plan(requests, student, _merge(target))


def _seen(request: Request, seen: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Request:
    """A request for views as the objective's student sees them, as one for these pixels and these of their patches."""
    if request.how != "seen":
        return request
    keep = {slot: kept[slot] for slot in request.slots if slot in kept}
    return replace(request, slots=(), pixels={slot: seen[slot] for slot in request.slots}, keep=keep)


def _masked(request: Request, masks: Mapping[str, Tensor]) -> Request:
    """Views in the place of the objective's are masked as those are, so that task and objective read one forward."""
    if request.how == "extra" or request.mask is not None:
        return request
    return replace(request, mask={name: masks[name] for name in request.pixels or {} if name in masks})


def _jobs(key: tuple[str, str], request: Request, views: Views) -> Jobs:
    pixels = request.pixels if request.pixels is not None else {slot: views[slot] for slot in request.slots}
    masks, keeps = request.mask or {}, request.keep or {}
    return {
        (*key, name): Job(x, masks.get(name), None, keeps.get(name), request.pos_embed, request.need)
        for name, x in pixels.items()
    }


def _merge(jobs: Jobs) -> Jobs:
    """Jobs on the same pixels with the same flags become one under the first one's name (see `_known`)."""
    merged: Jobs = {}
    for name, job in jobs.items():
        same = next((other for other, known in merged.items() if _same(job, known)), None)
        if same is None:
            merged[name] = job
        elif set(job.need) - set(merged[same].need):
            known = merged[same]
            merged[same] = replace(known, need=(*known.need, *job.need))
    return merged


def _same(a: Job, b: Job) -> bool:
    return (
        a.kind == b.kind
        and a.pixels.data_ptr() == b.pixels.data_ptr()
        and a.pixels.stride() == b.pixels.stride()
        and len(a.pixels) == len(b.pixels)
        and a.mask is b.mask
        and a.keep is b.keep
    )


def _known(job: Job, jobs: Jobs) -> tuple[str, ...] | None:
    """The job among `jobs` that encodes the same and gives all that is needed."""
    found = (name for name, known in jobs.items() if _same(job, known) and set(job.need) <= set(known.need))
    return next(found, None)


def answer(
    key: tuple[str, str],
    plan: Plan,
    views: Views,
    student: Mapping[tuple[str, ...], Features],
    target: Mapping[tuple[str, ...], Features],
) -> Answer:
    """The features that one request of one task asked for."""
    request = plan.requests[key]
    jobs = _jobs(key, request, views)

    def of_student(job: Job) -> Features:
        name = _known(job, plan.student)
        assert name is not None
        return student[name]

    def of_target(job: Job) -> Features:
        name = _known(job, plan.target)
        return of_student(job).detach() if name is None else target[name]

    wants_student, wants_target = request.branch != "target", request.branch != "student"
    return Answer(
        {name[-1]: of_student(job) for name, job in jobs.items()} if wants_student else {},
        {name[-1]: of_target(job) for name, job in jobs.items()} if wants_target else {},
        request,
    )


class Losses:
    """What one micro-step gives. A plain class, so that the engine hands it through untouched.

    Attributes:
        per_image: (B,) the objective's loss of every image of this process.
        tasks: name -> (B,) losses of the tasks, weights included.
        embeddings: of the objective, for its statistics and diagnostics.
        pooled: slot -> (B, D) detached features of the student.
        trained: (B,) all of them together, which is what is minimised.
    """

    def __init__(
        self,
        per_image: Tensor,
        tasks: dict[str, Tensor],
        embeddings: Embeddings,
        pooled: dict[str, Tensor],
        trained: Tensor,
    ) -> None:
        self.per_image = per_image
        self.tasks = tasks
        self.embeddings = embeddings
        self.pooled = pooled
        self.trained = trained

    def local_sum(self) -> Tensor:
        """Sum over the images of this process of everything that is trained on."""
        return self.trained.sum()


class Targets:
    """What the target branch gives for a batch, without gradient. A plain class, as `Losses`.

    Attributes:
        outputs: slot -> the head's output.
        features: of every job.
        pooled: slot -> (B, D) features of the objective's views.
    """

    def __init__(
        self, outputs: dict[str, Output], features: dict[tuple[str, ...], Features], pooled: dict[str, Tensor]
    ) -> None:
        self.outputs = outputs
        self.features = features
        self.pooled = pooled


class Method(nn.Module):
    """Student, objective and tasks: everything that is trained, in one module."""

    def __init__(
        self, student: Branch, objective: Objective, tasks: Mapping[str, Task], weighting: Weighting | None = None
    ) -> None:
        super().__init__()
        self.student = student
        self.objective = objective
        self.tasks = nn.ModuleDict(tasks)
        self.weighting = weighting

    def forward(self, batch: Batch) -> Losses:
        """All losses of a micro-batch."""
        features = self.student.encode(batch.plan.student)
        scene, tasks = batch.scene, cast(Mapping[str, Task], self.tasks)
        own = {slot: features["objective", slot] for slot in batch.views.names}
        online = self.student.project(own)
        embeddings = self.objective.embed(online, batch.targets.outputs, scene.clock, scene.labels)
        losses = {}
        for name, task in tasks.items():
            found = task.loss(answers_of(name, batch, features), scene, batch.teacher_heads[name])
            losses.update({f"{name}.{part}": loss for part, loss in found.items()})
        pooled = {slot: found.cls.detach() for slot, found in own.items()}
        per_image = self.objective.per_image(embeddings)
        weighed = math.prod(task.objective_weight for task in tasks.values()) * per_image
        parts = [weighed, *losses.values()]
        trained = torch.stack(parts).sum(0) if self.weighting is None else self.weighting(weighed, losses)
        return Losses(per_image, losses, embeddings, pooled, trained)


class Batch:
    """One micro-batch, ready for `Method`. A plain class, as `Losses`.

    `own` holds (B, D) features of the policy's own global views by slot, where training sees altered ones.
    """

    def __init__(
        self,
        scene: Scene,
        plan: Plan,
        targets: Targets,
        teacher_heads: Mapping[str, Mapping[str, nn.Module]],
        regulariser: Tensor | None = None,
        own: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.scene = scene
        self.plan = plan
        self.targets = targets
        self.teacher_heads = teacher_heads
        self.regulariser = regulariser
        self.own = own

    @property
    def views(self) -> Views:
        """The views that are trained on."""
        return self.scene.views


def answers_of(task: str, batch: Batch, student: Mapping[tuple[str, ...], Features]) -> dict[str, Answer]:
    """All that a task asked for, by the names of its requests."""
    return {
        name: answer((owner, name), batch.plan, batch.views, student, batch.targets.features)
        for owner, name in batch.plan.requests
        if owner == task
    }


def _cat(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
