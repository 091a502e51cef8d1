"""Projection heads: DINO's prototypes (spec 5.3), BatchNorm MLPs of SimCLR, SimSiam and MoCo v3 (2.3, 3.2, 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.objectives.contract import Output


class WeightNormLinear(nn.Module):
    """Linear without bias whose row k is g_k v_k / ||v_k||; parameter names are the official checkpoints'."""

    def __init__(self, in_features: int, out_features: int, train_norm: bool) -> None:
        """`train_norm` False freezes every g at 1, so that the output of a unit vector is a cosine."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=train_norm)
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(x, self.weight_g * self.weight_v / self.weight_v.norm(dim=1, keepdim=True))


class PrototypeHead(nn.Module):
    """DINO's head: an MLP to a bottleneck, L2 normalisation, weight-normalised prototypes (spec 5.3)."""

    def __init__(
        self,
        dim: int,
        prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        use_bn: bool = False,
        norm_last_layer: bool = True,
    ) -> None:
        """An MLP dim - hidden - ... - bottleneck of `layers` Linears; `use_bn` puts a BatchNorm before each GELU."""
        super().__init__()
        self.mlp = _prototype_mlp(dim, hidden, bottleneck, layers, use_bn)
        for module in self.mlp.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.last_layer = WeightNormLinear(bottleneck, prototypes, train_norm=not norm_last_layer)

    def bottleneck(self, x: Tensor) -> Tensor:
        """(..., dim) tokens -> (..., bottleneck) unit vectors."""
        return F.normalize(self.mlp(x), dim=-1, eps=1e-12)

    def project(self, x: Tensor) -> Tensor:
        """(..., dim) tokens -> (..., prototypes) logits."""
        logits: Tensor = self.last_layer(self.bottleneck(x))
        return logits

    def forward(self, features: Features) -> Output:
        """{"cls": (N, prototypes)} logits of the class token."""
        return {"cls": self.project(features.cls)}


def _prototype_mlp(dim: int, hidden: int, bottleneck: int, layers: int, use_bn: bool) -> nn.Module:
    if layers == 1:
        return nn.Linear(dim, bottleneck)
    widths = [dim, *[hidden] * (layers - 1)]
    modules: list[nn.Module] = []
    for i in range(layers - 1):
        modules.append(nn.Linear(widths[i], hidden))
        if use_bn:
            modules.append(nn.BatchNorm1d(hidden))
        modules.append(nn.GELU())
    return nn.Sequential(*modules, nn.Linear(hidden, bottleneck))


class SimClrHead(nn.Module):
    """SimCLR's projector: bias-free Linears, each followed by a BatchNorm, the last one's without shift (spec 2.3)."""

    def __init__(self, dim: int, hidden: int, out: int, layers: int) -> None:
        """`layers` Linears dim - hidden - ... - out."""
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1), out]
        modules: list[nn.Module] = []
        for i in range(layers):
            linear = nn.Linear(widths[i], widths[i + 1], bias=False)
            nn.init.normal_(linear.weight, std=0.01)
            modules += [linear, nn.BatchNorm1d(widths[i + 1]), nn.ReLU()]
        modules.pop()
        # The shift stays at 0 as a frozen tensor: BatchNorm kernels want both or neither.
        modules[-1].get_parameter("bias").requires_grad_(False)
        self.mlp = nn.Sequential(*modules)

    def forward(self, features: Features) -> Output:
        """{"cls": (N, out)}, not normalised."""
        return {"cls": self.mlp(features.cls)}


Last = Literal["norm", "bias", "bare"]


def batchnorm_mlp(widths: Sequence[int], last: Last) -> nn.Sequential:
    """Bias-free Linears through `widths`, a BatchNorm and a ReLU after each but the last.

    Args:
        last: what the last Linear has: "norm", a BatchNorm without scale and shift; "bias", a bias; "bare", nothing.
    """
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        modules += [nn.Linear(fan_in, fan_out, bias=False), nn.BatchNorm1d(fan_out), nn.ReLU()]
    modules.append(nn.Linear(widths[-2], widths[-1], bias=last == "bias"))
    if last == "norm":
        modules.append(nn.BatchNorm1d(widths[-1], affine=False))
    return nn.Sequential(*modules)


