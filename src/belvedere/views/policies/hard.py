"""Hard view selection: of several candidate views, train on the pair that the model finds hardest.

"Beyond Random Augmentations: Pretraining with Hard Views", Ferreira et al., ICLR 2025, arXiv:2310.03940 (spec
view_policies 1). Candidates are drawn by any other policy, each is forwarded once without gradient, all pairs are
compared by the objective's own loss of every image, and the step is the ordinary one on the winners.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import combinations, product
from typing import Any, Literal, cast

import torch
from numpy.typing import ArrayLike
from pydantic import BaseModel, Field
from torch import Tensor

from belvedere import plugins
from belvedere.distributed import all_sum, world_size
from belvedere.errors import UserError
from belvedere.schedules import Clock
from belvedere.views.chosen import Scored, Selection, describe, fidelity
from belvedere.views.cost import Work
from belvedere.views.draws import permutation, uniform
from belvedere.views.params import ViewParams
from belvedere.views.policy import Embed, Render, Score, ViewPolicy
from belvedere.views.slots import Slot
from belvedere.views.views import Views

# Fidelity is measured on about this many batches an epoch, but on no more than one step of so many.
CHECKS_AN_EPOCH = 3
CHECKS_APART = 50
# There `choose` is judged by a drawing of so many times as many combinations: all of them are too many to score.
WIDER = 8


class HardOptions(ViewPolicy.Options):
    """Settings of hard views."""

    inner: str = "random"
    """The policy that draws the candidates; its settings stand beside these."""
    candidates: int = Field(4, ge=2)
    """Global views drawn an image."""
    scale: float = Field(1.0, gt=0, le=1)
    """Resolution of scoring over that of training."""
    every: int = Field(1, ge=1)
    """Choose in every k-th step only; in between, train on the first candidates."""
    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the images of a batch whose views are chosen."""
    start_epoch: float = Field(0.0, ge=0)
    local_views: Literal["fixed", "scored", "choose"] = "fixed"
    """Local views are drawn once and take no part; or count in every pair's score; or are chosen along with it."""
    limit: int = Field(64, ge=1)
    """choose: so many combinations of a pair and local views, out of twice as many local views as are trained on."""
    scorer: str = Field("loss", pattern=r"^(loss|anchor|pooled|block\d+)$")
    """The objective's loss; the same but with the first view always in the pair; or a distance of the student's
    features: pooled, or mean over the grid after a block."""
    reuse_teacher: bool = False
    """Take the chosen views' teacher outputs from scoring. Exact where the teacher has no BatchNorm."""
    chunk: int = Field(0, ge=0)
    """Views forwarded at once while scoring, to save memory; 0 = all."""


