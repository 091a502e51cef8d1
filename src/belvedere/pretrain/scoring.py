"""How hard candidate views would be for the networks as they are: the function that policies select with.

Spec view_policies 1.4: eval mode, no gradient, and no trace in any state or generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from belvedere.backbones.contract import Features
from belvedere.measure.encoder import evaluating
from belvedere.objectives.contract import Objective, Output, is_global
from belvedere.pretrain.method import Branch, Job, Jobs
from belvedere.schedules import Clock
from belvedere.views.params import ViewParams
from belvedere.views.views import Views


class Scorer:
    """`views.policy.Score` for one micro-step.

    It remembers what the teacher said of the candidates, for `teacher_of`.
    """

    def __init__(
        self, student: Branch, teacher: Branch | None, objective: Objective, fabric: Fabric, clock: Clock
    ) -> None:
        self.student, self.teacher, self.objective = student, teacher, objective
        self.fabric, self.clock = fabric, clock
        self._seen: tuple[ViewParams, dict[str, Output], dict[str, Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, views: Views, choices: Sequence[tuple[str, ...]], by: str = "loss", chunk: int = 0) -> Tensor:
        """(P, N) float32 scores of P choices of slots, higher is harder; see `views.policy.Score`."""
        with ExitStack() as stack:
            for branch in (self.student, self.teacher):
                if branch is not None:
                    stack.enter_context(evaluating(branch))
            stack.enter_context(self.fabric.autocast())
            return self._losses(views, choices, chunk) if by == "loss" else self._distances(views, choices, by, chunk)

    def _losses(self, views: Views, choices: Sequence[tuple[str, ...]], chunk: int) -> Tensor:
        online = self.student.project(_encode(self.student, views, views.names, chunk, views.mask or {}))
        target: dict[str, Output] = {}
        if self.teacher is not None:
            features = _encode(self.teacher, views, [slot for slot in views.names if is_global(slot)], chunk)
            target = self.teacher.project(features)
            self._seen = views.params, target, {slot: found.cls for slot, found in features.items()}
        return self.objective.scores(self.objective.embed(online, target, self.clock), choices)

    def _distances(self, views: Views, choices: Sequence[tuple[str, ...]], by: str, chunk: int) -> Tensor:
        """1 - cosine of features of the first two views of each choice."""
        stage = None if by == "pooled" else int(by.removeprefix("block"))
        found = _encode(self.student, views, views.names, chunk, need=() if stage is None else ("stages",))
        pooled = {slot: _pooled(features, stage) for slot, features in found.items()}
        return torch.stack([1 - F.cosine_similarity(pooled[a], pooled[b], dim=-1) for a, b, *_ in choices])

    def teacher_of(self, params: ViewParams) -> tuple[dict[str, Output], dict[str, Tensor]] | None:
        """Head outputs and pooled features of the teacher for views that were scored; None where one was not.

        Views are recognised by their key; sizes must be those of scoring.
        """
        if self._seen is None:
            return None
        seen, outputs, pooled = self._seen
        names = [slot for slot in params.slots if is_global(slot)]
        scored = [slot for slot in seen.slots if slot in outputs]
        sizes = {seen.size[seen.slot(slot)] for slot in scored} | {params.size[params.slot(slot)] for slot in names}
        same = params.select(names).key[:, None] == seen.select(scored).key[None]
        if len(sizes) > 1 or not bool(same.any(1).all()):
            return None
        rows = same.to(torch.uint8).argmax(1).to(next(iter(pooled.values())).device)
        image = torch.arange(rows.shape[1], device=rows.device)

        def of(tensors: list[Tensor], row: Tensor) -> Tensor:
            return torch.stack(tensors)[row, image]

        kinds = outputs[scored[0]]
        return (
            {
                slot: {kind: of([outputs[candidate][kind] for candidate in scored], row) for kind in kinds}
                for slot, row in zip(names, rows, strict=True)
            },
            {slot: of([pooled[candidate] for candidate in scored], row) for slot, row in zip(names, rows, strict=True)},
        )


def _encode(
    branch: Branch,
    views: Views,
    names: Sequence[str],
    chunk: int,
    masks: Mapping[str, Tensor] | None = None,
    need: tuple[str, ...] = (),
) -> dict[str, Features]:
    """Features of some views, `chunk` of them in one go."""
    step, found = chunk or len(names), dict[str, Features]()
    for start in range(0, len(names), step):
        jobs: Jobs = {}
        for slot in names[start : start + step]:
            jobs[slot,] = Job(views[slot], (masks or {}).get(slot), need=need)
        found |= {name[0]: features for name, features in branch.encode(jobs).items()}
    return found


def _pooled(features: Features, stage: int | None) -> Tensor:
    if stage is None:
        return features.cls.float()
    assert features.stages is not None
    return features.stages[stage].float().flatten(2).mean(2)
