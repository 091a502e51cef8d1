"""Readings: which vector of an image is taken out of one forward pass (spec evaluation, section 0).

A reading is one part or two parts side by side. The parts are "cls", the backbone's own global vector; "avg", the mean
of its normed patches; and "last4", the global vectors of its last four blocks, each through the final norm, the last
block's at the end (DINO, arXiv:2104.14294; for a Swin the means of the blocks' maps, EsViT, arXiv:2106.09785). DINO's
own code interleaves cls and avg channel by channel, which is the same classifier with its columns in another order.
"gem", only beside "cls", is the generalised mean of the normed patches (GeM, Radenovic et al., arXiv:1711.02512,
equation 3), which DINO detects copies with.
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from belvedere.backbones.contract import Backbone, Features
from belvedere.errors import UserError
from belvedere.schema import Reading

__all__ = ["GEM_EPS", "GEM_POWER", "LAST", "Reading", "gem", "possible_readings", "read", "settle", "widest", "width"]
LAST = 4
GEM_POWER, GEM_EPS = 4, 1e-6


def possible_readings(backbone: Backbone) -> tuple[Reading, ...]:
    """The readings that a backbone has, without "auto".

    Without a global vector of its own the last block's vector is "avg", and nothing is to be set beside it.
    """
    widths = _widths(backbone)
    named: tuple[Reading, ...] = get_args(Reading)
    return tuple(one for one in named if set(one.split("+")) <= set(widths) and ("+" not in one or "cls" in widths))


def settle(backbone: Backbone, reading: Reading) -> Reading:
    """The reading itself; "auto" is "cls" where there is one, else "avg".

    Raises:
        UserError: when there is no such reading, or the backbone has it not.
    """
    if reading not in get_args(Reading):
        raise UserError(f"reading={reading}: there is no such reading; take one of {', '.join(get_args(Reading))}")
    possible = possible_readings(backbone)
    if reading == "auto":
        return "cls" if "cls" in possible else "avg"
    if reading not in possible:
        blocks = "last4" in reading and "last4" not in possible
        lacks = f"vectors of its last {LAST} blocks to give" if blocks else "class token"
        raise UserError(f"reading={reading}: {backbone.architecture} has no {lacks}, use reading=avg")
    return reading


def width(backbone: Backbone, reading: Reading) -> int:
    """How many numbers an image has in a reading that is not "auto"."""
    return sum(_widths(backbone)[part] for part in reading.split("+"))


def read(features: Features, reading: Reading) -> Tensor:
    """(N, D) float32 vectors of a reading that is not "auto"; "last4" asks for `blocks`."""
    return torch.cat([_part(features, part) for part in reading.split("+")], 1)


def widest(backbone: Backbone) -> tuple[Reading, dict[Reading, slice]]:
    """The reading that holds all others but GeM's, and the columns of each in it: one forward pass gives all."""
    widths = _widths(backbone)
    cls, avg, blocks = (widths.get(part, 0) for part in ("cls", "avg", "last4"))
    end = blocks or cls or avg
    if not cls:
        own: dict[Reading, slice] = {"avg": slice(end - avg, end)}
        return ("last4", {**own, "last4": slice(0, end)}) if blocks else ("avg", own)
    found: dict[Reading, slice] = {
        "cls": slice(end - cls, end),
        "avg": slice(end, end + avg),
        "cls+avg": slice(end - cls, end + avg),
    }
    if not blocks:
        return "cls+avg", found
    return "last4+avg", {**found, "last4": slice(0, end), "last4+avg": slice(0, end + avg)}


def gem(patches: Tensor, power: float = GEM_POWER, eps: float = GEM_EPS) -> Tensor:
    """(N, D) generalised mean of (N, T, D) patch tokens; what is below `eps` counts as `eps`."""
    return patches.clamp(min=eps).pow(power).mean(1).pow(1 / power)


def _widths(backbone: Backbone) -> dict[str, int]:
    """Widths of the parts that there are."""
    found = {"avg": backbone.patch_dim, "gem": backbone.patch_dim}
    if backbone.has_class_token or backbone.dim != backbone.patch_dim:
        found["cls"] = backbone.dim
    if len(backbone.block_dims) >= LAST:
        found["last4"] = sum(backbone.block_dims[-LAST:])
    return found


def _part(features: Features, part: str) -> Tensor:
    if part == "cls":
        return features.cls.float()
    if part == "avg":
        return features.patches.float().mean(1)
    if part == "gem":
        return gem(features.patches.float())
    assert features.blocks is not None
    return torch.cat([block.float() for block in features.blocks[-LAST:]], 1)