def plain_mlp(
    widths: Sequence[int], activation: type[nn.Module] = nn.GELU, *, bias: bool = True, dropout: float = 0.0
) -> nn.Sequential:
    """Linears through `widths`, after each but the last an activation and, where asked for, a dropout."""
    modules: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        modules += [nn.Linear(fan_in, fan_out, bias=bias), activation()]
        modules += [nn.Dropout(dropout)] if dropout else []
    return nn.Sequential(*modules, nn.Linear(widths[-2], widths[-1], bias=bias))


class SimSiamHead(nn.Module):
    """SimSiam's projector, and its predictor with a bottleneck (spec 3.2)."""

    def __init__(self, dim: int, hidden: int, out: int, layers: int, bottleneck: int) -> None:
        """A projector dim - hidden - ... - out of `layers` Linears, a predictor out - bottleneck - out."""
        super().__init__()
        self.projector = batchnorm_mlp([dim, *[hidden] * (layers - 1), out], last="norm")
        self.predictor = batchnorm_mlp([out, bottleneck, out], last="bias")

    def forward(self, features: Features) -> Output:
        """{"z": (N, out) projections, "p": (N, out) predictions}, not normalised."""
        z = self.projector(features.cls)
        return {"z": z, "p": self.predictor(z)}


class MoCoHead(nn.Module):
    """MoCo v3's projector, and the predictor that only the queries pass (spec 4.3)."""

    def __init__(self, dim: int, hidden: int, out: int, layers: int, predictor: Last | None) -> None:
        """A projector dim - hidden - ... - out of `layers` Linears.

        Args:
            predictor: how the predictor out - hidden - out ends; None leaves it out (the momentum encoder's head).
        """
        super().__init__()
        self.projector = batchnorm_mlp([dim, *[hidden] * (layers - 1), out], last="norm")
        self.predictor = nn.Identity() if predictor is None else batchnorm_mlp([out, hidden, out], last=predictor)

    def forward(self, features: Features) -> Output:
        """{"cls": (N, out)} queries, or keys without a predictor; not normalised."""
        return {"cls": self.predictor(self.projector(features.cls))}


class SiTHead(nn.Module):
    """SiT v3's projector, without a predictor: Linears with biases and BatchNorms; ReLU inside, GELU before the last.

    Spec patch_and_pretext 4; the last BatchNorm has neither scale nor shift.
    """

    def __init__(self, dim: int, hidden: int, out: int, layers: int) -> None:
        """`layers` Linears dim - hidden - ... - out."""
        super().__init__()
        widths = [dim, *[hidden] * (layers - 1)]
        modules: list[nn.Module] = []
        for i in range(layers - 1):
            modules += [
                nn.Linear(widths[i], hidden),
                nn.BatchNorm1d(hidden),
                nn.GELU() if i == layers - 2 else nn.ReLU(),
            ]
        self.mlp = nn.Sequential(*modules, nn.Linear(widths[-1], out), nn.BatchNorm1d(out, affine=False))

    def forward(self, features: Features) -> Output:
        """{"cls": (N, out)}, not normalised."""
        return {"cls": self.mlp(features.cls)}


class PlainHead(nn.Module):
    """Projectors without BatchNorm: SiT v1's and v2's bias-free Linears with GELUs (spec patch_and_pretext 4), and
    ScatSimCLR's Linears with biases and ReLUs (5.1)."""

    def __init__(
        self,
        dim: int,
        hidden: int,
        out: int,
        layers: int,
        activation: type[nn.Module] = nn.GELU,
        bias: bool = False,
    ) -> None:
        """`layers` Linears dim - hidden - ... - out."""
        super().__init__()
        self.mlp = plain_mlp([dim, *[hidden] * (layers - 1), out], activation, bias=bias)

    def forward(self, features: Features) -> Output:
        """{"cls": (N, out)}, not normalised."""
        return {"cls": self.mlp(features.cls)}
