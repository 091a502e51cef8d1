"""Optimisers, the papers' parameter groups, and what happens to gradients before a step (spec objectives 1.8, 1.9)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from belvedere.distributed import norms, own_part
from belvedere.errors import UserError
from belvedere.plugins import nearest

Decay = Literal["matrices", "all"]


class Lars(torch.optim.Optimizer):
    """LARS: momentum SGD whose step on every matrix is scaled by eta ||w|| / ||g|| (spec 1.9).

    1-D tensors get plain momentum SGD without decay.

    Args:
        weight_decay: added to the gradient of matrices, before the scale is taken.
        eta: trust coefficient.
        lr_in_momentum: True as the official SimCLR code, v <- mu v + lr g, w <- w - v; False as the PyTorch
            repositories, v <- mu v + g, w <- w - lr v. They differ as soon as the learning rate moves.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        eta: float = 0.001,
        lr_in_momentum: bool = True,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "eta": eta}
        super().__init__(params, {**defaults, "lr_in_momentum": lr_in_momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step on all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if params := [p for p in group["params"] if p.grad is not None]:
                self._move(params, group)
        return loss

    def _move(self, params: list[Tensor], group: dict[str, Any]) -> None:
        grads: list[Any] = [p.grad for p in params]
        if matrices := [k for k, p in enumerate(params) if p.ndim > 1]:
            weights = [params[k] for k in matrices]
            pulled = torch._foreach_add([grads[k] for k in matrices], weights, alpha=group["weight_decay"])
            trust = _trust(norms(weights), norms(pulled), group["eta"])
            scaled = torch._foreach_mul([own_part(grad) for grad in pulled], list(trust))
            for k, grad in zip(matrices, scaled, strict=True):
                grads[k] = grad
        for p in params:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        velocities = [own_part(self.state[p]["velocity"]) for p in params]
        inside, outside = (group["lr"], 1.0) if group["lr_in_momentum"] else (1.0, group["lr"])
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, [own_part(grad) for grad in grads], alpha=inside)
        torch._foreach_sub_([own_part(p) for p in params], velocities, alpha=outside)


def _trust(weight: Tensor, grad: Tensor, eta: float) -> Tensor:
    return torch.where((weight > 0) & (grad > 0), eta * weight / grad, 1.0)


def _adamw(groups: list[dict[str, Any]], beta2: float) -> torch.optim.Optimizer:
    """AdamW in one pass over a tensor, instead of one for each of its operations; sharded tensors have no such pass."""
    fused = [{**group, "fused": not isinstance(group["params"][0], DTensor)} for group in groups]
    return torch.optim.AdamW(fused, betas=(0.9, beta2), eps=1e-8)


_OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]]], torch.optim.Optimizer]] = {
    "adamw": lambda groups: _adamw(groups, 0.999),
    "adamw_095": lambda groups: _adamw(groups, 0.95),
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "lars": lambda groups: Lars(groups, lr=0.0, lr_in_momentum=True),
    "lars_torch": lambda groups: Lars(groups, lr=0.0, lr_in_momentum=False),
}


