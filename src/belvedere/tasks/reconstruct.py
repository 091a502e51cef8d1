"""SiT's reconstruction: the student sees views with blocks taken out or replaced and paints the clean ones.

"SiT: Self-supervised vIsion Transformer", Atito et al., arXiv:2104.03602, whose three released versions are options of
this task (spec patch_and_pretext 4). Targets are clean, whatever the objective: its teacher sees clean views, and
without a teacher both of its views are corrupted, as in the first two versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from belvedere.backbones.contract import Features
from belvedere.derive import LARGE
from belvedere.distributed import all_sum
from belvedere.errors import UserError
from belvedere.objectives._options import Auto, NotNegative, Share
from belvedere.objectives.contract import is_global
from belvedere.tasks._corruption import Filling, Stream, corrupt_blocks, corrupt_groups, reach
from belvedere.tasks.contract import Answer, Request, Scene, Surroundings, Task

Version = Literal["v1", "v2", "v3"]
# What the released versions differ in (spec 4, 4.1); v1's L1 has half the weight of its other losses.
VERSIONS: dict[Version, dict[str, Any]] = {
    "v1": {"blocks": "four", "pixels": "all", "layers": 0, "weight": 0.5},
    "v2": {"blocks": "groups", "drop": 0.7, "types": ["noise"], "replace": 0.35, "pixels": "corrupted", "layers": 2},
    "v3": {"blocks": "groups", "drop": 0.5, "types": ["zeros"], "replace": 0.3, "pixels": "corrupted", "layers": 3},
}


class ReconstructOptions(BaseModel):
    """Settings of reconstruction; what is not given is the version's."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    version: Version = "v3"
    """v1: April 2021; v2: June 2022; v3: December 2022."""
    weight: NotNegative | Auto = "auto"
    blocks: Literal["groups", "four"] | Auto = "auto"
    """groups: blocks are dropped or taken from another image; four: a gray, a blurred, noisy and foreign ones, all."""
    drop: Share | Auto = "auto"
    """Of groups: largest share of a view that is dropped."""
    types: tuple[Filling, ...] | Auto = "auto"
    """Of groups: what stands in for what was dropped, one of these an image: zeros, noise, copy."""
    replace: Share | Auto = "auto"
    """Of groups: largest share of a view that another image replaces."""
    align: int = Field(1, ge=1)
    """Of groups: blocks lie on a raster of this many pixels."""
    pixels: Literal["corrupted", "all"] | Auto = "auto"
    """Which pixels the loss counts."""
    layers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Hidden layers of the reconstruction head."""


class Reconstruct(Task):
    """L1 between what the head paints from the corrupted view's patch tokens and the clean view, normalised pixels."""

    Options = ReconstructOptions

    def __init__(self, options: ReconstructOptions, around: Surroundings) -> None:
        """Build the head.

        Raises:
            UserError: when blocks of that alignment cannot cover as much of a view as is asked for, or tokens do not
                cover a view.
        """
        super().__init__(options, around)
        self.slots = tuple(slot for slot in around.sizes if is_global(slot))
        if around.patch_dim != around.dim:
            raise UserError(
                "task reconstruct: this network has the same grid at any size, so its tokens are no patches to paint; "
                "take a transformer"
            )
        if options.blocks == "groups":
            if not options.types:
                raise UserError("task.reconstruct.types: name at least one of zeros, noise, copy")
            for slot in self.slots:
                self._check_reach(around.sizes[slot])
        self.head = ReconstructionHead(around.patch_dim, around.channels, around.patch, int(options.layers))

    def _check_reach(self, size: tuple[int, int]) -> None:
        o = self.options
        most = max(float(o.drop), float(o.replace))
        if reach(size, o.align) < most:
            raise UserError(
                f"task.reconstruct.align={o.align}: blocks have less than 0.3 of a side, so on this raster they cover "
                f"{reach(size, o.align):.0%} of {size[0]} x {size[1]} px at most and not {most:.0%}; make it smaller"
            )

    @classmethod
    def derive(cls, options: Mapping[str, Any], facts: Any) -> dict[str, tuple[Any, str]]:
        """Everything from the version, and v3's weight from the number of images."""
        version: Version = options.get("version", "v3")
        # Options of the other kind of blocks are unused; they are settled all the same, so that all values are known.
        settled = {**VERSIONS["v3"], "weight": 1.0, **VERSIONS[version]}
        rules: dict[str, tuple[Any, str]] = {name: (value, f"SiT {version}'s") for name, value in settled.items()}
        if version == "v3" and facts.images < LARGE:
            rules["weight"] = 5.0, "the authors' on small data sets"
        return rules

    @classmethod
    def replaces(cls, options: Any, objective: str) -> bool:
        """Always."""
        return True

    def requests(self, scene: Scene) -> dict[str, Request]:
        """The corrupted global views, in the place of the objective's; notes: slot -> (B, 1, h, w) bool masks."""
        found = {slot: self._corrupted(scene, slot) for slot in self.slots}
        pixels = {slot: corrupted for slot, (corrupted, _) in found.items()}
        return {"corrupted": Request(pixels=pixels, how="replace", note={slot: m for slot, (_, m) in found.items()})}

    def _corrupted(self, scene: Scene, slot: str) -> tuple[Tensor, Tensor]:
        o, params = self.options, scene.views.params
        stream = Stream(params.seed, params.epoch, params.index.cpu().numpy(), f"reconstruct {slot}")
        if o.blocks == "four":
            return corrupt_blocks(stream, scene.views[slot], self.around.mean, self.around.std)
        return corrupt_groups(stream, scene.views[slot], float(o.drop), float(o.replace), o.types, o.align)

    def loss(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """{"pixels": (B,) weight x `masked_l1`, over all pixels in the first version}."""
        # A learned policy's views carry a gradient, and what is to be painted is not for it to change.
        request, clean = answers["corrupted"].request, {slot: scene.views[slot].detach() for slot in self.slots}
        painted = {
            slot: self.head(features, clean[slot].shape[2:]) for slot, features in answers["corrupted"].student.items()
        }
        counted = dict(request.note)
        if self.options.pixels == "all":
            counted = {slot: torch.ones_like(mask) for slot, mask in counted.items()}
        return {"pixels": float(self.options.weight) * masked_l1(painted, clean, counted)}

    def show(
        self, answers: Mapping[str, Answer], scene: Scene, teacher_heads: Mapping[str, nn.Module]
    ) -> dict[str, Tensor]:
        """Of the first view: "original", "corrupted", "reconstructed" (B, C, h, w), "mask" (B, 1, h, w)."""
        slot, answer = self.slots[0], answers["corrupted"]
        original = scene.views[slot]
        assert answer.request.pixels is not None
        return {
            "original": original,
            "corrupted": answer.request.pixels[slot],
            "reconstructed": self.head(answer.student[slot], original.shape[2:]),
            "mask": answer.request.note[slot],
        }


def masked_l1(painted: Mapping[str, Tensor], clean: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Tensor:
    """(B,) float32 L1 whose mean over the images of all processes is the mean over all masked entries (4.2).

    So views with more of them count more, and without any the loss is 0.

    Args:
        painted, clean: slot -> (B, C, h, w).
        mask: slot -> (B, 1, h, w) bool.
    """
    gaps = [((painted[slot].float() - clean[slot]).abs() * mask[slot]).sum((1, 2, 3)) for slot in painted]
    counted = [mask[slot].sum((1, 2, 3)) * clean[slot].shape[1] for slot in painted]
    total = torch.stack(gaps).sum(0)
    images, entries = all_sum(torch.stack([torch.ones_like(total), torch.stack(counted).sum(0)]).sum(1))
    found: Tensor = total * images / entries.clamp(min=1)
    return found


class ReconstructionHead(nn.Module):
    """Linears with GELUs on every patch token, then a transposed convolution to the patch's pixels (spec 4, 4.2)."""

    def __init__(self, dim: int, channels: int, patch: int, layers: int) -> None:
        """`layers` hidden layers as wide as the tokens."""
        super().__init__()
        self.mlp = nn.Sequential(*[module for _ in range(layers) for module in (nn.Linear(dim, dim), nn.GELU())])
        self.convTrans = nn.ConvTranspose2d(dim, channels, patch, patch)

    def forward(self, features: Features, size: tuple[int, int]) -> Tensor:
        """(N, C, *size) pixels; a grid that reaches beyond the view is cut."""
        tokens = self.mlp(features.patches).transpose(1, 2)
        pixels: Tensor = self.convTrans(tokens.unflatten(2, features.grid))
        return pixels[..., : size[0], : size[1]]
