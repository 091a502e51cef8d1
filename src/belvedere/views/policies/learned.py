"""AutoView: a policy that learns, in the network's own steps, which operations make views hard yet recognisable.

Spec view_policies 2. The network lowers the objective's loss l of the views v of an image x, the policy raises

    R(x) = l(v_1, v_2, ...) - lambda * mean over global views of l_reg(v, x)

where l_reg asks which image of the batch a view is of (`_retention.py`). Its law (`_law.py`) has a few numbers and
knows no image, so E[R] is linear in the probabilities of operations, and the score function with the batch mean as
baseline is an unbiased gradient of low variance (spec 2.3). `estimator=hybrid` takes the magnitudes of smooth
operations through the pixels instead: the gradient of l is reversed on its way out of the network, that of l_reg comes
through frozen weights, so that the regulariser never trains the network.

l is any loss of an image. With labels it is the classification's, as in Adversarial AutoAugment (Zhang et al., ICLR
2020, arXiv:1912.11188); where an objective has none of its own, it is the sum of the tasks'.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import ArrayLike
from pydantic import Field
from torch import Tensor

from belvedere.distributed import all_sum, counts, gather_rows, rank, world_size
from belvedere.schedules import Clock
from belvedere.views.cost import Work
from belvedere.views.operations import Operation, Space, space
from belvedere.views.params import ViewParams, send
from belvedere.views.policies._law import STAGES, Law, export, read
from belvedere.views.policies._retention import WEIGHT_START, ascend, retrieval_loss
from belvedere.views.policies._rewards import MEMORY, Rewards
from belvedere.views.policy import Embed, Render, ViewPolicy
from belvedere.views.program import NOTHING, OP, OperationProgram, clean, draw, with_program
from belvedere.views.slots import Slot
from belvedere.views.views import Views

LOGIT = "logit"
# A view whose pixels in [0, 1] have a smaller standard deviation shows nothing (spec 2.5).
DEAD_CONTRAST = 0.03
_CLIP = 1.0
# One half of the batch a step goes through the pixels for the regulariser.
HALVES = 2
# One in so many images tells what crops alone lose.
FLOOR_OF = 8
_SUMMED = ("loss", "l_reg", "floor", "chance")

Part = Literal["ops", "magnitude", "p"]


class LearnedOptions(ViewPolicy.Options):
    """Settings of learned views."""

    space: Space = "ssl12"
    learn: tuple[Part, ...] = Field(("ops", "magnitude", "p"), min_length=1)
    """What is learned; the rest stays as it starts. [ops] alone is the careful choice (spec 2.5)."""
    retention: float = Field(0.25, gt=0, lt=1)
    """How hard operations may make it to recognise a view: from as hard as its crop alone (0) to chance (1). The
    policy's one dial."""
    estimator: Literal["score", "hybrid"] = "score"
    anchor: Literal["image", "crop"] = "image"
    """What a view must be recognised as: the whole image, or its own crop before the operations."""
    lr: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)
    """Share of training before the policy learns: what a young network finds hard is noise (spec 2.7)."""
    freeze: float = Field(0.1, ge=0, lt=1)
    """Share of training, at its end, in which the policy stays as it is."""
    exported: str = ""
    """A run's policy.json, replayed as it is in place of learning."""


