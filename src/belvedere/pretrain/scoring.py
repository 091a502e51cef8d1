"""How hard candidate views would be for the networks as they are: the function that policies select with.

Spec view_policies 1.4: eval mode, no gradient, and no trace in any state or generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from belvedere.backbones.contract import Features
from belvedere.measure.encoder import evaluating
from belvedere.objectives.contract import Objective, Output, is_global
from belvedere.pretrain.method import Branch, Job, Jobs
from belvedere.pretrain.stopwatch import Stopwatch
from belvedere.schedules import Clock
from belvedere.views.params import ViewParams, send
from belvedere.views.views import Views


class Scorer:
    """`views.policy.Score` for one micro-step.

    With `remember` it keeps what the teacher said of the candidates, for `teacher_of`.
    """

    def __init__(
        self,
        student: Branch,
        teacher: Branch | None,
        objective: Objective,
        fabric: Fabric,
        clock: Clock,
        remember: bool = False,
    ) -> None:
        self.student, self.teacher, self.objective = student, teacher, objective
        self.fabric, self.clock = fabric, clock
        self.remember = remember
        self.teacher_time = Stopwatch(fabric.device)
        self.spared = 0.0
        """Share of the teacher's work that training need not do again."""
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
        views = views.beside_pixels()
        online, _ = _outputs(self.student, views, views.names, chunk, masked=True)
        target: dict[str, Output] = {}
        if self.teacher is not None:
            with self.teacher_time:
                names = [slot for slot in views.names if is_global(slot)]
                target, pooled = _outputs(self.teacher, views, names, chunk)
            if self.remember:
                self._seen = views.params, target, pooled
        return self.objective.scores(self.objective.embed(online, target, self.clock), choices)

    def _distances(self, views: Views, choices: Sequence[tuple[str, ...]], by: str, chunk: int) -> Tensor:
        """1 - cosine of features of the first two views of each choice."""
        stage = None if by == "pooled" else int(by.removeprefix("block"))
        need = () if stage is None else ("stages",)
        pooled = {
            slot: _pooled(features, stage)
            for some in _chunks(views.names, chunk)
            for slot, features in _encode(self.student, views, some, need=need).items()
        }
        return torch.stack([1 - F.cosine_similarity(pooled[a], pooled[b], dim=-1) for a, b, *_ in choices])

    def teacher_of(self, params: ViewParams) -> tuple[dict[str, Output], dict[str, Tensor]] | None:
        """Head outputs and pooled features of the teacher for views that were scored; None where one was not.

        Views are recognised by their key; sizes must be those of scoring.
        """
        if self._seen is None:
            return None
        seen, outputs, pooled = self._seen
        names = [slot for slot in params.slots if is_global(slot)]
        scored = list(outputs)
        sizes = {seen.size[seen.slot(slot)] for slot in scored} | {params.size[params.slot(slot)] for slot in names}
        same = params.select(names).key[:, None] == seen.select(scored).key[None]
        if len(sizes) > 1 or not bool(same.any(1).all()):
            return None
        device = next(iter(pooled.values())).device
        rows = send(same.to(torch.uint8).argmax(1), device)
        self.spared = len(names) / len(scored)
        kinds = outputs[scored[0]]
        found = {
            slot: {kind: _picked([outputs[candidate][kind] for candidate in scored], row) for kind in kinds}
            for slot, row in zip(names, rows, strict=True)
        }
        features = {slot: _picked(list(pooled.values()), row) for slot, row in zip(names, rows, strict=True)}
        return found, features


def _picked(candidates: Sequence[Tensor], row: Tensor) -> Tensor:
    """(N, ...) image n of candidate number row[n], without a copy of all candidates."""
    found = candidates[0]
    for number, candidate in enumerate(candidates[1:], 1):
        # Not by a mask as index, for whose length the processor would wait.
        found = torch.where((row == number).view(-1, *[1] * (found.ndim - 1)), candidate, found)
    return found


def _chunks(names: Sequence[str], chunk: int) -> list[Sequence[str]]:
    """The slots, `chunk` at a time; 0 = all at once."""
    step = chunk or max(1, len(names))
    return [names[start : start + step] for start in range(0, len(names), step)]


def _outputs(
    branch: Branch, views: Views, names: Sequence[str], chunk: int, masked: bool = False
) -> tuple[dict[str, Output], dict[str, Tensor]]:
    """Head outputs and pooled features of some slots; of each chunk no more than these is kept."""
    outputs, pooled = dict[str, Output](), dict[str, Tensor]()
    for some in _chunks(names, chunk):
        features = _encode(branch, views, some, masked)
        outputs |= branch.project(features)
        pooled |= {slot: found.cls for slot, found in features.items()}
    return outputs, pooled


def _encode(
    branch: Branch,
    views: Views,
    names: Sequence[str],
    masked: bool = False,
    need: tuple[str, ...] = (),
) -> dict[str, Features]:
    masks, places = (views.mask or {}, views.places or {}) if masked else ({}, {})
    jobs: Jobs = {}
    for slot in names:
        jobs[slot,] = Job(views[slot], masks.get(slot), places.get(slot), need=need)
    return {name[0]: features for name, features in branch.encode(jobs).items()}


def _pooled(features: Features, stage: int | None) -> Tensor:
    if stage is None:
        return features.cls.float()
    assert features.stages is not None
    return features.stages[stage].float().flatten(2).mean(2)
