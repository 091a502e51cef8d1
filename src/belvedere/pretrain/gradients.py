"""Norms of a step's gradients by where in the network they arise: trouble shows at the patches first (objectives 8)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from belvedere.distributed import norms

PATCHES = "patch_embed"


@dataclass(frozen=True)
class Gradients:
    """(P,) norms before clipping of the tensors that have a gradient, and the group of each ("" for none)."""

    norms: Tensor
    groups: list[str]

    @property
    def total(self) -> Tensor:
        """The norm of all together."""
        total: Tensor = torch.linalg.vector_norm(self.norms)
        return total

    def of(self, *groups: str) -> dict[str, Tensor]:
        """Group -> norm, for those of the groups that have a gradient."""
        places = {name: [i for i, group in enumerate(self.groups) if group == name] for name in groups}
        return {
            name: torch.linalg.vector_norm(torch.stack([self.norms[i] for i in place]))
            for name, place in places.items()
            if place
        }

    def by_group(self) -> dict[str, Tensor]:
        """The norms of all groups."""
        return self.of(*dict.fromkeys(group for group in self.groups if group))

    def clip_rate(self, tensor_limit: float, global_limit: float) -> Tensor:
        """Share of tensors longer than their own limit, or whether all together pass theirs; a limit of 0 is none."""
        if tensor_limit:
            return (self.norms > tensor_limit).float().mean()
        return (self.total > global_limit).float()


class GradientGroups:
    """Sorts the parameters of a module that holds `student.backbone` and `student.head` into the groups of spec 8.

    Groups: patch_embed, pos_embed, first_block, middle_block, last_block (of transformers), head_body, last_layer (what
    follows the head's last matrix included). In a network of two blocks none is the middle one, of one it is the last.
    """

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        blocks = [int(name.partition(".blocks.")[2].split(".")[0]) for name in named if ".blocks." in name]
        last = max(blocks, default=0)
        self._block_names = {last // 2: "middle_block", 0: "first_block", last: "last_block"}
        matrices = [name for name, p in named.items() if name.startswith("student.head.") and p.ndim > 1]
        self._last_layer = matrices[-1].rpartition(".")[0] + "." if matrices else "student.head."
        self._parameters = [(p, self._group(name)) for name, p in named.items()]

    def _group(self, name: str) -> str:
        if name.startswith("student.head."):
            return "last_layer" if name.startswith(self._last_layer) else "head_body"
        if ".blocks." in name:
            return self._block_names.get(int(name.partition(".blocks.")[2].split(".")[0]), "")
        return next((group for group in (PATCHES, "pos_embed") if group in name), "")

    @torch.no_grad()
    def patches(self) -> Tensor | None:
        """(n,) a copy of the weights of the patch embedding, where they are trained."""
        found = [p.flatten() for p, group in self._parameters if group == PATCHES and p.requires_grad]
        return torch.cat(found) if found else None

    @torch.no_grad()
    def norms(self) -> Gradients:
        """The norms of the gradients that there are now."""
        grads = [(p.grad, group) for p, group in self._parameters if p.grad is not None]
        return Gradients(norms([grad for grad, _ in grads]), [group for _, group in grads])
