"""What crosses processes: gathers, reductions and batch statistics that stay right for uneven batches.

One rule (spec objectives 1.10): the loss of a process is its local sum x processes / global count, gradients are
averaged, and every exchange is differentiable; then W processes with B/W images are one process with B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """Number of processes, 1 outside a distributed run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process' number, 0 outside a distributed run."""
    return dist.get_rank() if world_size() > 1 else 0


def all_sum(x: Tensor) -> Tensor:
    """Sum over processes, without gradient. Any shape, the same on every process."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


# What this process was when it left the others; None as long as it has not.
_rank_before_parting: int | None = None
# The group that it left. torch 2.6 may wait for ever when one goes whose threads still let go of what they had reduced.
_left: dist.ProcessGroup | None = None


def part() -> None:
    """Wait for all processes and leave the group: what follows is each one's own, and collective calls are no more."""
    global _rank_before_parting, _left
    if world_size() > 1:
        _rank_before_parting, _left = rank(), dist.group.WORLD
        dist.barrier()
        dist.destroy_process_group()


def has_parted() -> bool:
    """Whether this process was one of several and is on its own now."""
    return _rank_before_parting is not None


def leads() -> bool:
    """Whether this process prints and writes for all, also after they parted."""
    return (_rank_before_parting if _rank_before_parting is not None else rank()) == 0


def holds_for_all(fact: bool, device: torch.device | str) -> bool:
    """Whether something holds for every process, the same answer on all; `device` is the processes' own."""
    return bool(all_sum(torch.tensor(float(fact), device=device)) == world_size())


def gather_blocks(block: Tensor) -> list[Tensor]:
    """Everyone's tensor of one common shape, in rank order, without gradient."""
    if world_size() == 1:
        return [block]
    block = block.contiguous()
    everyone = [torch.empty_like(block) for _ in range(world_size())]
    dist.all_gather(everyone, block)
    return everyone


def own_part(x: Tensor) -> Tensor:
    """What this process holds of a tensor, in the tensor's own storage: its part of a sharded one, all of any other."""
    return x.to_local() if isinstance(x, DTensor) else x


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """(P,) 2-norms of P tensors as a whole; all processes call it where some are sharded over them."""
    if not tensors:
        return torch.zeros(0)
    own = torch.stack(torch._foreach_norm([own_part(x) for x in tensors]))
    sharded = [isinstance(x, DTensor) for x in tensors]
    if not any(sharded):
        return own
    # Not by sums of squares, which overflow first.
    joined = torch.linalg.vector_norm(torch.stack(gather_blocks(own)), dim=0)
    return torch.where(torch.tensor(sharded, device=own.device), joined, own)


def counts(n: int, device: torch.device) -> list[int]:
    """Local batch sizes of all processes, in rank order."""
    return [int(c) for c in gather_blocks(torch.tensor([n], device=device))]


class _GatherRows(torch.autograd.Function):
    """Rank-ordered concatenation of rows; backward sums everyone's gradient and returns the own rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        padded = x.new_zeros((max(sizes), *x.shape[1:]))
        padded[: len(x)] = x
        return torch.cat([rows[:n] for rows, n in zip(gather_blocks(padded), sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        total = all_sum(grads[0].contiguous())
        start = sum(ctx.sizes[: rank()])
        return total[start : start + ctx.sizes[rank()]], None


def gather_rows(x: Tensor) -> tuple[Tensor, int]:
    """Rows of all processes in rank order, differentiable, local counts may differ.

    Args:
        x: (n, ...) local rows.

    Returns:
        (sum of n, ...) all rows, and the position of the first local row among them.
    """
    if world_size() == 1:
        return x, 0
    sizes = counts(len(x), x.device)
    return _GatherRows.apply(x, sizes), sum(sizes[: rank()])


class _BatchNormAcross(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the joined batch of all processes, on any device (torch's own refuses the CPU)."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        x = input.float()
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        own = x.mean(dims)
        spread = ((x - own.view(shape)) ** 2).sum(dims)
        count = torch.full_like(own, x.numel() / x.shape[1])
        # Each process' mean and spread about it are joined, because E[x^2] - E[x]^2 would cancel.
        means, spreads, counts = gather_rows(torch.stack([own, spread, count]).unsqueeze(0))[0].unbind(1)
        n = counts.sum(0)
        mean = (counts * means).sum(0) / n
        variance = (spreads.sum(0) + (counts * (means - mean) ** 2).sum(0)) / n
        self._update_running(mean.detach(), variance.detach(), n[0].detach())
        y = (x - mean.view(shape)) * torch.rsqrt(variance.view(shape) + self.eps)
        if self.weight is not None:
            y = y * self.weight.view(shape)
        if self.bias is not None:
            y = y + self.bias.view(shape)
        normed: Tensor = y.to(input.dtype)
        return normed

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor, n: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * n / (n - 1).clamp(min=1)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def has_batchnorm(module: nn.Module) -> bool:
    """Whether batch statistics are on the path, so that views must not share a forward."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())


def join_batchnorm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm below `module` by one over the joined batch of all processes; its tensors are kept."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            joined = _BatchNormAcross(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            joined.weight, joined.bias = child.weight, child.bias
            joined.running_mean, joined.running_var = child.running_mean, child.running_var
            joined.num_batches_tracked = child.num_batches_tracked
            joined.training = child.training
            setattr(module, name, joined)
        else:
            join_batchnorm(child)
    return module