class Hard(ViewPolicy):
    """Candidates by another policy, the hardest pair of each image by score."""

    Options = HardOptions
    options: HardOptions
    needs_pairs = True
    cheaper = "fewer views.candidates, views.every=2 or views.fraction=0.5 choose for less"

    @classmethod
    def options_model(cls, given: Mapping[str, Any]) -> type[BaseModel]:
        """These options together with those of the inner policy."""
        name = str(given.get("inner", HardOptions.model_fields["inner"].default))
        if name == "hard":
            raise UserError("views.inner=hard: hard views choose among another policy's views; name that one")
        inner = plugins.load("policy", name).options_model(given)
        return cast(type[BaseModel], type("HardOptions", (HardOptions, inner), {}))

    def __init__(self, options: Any, slots: tuple[Slot, ...], channels: int) -> None:
        """Make the inner policy for all candidates.

        Raises:
            UserError: when there are not two global views to be chosen, or options contradict each other.
        """
        super().__init__(options, slots, channels)
        self.globals = tuple(slot for slot in slots if slot.is_target)
        self.locals = tuple(slot for slot in slots if not slot.is_target)
        if len(self.globals) != 2:
            raise UserError(f"views.policy=hard: chooses pairs, so views.globals must be 2, not {len(self.globals)}")
        if options.reuse_teacher and (options.scale != 1 or options.fraction != 1 or options.scorer != "loss"):
            raise UserError("views.reuse_teacher=true: needs views.scale=1, views.fraction=1 and views.scorer=loss")
        by_features = options.scorer not in ("loss", "anchor")
        if by_features and options.local_views != "fixed" and self.locals:
            raise UserError(f"views.scorer={options.scorer}: compares pairs, so it needs views.local_views=fixed")
        kind: type[ViewPolicy] = plugins.load("policy", options.inner)
        model = kind.options_model(options.model_dump())
        own = {name: getattr(options, name) for name in model.model_fields}
        self.inner = kind(model(**own), self._candidates(), channels)
        self.program = self.inner.program
        self.reuses_teacher = options.reuse_teacher
        self.period = options.every
        self.scores_by = "loss" if options.scorer == "anchor" else options.scorer
        self.scores_at = (
            tuple(slot for slot in slots if slot.is_target or options.local_views != "fixed"),
            options.scale,
        )
        self._clock = Clock(0, 1, 1)
        self._last: Selection | None = None
        self._fidelity: dict[str, float] = {}

    def _candidates(self) -> tuple[Slot, ...]:
        """Globals by turns a, b, a.1, b.1, ...; locals, and their further candidates where those are chosen too."""
        found = [_further(self.globals[k % 2], k // 2) for k in range(self.options.candidates)]
        rounds = 2 if self.options.local_views == "choose" else 1
        return (*found, *(_further(slot, k) for k in range(rounds) for slot in self.locals))

    # --- choosing -----------------------------------------------------------------------------------------------------

    def begin_step(self, clock: Clock) -> None:
        """Note whether this step chooses."""
        self._clock = clock
        self.inner.begin_step(clock)

    def chooses(self, clock: Clock) -> bool:
        """Whether views are chosen at that step."""
        return clock.epoch >= self.options.start_epoch and clock.step % self.options.every == 0

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """All candidates, by the inner policy."""
        return self.inner.propose(index, sizes, epoch, seed)

    def select(self, params: ViewParams, render: Render, score: Score) -> ViewParams:
        """The hardest pair of each image (spec 1.1), on a tie the first; the first candidates where none is chosen.

        Raises:
            UserError: when a score is not finite.
        """
        plain = [slot.name for slot in self.slots]
        if not self.chooses(self._clock):
            return params.select(plain)
        concerned = self._concerned(params)
        # Where other processes score, they gather what they compare from all; such an image's choice is not taken.
        rows = torch.tensor([0]) if not len(concerned) and world_size() > 1 else concerned
        if not len(rows):
            return params.select(plain)
        some = params if len(rows) == len(params.index) else params.take(rows)
        choices = self.choices(params.seed)
        scored = self.score_choices(some, choices, render, score, self.options.scale)
        self._check_fidelity(some, choices, scored.scores, render, score)
        if not len(concerned):
            return params.select(plain)
        winner = scored.scores.argmax(0)
        self._last = Selection(some, choices, winner, scored)
        taken = torch.tensor([params.slot(name) for name in plain]).repeat(len(params.index), 1)
        table = torch.tensor([[params.slot(name) for name in self._filled(choice)] for choice in choices])
        taken[concerned] = table[winner]
        return params.gather(taken.T, plain)

    def _concerned(self, params: ViewParams) -> Tensor:
        """Positions of the images whose views are chosen: each by its own draw, so that no batch or process matters."""
        drawn = uniform(params.seed, params.epoch, params.index.numpy(), "hard/fraction")
        return torch.from_numpy(drawn < self.options.fraction).nonzero()[:, 0]

    def choices(self, seed: int, scorer: str | None = None, times: int = 1) -> list[tuple[str, ...]]:
        """The combinations of slots that compete at this step; first the one that the inner policy alone would train.

        All pairs where both slots have the same law, else one view of each law, so that neither slot's law drifts
        (spec 1.2). `scorer` is the policy's own unless another is named: `anchor` leaves pairs out. `choose` draws
        `times` as many as its limit.
        """
        options, pairs = self.options, self._pairs(scorer)
        fixed = tuple(slot.name for slot in self.locals)
        if not fixed or options.local_views == "fixed":
            return list(pairs)
        if options.local_views == "scored":
            return [(*pair, *fixed) for pair in pairs]
        return self._sampled(pairs, seed, times * options.limit)

    def _pairs(self, scorer: str | None = None) -> list[tuple[str, str]]:
        return competing((self.globals[0], self.globals[1]), self.options.candidates, scorer or self.options.scorer)

    def _combinations(self, pairs: int) -> int:
        """How many there are of so many pairs and the local views that are trained on, of twice as many drawn."""
        return pairs * math.comb(2 * len(self.locals), len(self.locals))

    def _sampled(self, pairs: list[tuple[str, str]], seed: int, limit: int) -> list[tuple[str, ...]]:
        """`limit` different combinations of a pair and the number of local views that is trained on.

        A higher limit goes on where a lower one ends.
        """
        names = [_further(slot, k).name for k in range(2) for slot in self.locals]
        count = len(self.locals)
        found = {(pairs[0], tuple(range(count))): None}
        most = min(limit, self._combinations(len(pairs)))
        for t in range(10 * most):
            if len(found) == most:
                break
            purpose = f"hard/{self._clock.step}/{t}"
            pair = pairs[int(permutation(seed, 0, len(pairs), f"{purpose}/pair")[0])]
            some = sorted(permutation(seed, 0, len(names), f"{purpose}/locals")[:count].tolist())
            found.setdefault((pair, tuple(some)))
        return [(*pair, *(names[i] for i in some)) for pair, some in found]

    def _filled(self, choice: tuple[str, ...]) -> tuple[str, ...]:
        """A choice with the local views that it leaves as they are."""
        return choice if len(choice) == len(self.slots) else (*choice, *(slot.name for slot in self.locals))

    def score_choices(
        self,
        params: ViewParams,
        choices: list[tuple[str, ...]],
        render: Render,
        score: Score,
        scale: float,
        by: str | None = None,
    ) -> Scored:
        """How hard each choice is, by the policy's own scorer unless another is named, in the processor's memory.

        Smaller views have other patches, so their masks tell nothing and are left out.

        Raises:
            UserError: when a score is not finite, on any process.
        """
        wanted = {name for choice in choices for name in choice}
        by = by or ("loss" if self.options.scorer == "anchor" else self.options.scorer)
        with torch.no_grad():
            views = render(params.select(slot for slot in params.slots if slot in wanted), scale)
            if scale != 1:
                views = replace(views, mask=None)
            scores = score(views, choices, by=by, chunk=self.options.chunk)
        masked = {slot: mask.flatten(1).float().mean(1) for slot, mask in (views.mask or {}).items()}
        unsound = all_sum((~scores.isfinite()).sum().float())
        # All at once, since each copy waits for the device.
        scores, unsound = _on_processor([scores.float(), unsound])
        if unsound:
            raise UserError(
                f"hard views: scores are not finite at step {self._clock.step}; lower train.lr, or train with "
                "train.precision=float32, and go on with --resume"
            )
        return Scored(scores, masked)

    # --- telling ------------------------------------------------------------------------------------------------------

    def _check_fidelity(
        self, params: ViewParams, choices: list[tuple[str, ...]], scores: Tensor, render: Render, score: Score
    ) -> None:
        """How far cheap scores choose as full ones do, at the first choice and now and then (spec 1.5).

        Full: by the objective's loss at the training resolution, of all pairs, with local views as `local_views` has
        them. What is scored so already agrees with itself. Where `choose` draws some of all combinations, full is
        `WIDER` times as many of them, the own ones included: fidelity is then how often the hardest of those is an own
        one, and an upper bound of what all combinations would say. `kept_all` is the hardness kept as a mean over all
        images and the steps from `start_epoch` on: where nothing is chosen, nothing is gained.
        """
        every, epoch = self.options.every, self._clock.steps_per_epoch
        drawn = self.options.local_views == "choose" and len(choices) < self._combinations(len(self._pairs("loss")))
        if self.options.scale == 1 and self.options.scorer == "loss" and not drawn:
            found = {"fidelity": 1.0, "kept": 1.0}
        else:
            first = math.ceil(self.options.start_epoch * epoch / every)
            apart = max(1, max(epoch // CHECKS_AN_EPOCH, CHECKS_APART) // every)
            if (self._clock.step // every - first) % apart:
                return
            everyone = list(dict.fromkeys([*choices, *self.choices(params.seed, "loss", WIDER)]))
            full = self.score_choices(params, everyone, render, score, 1.0, by="loss").scores
            unseen = scores.new_full((len(everyone) - len(choices), scores.shape[1]), -math.inf)
            found = fidelity(torch.cat([scores, unseen]), full)
        self._fidelity = found | {"kept_all": found["kept"] * self.options.fraction / every}

    def log(self) -> dict[str, float]:
        """Facts of the newest selection (`describe`), and fidelity where it was measured since the last call."""
        found = self.inner.log()
        told = {**(describe(self._last) if self._last is not None else {}), **self._fidelity}
        self._last, self._fidelity = None, {}
        return found | {f"hard/{name}": value for name, value in told.items()}

    def expected_cost(self, work: Work) -> float:
        """One forward of student and teacher for each candidate scored (spec 1.5's table), from `start_epoch` on."""
        options = self.options
        forwards = options.candidates * (2.0 if work.teacher and options.scorer in ("loss", "anchor") else 1.0)
        if options.local_views != "fixed":
            forwards += work.locals * work.local * (2 if options.local_views == "choose" else 1)
        forwards *= work.at(options.scale) * options.fraction
        if options.reuse_teacher:
            forwards -= work.globals
        return self.inner.expected_cost(work) + forwards / options.every / work.step

    # --- the inner policy's -------------------------------------------------------------------------------------------

    def regulariser(self, views: Views, render: Render, embed: Embed) -> Tensor | None:
        """The inner policy's, on the winners."""
        return self.inner.regulariser(views, render, embed)

    @property
    def regularises(self) -> bool:
        """Whether the inner policy has one."""
        return self.inner.regularises

    def adversary(self, pixels: Tensor) -> Tensor:
        """The inner policy's."""
        return self.inner.adversary(pixels)

    def observe(self, per_image: Tensor, params: ViewParams, pooled: Mapping[str, Tensor]) -> None:
        """The inner policy hears of the winners only: they are what was trained on."""
        self.inner.observe(per_image, params, pooled)

    def end_step(self) -> None:
        """The inner policy's."""
        self.inner.end_step()

    def exported(self) -> dict[str, Any] | None:
        """The inner policy's."""
        return self.inner.exported()

    def state_dict(self) -> dict[str, Any]:
        """The inner policy's; choosing has no state."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inner policy's."""
        self.inner.load_state_dict(state)


def _further(slot: Slot, k: int) -> Slot:
    """Candidate number k of a slot; the first one keeps the plain name."""
    return replace(slot, name=f"{slot.name}.{k}") if k else slot


def competing(slots: tuple[Slot, Slot], candidates: int, scorer: str = "loss") -> list[tuple[str, str]]:
    """The pairs of candidates for two slots that compete; first the one that the inner policy alone would train."""
    names = [_further(slots[k % 2], k // 2).name for k in range(candidates)]
    if slots[0] == replace(slots[1], name=slots[0].name):
        pairs = list(combinations(names, 2))
    else:
        pairs = list(product(names[::2], names[1::2]))
    return [pair for pair in pairs if names[0] in pair] if scorer == "anchor" else pairs


def by_turns(names: Iterable[str]) -> list[str]:
    """Candidates in the order in which they are drawn: a, b, a.1, b.1, ..."""

    def place(name: str) -> tuple[int, str]:
        slot, _, number = name.partition(".")
        return int(number or 0), slot

    return sorted(names, key=place)


def _on_processor(tensors: list[Tensor]) -> list[Tensor]:
    """The same float32 tensors in the processor's memory, in one copy."""
    flat = torch.cat([x.flatten() for x in tensors]).cpu()
    parts = torch.split(flat, [x.numel() for x in tensors])
    return [part.view(x.shape) for part, x in zip(parts, tensors, strict=True)]
