"""The law a learned policy draws from (spec view_policies 2.2), and its exported form.

    o1, o2 ~ (1 - .02) softmax(pi) + .02 / K     o1 always, o2 with probability sigmoid(rho)
    m_o    = sigmoid(mu_o + s eps),  eps ~ N(0, 1)     the sign of two-sided operations is a coin

Magnitudes are random because a fixed one has a useless derivative (spec 2.3 d). All slots share one law.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError
from torch import Tensor, nn

from belvedere.errors import UserError
from belvedere.views.operations import Operation, Space, space
from belvedere.views.program import NOTHING, Draws

STAGES = 2
MAGNITUDE_START = -1.2
SPREAD = 0.5
RHO_LIMIT = 3.0
MU_LIMITS = (-4.0, 3.0)
# A magnitude's logit this near a limit stands at it: the optimiser pushes it back a little now and then.
NEAR_LIMIT = 0.05


class Law(nn.Module):
    """psi = (pi `[K]` operation logits, rho `[]` logit of a second operation, mu `[K]` magnitude logits)."""

    def __init__(self, operations: Sequence[Operation], spread: float = SPREAD, floor: float = 0.02) -> None:
        """Uniform operations, a second one half of the time, magnitudes around sigmoid(-1.2) = .23 (spec 2.7)."""
        super().__init__()
        self.operations = tuple(operations)
        self.spread, self.floor = spread, floor
        count = len(self.operations)
        self.pi = nn.Parameter(torch.zeros(count))
        self.rho = nn.Parameter(torch.zeros(()))
        self.mu = nn.Parameter(torch.full((count,), MAGNITUDE_START))
        self.smooth = torch.tensor([operation.smooth for operation in self.operations])

    def probabilities(self) -> Tensor:
        """`[K]` probability of each operation at one stage."""
        return (1 - self.floor) * self.pi.softmax(0) + self.floor / len(self.pi)

    @torch.no_grad()
    def draw(self, numbers: Draws) -> tuple[Tensor, Tensor]:
        """Operations (NOTHING where the second is left out) and magnitude logits, `[V, N, 2]` each."""
        cumulative = self.probabilities().cumsum(0)
        op = torch.searchsorted(cumulative, numbers.which.contiguous(), right=True).clamp(max=len(self.pi) - 1)
        logit = self.mu[op] + self.spread * numbers.noise
        op[..., 1] = op[..., 1].where(numbers.further[..., 1] < self.rho.sigmoid(), NOTHING)
        return op, logit

    def magnitude(self, op: Tensor, logit: Tensor) -> Tensor:
        """sigmoid(`logit`), carrying the derivative by mu where the operation is smooth."""
        which = op.clamp(min=0)
        through = (self.mu - self.mu.detach()) * self.smooth  # zero, but for its derivative
        return (logit + through[which]).sigmoid()

    def log_prob(self, op: Tensor, logit: Tensor, pathwise: bool = False) -> Tensor:
        """Log density `[V, N]` of what `draw` gave, up to a constant; only applied stages count.

        With `pathwise`, magnitudes of smooth operations are left out: their derivative comes through the pixels.
        """
        applied, which = op != NOTHING, op.clamp(min=0)
        amount = -(((logit - self.mu[which]) / self.spread) ** 2) / 2
        if pathwise:
            amount = amount * ~self.smooth[which]
        stages = (self.probabilities().log()[which] + amount) * applied
        return stages.sum(-1) + F.logsigmoid(torch.where(applied[..., 1], self.rho, -self.rho))

    @torch.no_grad()
    def clamp(self) -> None:
        """Back into the bounds of spec 2.7; the softmax does not see that pi is centred."""
        self.pi.sub_(self.pi.mean())
        self.rho.clamp_(-RHO_LIMIT, RHO_LIMIT)
        self.mu.clamp_(*MU_LIMITS)

    @torch.no_grad()
    def told(self) -> dict[str, float]:
        """Probability and mean magnitude of every operation, how often a second one follows, and the entropy (nats).

        `at_bound` is the share of the operations drawn whose magnitude stands at a limit.
        """
        probabilities = self.probabilities()
        magnitudes = mean_magnitude(self.mu, self.spread)
        found = {"apply": float(self.rho.sigmoid()), "entropy": float(torch.special.entr(probabilities).sum())}
        low, high = MU_LIMITS
        held = (self.mu < low + NEAR_LIMIT) | (self.mu > high - NEAR_LIMIT)
        found["at_bound"] = float((probabilities * held).sum())
        for operation, p, m in zip(self.operations, probabilities.tolist(), magnitudes.tolist(), strict=True):
            found |= {f"p/{operation.name}": p, f"m/{operation.name}": m}
        return found


def mean_magnitude(mu: Tensor, spread: float = SPREAD) -> Tensor:
    """`[K]` mean magnitudes of logits around mu, at 64 equally likely quantiles of eps."""
    eps = torch.special.ndtri((torch.arange(64) + 0.5) / 64)
    mean: Tensor = (mu[:, None] + spread * eps).sigmoid().mean(1)
    return mean


class ExportedLaw(BaseModel):
    """A law as `policy.json` holds it: logits by operation, `rho`, spread `s` of the magnitudes and mixture floor."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["learned"] = "learned"
    space: Space
    pi: dict[str, FiniteFloat]
    rho: FiniteFloat
    mu: dict[str, FiniteFloat]
    s: float = Field(gt=0, allow_inf_nan=False)
    floor: float = Field(ge=0, lt=1)


def export(law: Law, name: Space) -> dict[str, Any]:
    """Plain values that `read` makes the same law from, bit for bit."""
    names = [operation.name for operation in law.operations]
    return ExportedLaw(
        space=name,
        pi=dict(zip(names, law.pi.tolist(), strict=True)),
        rho=law.rho.item(),
        mu=dict(zip(names, law.mu.tolist(), strict=True)),
        s=law.spread,
        floor=law.floor,
    ).model_dump()


def read(path: Path, channels: int) -> tuple[Law, Space]:
    """The law in an exported policy's file, and the name of its space.

    Raises:
        UserError: the file cannot be read, is no exported policy, or one for images of other channels.
    """
    try:
        given = ExportedLaw.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"views.exported={path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = ": ".join([*(str(part) for part in first["loc"]), first["msg"]])
        raise UserError(f"views.exported={path}: is no policy.json of a run with learned views ({why})") from None
    law = Law(space(given.space, channels), given.s, given.floor)
    names = [operation.name for operation in law.operations]
    if not set(names) == given.pi.keys() == given.mu.keys():
        raise UserError(
            f"views.exported={path}: has operations {', '.join(given.pi)}, but these images of {channels} channels "
            f"take {', '.join(names)}; learn a policy on such images"
        )
    with torch.no_grad():
        law.pi.copy_(torch.tensor([given.pi[name] for name in names]))
        law.rho.fill_(given.rho)
        law.mu.copy_(torch.tensor([given.mu[name] for name in names]))
    return law, given.space