def build_optimizer(
    name: str,
    module: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    decay: Decay,
    fixed_lr_prefixes: Sequence[str] = (),
    lr_scales: Mapping[str, float] | None = None,
    bare_prefixes: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """The optimiser over the parameters of `module` that are trained.

    Args:
        name: "adamw" (betas .9, .999), "adamw_095" (betas .9, .95: MAE's), "sgd" (momentum .9), "lars" (official
            SimCLR's), "lars_torch" (the PyTorch repositories').
        decay, fixed_lr_prefixes, lr_scales, bare_prefixes: see `parameter_groups`.

    Raises:
        UserError: for an unknown name.
    """
    if name not in _OPTIMIZERS:
        raise UserError(f"unknown train.optimizer '{name}': {nearest(name, list(_OPTIMIZERS))}")
    groups = parameter_groups(module, lr, weight_decay, decay, fixed_lr_prefixes, lr_scales, bare_prefixes)
    return _OPTIMIZERS[name](groups)


def parameter_groups(
    module: nn.Module,
    lr: float,
    weight_decay: float,
    decay: Decay,
    fixed_lr_prefixes: Sequence[str] = (),
    lr_scales: Mapping[str, float] | None = None,
    bare_prefixes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Trained parameters by whether they decay and how their learning rate is scheduled (spec 1.8).

    Args:
        decay: "matrices": all but 1-D tensors and biases, so tokens, positions and weight-norm gains decay, as in DINO
            and iBOT; "all": everything, as in MoCo v3 and SimSiam.
        fixed_lr_prefixes: parameters whose name starts so keep a constant learning rate (SimSiam's predictor).
        lr_scales: parameter -> factor of its learning rate (`layer_scales`); 1 for those that are not named.
        bare_prefixes: parameters whose name starts so never decay (learned weights of losses).

    Returns:
        Groups with "decayed", "fixed_lr" and "lr_scale", which tell the loop what to set each step; empty ones are
        left out. Sharded parameters are in groups of their own, in the same order as if none were.
    """
    scales = lr_scales or {}
    groups: dict[tuple[bool, bool, float], list[Tensor]] = {}
    for name, p in module.named_parameters():
        if p.requires_grad:
            decayed = decay == "all" or (p.ndim > 1 and not name.endswith(".bias"))
            decayed = decayed and not name.startswith(tuple(bare_prefixes))
            fixed = name.startswith(tuple(fixed_lr_prefixes))
            groups.setdefault((not decayed, fixed, scales.get(name, 1.0)), []).append(p)
    return [
        {
            "params": run,
            "lr": lr * scale,
            "weight_decay": 0.0 if bare else weight_decay,
            "decayed": not bare,
            "fixed_lr": fixed,
            "lr_scale": scale,
        }
        for (bare, fixed, scale), params in sorted(groups.items(), key=lambda item: item[0])
        # An optimiser moves a group at once, but not parts of tensors beside whole ones.
        for run in ([*some] for _, some in groupby(params, key=lambda p: isinstance(p, DTensor)))
    ]


def layer_scales(model: nn.Module, decay: float, prefix: str = "") -> dict[str, float]:
    """Layer-wise learning-rate decay as BEiT's: decay^n for a parameter n layers below the heads (arXiv:2106.08254).

    Args:
        model: a timm model without classifier, whose own matcher says which layer a parameter belongs to.
        decay: in (0, 1]; 1 is none.
        prefix: of the model's parameters in the names that are returned.
    """
    if decay == 1:
        return {}
    matcher: Any = model.group_matcher
    layers: dict[str, int] = group_parameters(model, matcher(coarse=False), reverse=True)
    heads = max(layers.values()) + 1
    return {f"{prefix}{name}": decay ** (heads - layer) for name, layer in layers.items()}


@torch.no_grad()
def clip_per_tensor(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """DINO's clipping: every tensor's gradient by itself is shortened to norm `limit` (spec 1.8).

    Returns:
        (P,) norms before clipping of the gradients that there are; (0,) when there is none.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(0)
    found = norms(grads)
    torch._foreach_mul_([own_part(grad) for grad in grads], list((limit / (found + 1e-6)).clamp(max=1.0)))
    return found


@torch.no_grad()
def clip_global_norm(parameters: Iterable[Tensor], limit: float) -> Tensor:
    """The usual clipping: the norm of all gradients together is at most `limit`. Returns that norm before clipping.

    As torch's own, which does not know of sharded tensors beside whole ones.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return torch.zeros(())
    total: Tensor = torch.linalg.vector_norm(norms(grads))
    torch._foreach_mul_([own_part(grad) for grad in grads], (limit / (total + 1e-6)).clamp(max=1.0))
    return total


def cancel_frozen(module: nn.Module, prefixes: Sequence[str]) -> None:
    """Take away the gradients of parameters whose name starts with a prefix.

    None and not zero: an optimiser skips the tensor altogether, decay included (spec 5.4).
    """
    for name, p in module.named_parameters():
        if name.startswith(tuple(prefixes)):
            p.grad = None
