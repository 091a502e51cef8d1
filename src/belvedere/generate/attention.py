"""Attention by distance: softmax(-d(q_i, k_j)^2 / sqrt(d_h)) V with one projection for queries and keys.

ViTGAN (arXiv:2107.04589, section 3.2) after "The Lipschitz Constant of Self-Attention" (Kim et al., ICML 2021,
arXiv:2006.04710, section 3.2). Dot products are not Lipschitz. This is, with tied projections, a minus, and values that
know of a token no more than the distances do: with several heads a head's projection loses directions, and along them
a value may differ without bound between tokens that the head cannot tell apart. The paper's formula and its code differ
from that and from each other (spec patch_and_pretext 7), so both are options.

Plain matrix products throughout: the gradient penalty differentiates twice, which fused attention cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["l2", "published", "dot"]
Sign = Literal["minus", "plus"]
Values = Literal["head", "tokens"]

_NEAR = 1e-12
"""Squared distance below which the root is no longer differentiated."""


@dataclass(frozen=True)
class AttentionForm:
    """How tokens look at each other.

    Attributes:
        form: `l2`, distances; `published`, what the paper's code computes; `dot`, products.
        sign: of the distances: `minus` looks at what is near, `plus` (the paper) at what is far.
        tied: one projection for queries and keys.
        power: of the distances, 2 or 1 (the paper).
        values: what a head reads off a token: `head`, a square matrix times its own projection, as W_q^T W_v in Kim et
            al.'s equation 6; `tokens`, a projection of the token itself, as everybody else.
    """

    form: Form = "l2"
    sign: Sign = "minus"
    tied: bool = True
    power: Literal[1, 2] = 2
    values: Values = "head"

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """What the softmax is taken of, `[..., N, N]`, from queries and keys `[..., N, d]`."""
        found = {"published": published_scores, "dot": dot_scores}.get(self.form)
        scores = found(q, k) if found else self._distances(q, k)
        return scores / math.sqrt(q.shape[-1])

    def _distances(self, q: Tensor, k: Tensor) -> Tensor:
        squares = squared_distances(q, k)
        distance = squares if self.power == 2 else squares.clamp(min=_NEAR).sqrt()
        return -distance if self.sign == "minus" else distance


REFERENCE = AttentionForm(form="published", tied=False, values="tokens")
"""What the paper's published code runs."""


def squared_distances(q: Tensor, k: Tensor) -> Tensor:
    """|q_i - k_j|^2, `[..., N, N]`, from `[..., N, d]`."""
    return q.square().sum(-1)[..., :, None] - 2 * (q @ k.mT) + k.square().sum(-1)[..., None, :]


def published_scores(q: Tensor, k: Tensor) -> Tensor:
    """The published code's: means in place of sums, the queries' norms on both sides."""
    norms = q.square().mean(-1)
    return norms[..., :, None] - 2 * (q @ k.mT) + norms[..., None, :]


def dot_scores(q: Tensor, k: Tensor) -> Tensor:
    """A plain transformer's."""
    return q @ k.mT


class Attention(nn.Module):
    """Multi-head self-attention of any form.

    Attributes:
        temperature: learned factor of the scores that the published code has, else None.
    """

    def __init__(self, dim: int, heads: int, form: AttentionForm, linear: Callable[[int, int], nn.Linear]) -> None:
        """Make the projections with `linear(in, out)`.

        Raises:
            ValueError: the heads do not divide the width, or values of the head without one projection for it.
        """
        super().__init__()
        if dim % heads:
            raise ValueError(f"{heads} heads do not divide a width of {dim}")
        if form.values == "head" and not form.tied:
            raise ValueError("values of the head need tied projections: of two, neither is the head's own")
        self.heads, self.form = heads, form
        self.project = linear(dim, dim * (1 + (not form.tied) + (form.values == "tokens")))
        self.values = nn.ModuleList(linear(dim // heads, dim // heads) for _ in range(heads * (form.values == "head")))
        self.out = linear(dim, dim)
        self.temperature = nn.Parameter(torch.ones(1)) if form.form == "published" else None

    def heads_out(self, x: Tensor) -> Tensor:
        """Tokens `[B, N, dim]` to what the heads read, side by side, before the output projection."""
        projected = self.project(x).split(x.shape[-1], -1)
        queries, *rest = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        if self.values:
            values = torch.stack([own(queries[:, head]) for head, own in enumerate(self.values)], 1)
        else:
            values = rest.pop()
        scores = self.form.scores(queries, rest.pop() if rest else queries)
        if self.temperature is not None:
            scores = scores * self.temperature
        read: Tensor = scores.softmax(-1) @ values
        return read.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[B, N, dim]` to tokens."""
        projected: Tensor = self.out(self.heads_out(x))
        return projected
