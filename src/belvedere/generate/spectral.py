"""Improved spectral normalisation: a layer keeps the spectral norm that it started with (ViTGAN, section 3.2).

    W_isn = sigma(W_init) * W / sigma(W)

Plain spectral normalisation (norm 1) makes a transformer's discriminator too weak. The published code estimates sigma
by one step of the power iteration from a vector that stays what it was at the start, far below the true norm, and
forgets sigma(W_init) when a checkpoint is read. Here the vector goes on from step to step and is saved, and so is
sigma(W_init).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

EPS, PUBLISHED_EPS = 1e-12, 1e-4
ITERATIONS = 3
"""Power iterations of every forward in training; the vector starts at the true one, and has only to follow."""


class ImprovedSpectralNorm(nn.Module):
    """The parametrisation of one weight `[out, in]`.

    `u`, the left singular vector, moves in training only; in evaluation a forward changes nothing. `published` is the
    published code: one step from a random `u` that never moves, with the gradient through that step.
    """

    sigma_init: Tensor
    u: Tensor

    def __init__(self, weight: Tensor, *, published: bool = False) -> None:
        """Measure the norm of the weight as it stands, exactly."""
        super().__init__()
        self.published = published
        with torch.no_grad():
            left, values, _ = torch.linalg.svd(weight, full_matrices=False)
            first = unit(torch.randn(len(weight))) if published else left[:, 0]
        self.register_buffer("sigma_init", values[0].clone())
        self.register_buffer("u", first.clone())

    def forward(self, weight: Tensor) -> Tensor:
        """The weight at its first spectral norm; the gradient knows that the norm depends on the weight."""
        if self.published:
            u, v = power_step(weight, self.u, PUBLISHED_EPS)
        else:
            with torch.no_grad():
                if self.training:
                    self.settle(weight, ITERATIONS)
                # A copy: the vector moves on before this forward is differentiated.
                u, v = power_step(weight, self.u.clone())
        return self.sigma_init * weight / torch.dot(u, weight @ v)

    @torch.no_grad()
    def settle(self, weight: Tensor, iterations: int) -> None:
        """Bring the vector to that of the weight."""
        for _ in range(iterations):
            self.u.copy_(power_step(weight, self.u)[0])


def power_step(weight: Tensor, u: Tensor, eps: float = EPS) -> tuple[Tensor, Tensor]:
    """One step of the power iteration from `u [out]`: the next left and right vectors."""
    v = unit(weight.mT @ u, eps)
    return unit(weight @ v, eps), v


def unit(x: Tensor, eps: float = EPS) -> Tensor:
    """A vector at length 1, or 0."""
    length: Tensor = torch.linalg.vector_norm(x)
    return x / (length + eps)


def spectral(linear: nn.Linear, *, published: bool = False) -> nn.Linear:
    """Normalise a linear layer's weight from now on; its names in the checkpoint are torch's of a parametrisation."""
    norm = ImprovedSpectralNorm(linear.weight, published=published)
    # unsafe: torch would ask for one forward, whose result cannot differ in shape.
    parametrize.register_parametrization(linear, "weight", norm, unsafe=True)
    return linear


def settle(network: nn.Module, iterations: int = 50) -> None:
    """Bring the estimates of a whole network to its weights: averaged weights were never run in training."""
    for module in network.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(module[0], ImprovedSpectralNorm):
            module[0].settle(module.original, iterations)