class Learned(ViewPolicy):
    """Two operations a view, drawn from a law that climbs the loss as far as `retention` lets it."""

    Options = LearnedOptions
    options: LearnedOptions

    def __init__(self, options: Any, slots: tuple[Slot, ...], channels: int) -> None:
        """Start uniform, or as exported.

        Raises:
            UserError: `exported` is no policy for such images.
        """
        super().__init__(options, slots, channels)
        self._space = self.options.space
        if self.options.exported:
            self.law, self._space = read(Path(self.options.exported), channels)
        else:
            self.law = Law(space(self._space, channels))
        self.program = self._watched = _WatchedProgram(self.law.operations)
        parts = {"ops": self.law.pi, "magnitude": self.law.mu, "p": self.law.rho}
        learn = () if self.options.exported else self.options.learn
        self.law.requires_grad_(False)
        self._learned = [parts[part].requires_grad_() for part in dict.fromkeys(learn)]
        self._adam = torch.optim.Adam(self.law.parameters(), lr=self.options.lr, betas=(0.5, MEMORY))
        self._pathwise = self.options.estimator == "hybrid" and self.law.mu.requires_grad
        self._rewards = Rewards(len(self.law.operations))
        self._lambda = WEIGHT_START
        self._learning = False
        self._step = 0
        self._anchors: Tensor | None = None
        self._own = torch.arange(0)
        self._total = 0
        self._floor = torch.zeros(())
        self._seen: list[_Seen] = []
        self._told: dict[str, Any] = {}

    def begin_step(self, clock: Clock) -> None:
        """Learn between warm-up and freeze."""
        first, last = (round(share * clock.total_steps) for share in (self.options.warmup, 1 - self.options.freeze))
        self._learning = bool(self._learned) and first <= clock.step < last
        self._step = clock.step
        self._seen.clear()
        self._adam.zero_grad()

    def propose(self, index: ArrayLike, sizes: ArrayLike, epoch: int, seed: int) -> ViewParams:
        """The random policy's crops and flips, each with a program of one or two operations."""
        params = super().propose(index, sizes, epoch, seed)
        numbers = draw(params, STAGES)
        op, logit = self.law.draw(numbers)
        magnitude = logit.sigmoid()
        if self._pathwise and self._learning:
            magnitude = self.law.magnitude(op, logit)
        return with_program(params, op, magnitude, numbers.sign, **{LOGIT: logit})

    def regulariser(self, views: Views, render: Render, embed: Embed) -> Tensor | None:
        """lambda * l_reg through the pixels, estimated on part of the views; None where only scores are used.

        Global views and the halves of the batch take turns, which keeps the cost of spec 2.8. The anchors that
        `observe` compares with are embedded here, before the network moves.
        """
        dead = self._watched.blanked(views.params)
        self._tell(views=dead.numel(), dead=dead.sum())
        if not self._learning:
            return None
        self._compare_with(views.params, render, embed)
        if not self._pathwise:
            return None
        slots = _global(views.params)
        turn = self._step % len(slots)
        rows, share = self._some(self._step // len(slots), HALVES)
        if not len(rows):
            return None
        assert self._anchors is not None
        l_reg = retrieval_loss(
            embed(views[slots[turn]][rows]), self._anchors[turn % len(self._anchors)], self._own[rows]
        )
        return self._lambda * l_reg.sum() / share

    @torch.no_grad()
    def _compare_with(self, params: ViewParams, render: Render, embed: Embed) -> None:
        """Embed the anchors, among which a view of all processes' images is to be told, and what crops alone lose.

        The latter is the mean l_reg of views without operations, of every eighth image in turn; of crops as anchors it
        is their own.
        """
        images, shown = len(params.index), render(self._anchor(params), 1.0)
        sizes = counts(images, shown.pixels[0].device) if world_size() > 1 else [images]
        before, self._total = sum(sizes[: rank()]), sum(sizes)
        self._own = torch.arange(before, before + images)
        pixels = [shown[slot] for slot in shown.names]
        rows, share = self._some(self._step, FLOOR_OF)
        crops = self.options.anchor == "crop"
        if len(rows) and not crops:
            first = _global(params)[:1]
            pixels.append(render(_plain(params.select(first).take(rows)), 1.0)[first[0]])
        # In one forward: few images take nearly as long as many.
        parts = torch.split(embed(torch.cat(pixels)), [len(part) for part in pixels])
        own = torch.stack(parts[: len(shown.names)], 1)
        self._anchors = gather_rows(own)[0].transpose(0, 1)
        if crops:
            self._floor = retrieval_loss(self._anchors, self._anchors).mean()
        else:
            lost = own.new_zeros(())
            if len(rows):
                lost = retrieval_loss(parts[-1], self._anchors[0], self._own[rows]).sum()
            self._floor = all_sum(lost) / (share * self._total)

    def _some(self, turn: int, of: int) -> tuple[Tensor, float]:
        """This process' rows among every `of`-th image of the global batch, and the share of that batch they are."""
        of = min(of, self._total)
        chosen = torch.arange(self._total) % of == turn % of
        return chosen[self._own].nonzero().squeeze(1), float(chosen.double().mean())

    def adversary(self, pixels: Tensor) -> Tensor:
        """What the network's loss says to lower, the magnitudes raise."""
        reversed_gradient: Tensor = _Reversal.apply(pixels)
        return reversed_gradient if pixels.requires_grad else pixels

    def observe(self, per_image: Tensor, params: ViewParams, pooled: Mapping[str, Tensor]) -> None:
        """Keep losses and choices for `end_step`."""
        if not self._learning:
            return
        assert self._anchors is not None
        views = torch.stack([pooled[slot] for slot in _global(params)])
        l_reg = retrieval_loss(views, self._anchors, self._own).mean(0)
        floor, chance = self._floor.expand_as(l_reg), torch.full_like(l_reg, math.log(self._anchors.shape[1]))
        self._seen.append(_Seen(per_image.float(), l_reg, floor, chance, params.extras[OP], params.extras[LOGIT]))
        self._anchors = None

    def end_step(self) -> None:
        """One step of the policy on the whole global batch, and one of lambda."""
        if not self._learning:
            return
        device = self._seen[0].loss.device
        # The one place where the policy waits for the device, since its law lies with the processor.
        numbers = torch.cat([torch.stack([getattr(seen, name) for name in _SUMMED]) for seen in self._seen], 1).cpu()
        loss, l_reg, floor, chance = numbers
        op, logit = (torch.cat([getattr(seen, name) for seen in self._seen], 1) for name in ("op", "logit"))
        reward = loss - self._lambda * l_reg
        told = torch.stack([torch.ones_like(loss), reward, l_reg, floor, chance]).sum(1)
        images, rewards, regularisers, floors, chances = _over_all(told, device).tolist()
        advantage = reward - rewards / images

        # The network's loss is scaled so that gradients are averaged over processes; here they are sums over images.
        for p in self._learned:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad * (images / world_size())
        (-advantage * self.law.log_prob(op, logit, self._pathwise).sum(0)).sum().backward()
        gradients = [p.grad.flatten() for p in self._learned if p.grad is not None]
        sums = Rewards.sums(advantage, op, len(self.law.operations))
        found = _over_all(torch.cat([*gradients, sums]), device)
        if not found.isfinite().all():
            return
        gradient, sums = torch.split(found, [len(found) - len(sums), len(sums)])
        self._move(gradient / images / self._rewards.update(sums, images))
        target = floors + self.options.retention * (chances - floors)
        self._lambda = ascend(self._lambda, (regularisers - target) / images)
        self._tell(images=images, l_reg=regularisers, floor=floors, chance=chances)

    def _tell(self, **values: Any) -> None:
        """Add to the sums that `log` reads; they may lie on a device that is not waited for."""
        self._told |= {name: self._told.get(name, 0) + value for name, value in values.items()}

    def _move(self, gradient: Tensor) -> None:
        parts = torch.split(gradient, [p.numel() for p in self._learned])
        for p, part in zip(self._learned, parts, strict=True):
            p.grad = part.view_as(p).clone()
        torch.nn.utils.clip_grad_norm_(self._learned, _CLIP)
        self._adam.step()
        self.law.clamp()

    def _anchor(self, params: ViewParams) -> ViewParams:
        if self.options.anchor == "image":
            return clean(params, _global(params)[0])
        return _plain(params.select(_global(params)))

    def expected_cost(self, work: Work) -> float:
        """A step that learns (spec 2.8): anchors and some plain crops forward; hybrid: half a view again, and back."""
        passes: float = 1 + 1 / FLOOR_OF if self.options.anchor == "image" else work.globals
        if self.options.exported:
            passes = 0
        elif self._pathwise:
            passes += 2 / HALVES
        return 1 + passes / work.step

    def exported(self) -> dict[str, Any]:
        """The law as it is; `views.exported` replays it."""
        return export(self.law, self._space)

    def state_dict(self) -> dict[str, Any]:
        """psi, its optimiser, the memory of rewards, and lambda."""
        return {
            "law": {name: tensor.clone() for name, tensor in self.law.state_dict().items()},
            "adam": copy.deepcopy(self._adam.state_dict()),
            "rewards": self._rewards.state_dict(),
            "lambda": self._lambda,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned; the processes may be more or fewer."""
        self.law.load_state_dict(state["law"])
        self._adam.load_state_dict(copy.deepcopy(state["adam"]))
        self._rewards.load_state_dict(state["rewards"])
        self._lambda = state["lambda"]

    def log(self) -> dict[str, float]:
        """`policy/...`: the law, lambda, retention, the share of views left blank, and the reward of every operation.

        `l_reg` and `floor` are the losses of recognising a view and a crop without operations, `l_reg_share` the former
        over chance, `retention` where it lies between `floor` (0) and chance (1).
        `reward/<op>` is the mean, over the last hundred steps or so, of what views with the operation brought above the
        mean of their batch; `reward_se/<op>` its standard error.
        """
        found = {**self.law.told(), "lambda": self._lambda}
        told, self._told = self._told, {}
        if "views" in told:
            found["dead_views"] = float(told["dead"]) / told["views"]
        if "images" in told:
            found |= {name: told[name] / told["images"] for name in ("l_reg", "floor")}
            found["l_reg_share"] = told["l_reg"] / max(told["chance"], 1e-12)
            # In a small batch the few crops that are asked for may be found worse than by chance.
            if told["chance"] > told["floor"]:
                found["retention"] = (told["l_reg"] - told["floor"]) / (told["chance"] - told["floor"])
            for operation, mean, error in zip(self.law.operations, *self._rewards.table(), strict=True):
                found |= {f"reward/{operation.name}": float(mean), f"reward_se/{operation.name}": float(error)}
        return {f"policy/{name}": value for name, value in found.items()}


@dataclass(frozen=True)
class _Seen:
    """What one micro-step brought: losses `[N]`, and the choices `[V, N, S]` behind them."""

    loss: Tensor
    l_reg: Tensor
    floor: Tensor
    chance: Tensor
    op: Tensor
    logit: Tensor


def _over_all(x: Tensor, device: torch.device) -> Tensor:
    """The sum over processes of numbers in the processor's memory; processes may meet on their devices only."""
    return all_sum(x.to(device)).cpu() if world_size() > 1 else x


class _WatchedProgram(OperationProgram):
    """Knows which of the views that it made it left blank; crops of a blank sky do not count."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        super().__init__(operations)
        self._last: dict[str, tuple[Tensor, Tensor]] = {}

    def __call__(self, pixels: Tensor, params: ViewParams, slot: int) -> Tensor:
        found = super().__call__(pixels, params, slot)
        self._last[params.slots[slot]] = params.key[slot], _blank(found) & ~_blank(pixels)
        return found

    def shown(self, params: ViewParams, slots: Sequence[int], spreads: Tensor) -> None:
        """The same of views whose programs ran in compiled code."""
        before, after = (spreads < DEAD_CONTRAST**2).view(len(slots), -1, 2).unbind(-1)
        for position, slot in enumerate(slots):
            self._last[params.slots[slot]] = params.key[slot], after[position] & ~before[position]

    def blanked(self, params: ViewParams) -> Tensor:
        """`[V, N]` of views just made, which may have been candidates under other slots' names."""
        keys, blank = (torch.cat(parts) for parts in zip(*self._last.values(), strict=True))
        order = keys.argsort()
        return blank[order][torch.searchsorted(keys[order], send(params.key.contiguous(), keys.device))]


@torch.no_grad()
def _blank(pixels: Tensor) -> Tensor:
    flat = pixels.flatten(2)
    return (flat.square().mean(2) - flat.mean(2).square()).mean(1) < DEAD_CONTRAST**2  # faster than torch.var


class _Reversal(torch.autograd.Function):
    """The identity, but the gradient comes back negated (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return -grads[0]


def _plain(params: ViewParams) -> ViewParams:
    """The same crops without their programs."""
    return replace(params, extras={**params.extras, OP: torch.full_like(params.extras[OP], NOTHING)})


def _global(params: ViewParams) -> list[str]:
    return [slot for slot in params.slots if slot.startswith("global")]
