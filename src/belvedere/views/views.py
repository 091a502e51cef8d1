"""Views: the pixels of a batch's views beside the record they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby

import torch
from torch import Tensor

from belvedere.views.params import ViewParams, send


def runs(params: ViewParams) -> list[tuple[int, ...]]:
    """Positions of consecutive slots of equal size: what one forward pass of a model can hold."""
    return [tuple(group) for _, group in groupby(range(len(params.slots)), key=lambda v: params.size[v])]


@dataclass(frozen=True, eq=False)
class Views:
    """Normalised pixels by slot. `views["global_a"]` is `[N, C, h, w]`, a slice of its group: nothing is copied.

    `pixels` holds one tensor `[k * N, C, h, w]` for each run of k consecutive slots of equal size, slot after slot
    ("crop-major", the order of multi-crop forwards). `mask` holds patch masks by slot, as the objective declares them;
    they lie where they were drawn until `beside_pixels` takes them along, with the `places` (M,) of masked patches.
    """

    params: ViewParams
    pixels: tuple[Tensor, ...]
    mask: dict[str, Tensor] | None = None
    places: dict[str, Tensor] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Slot names in the record's order."""
        return self.params.slots

    def groups(self) -> list[tuple[tuple[str, ...], Tensor]]:
        """(names, pixels `[k * N, C, h, w]`) of each run of slots of equal size."""
        return [
            (tuple(self.names[v] for v in run), group)
            for run, group in zip(runs(self.params), self.pixels, strict=True)
        ]

    def __getitem__(self, name: str) -> Tensor:
        """Pixels `[N, C, h, w]` of one slot.

        Raises:
            KeyError: no slot of that name.
        """
        images = len(self.params.index)
        for names, group in self.groups():
            if name in names:
                return group[names.index(name) * images :][:images]
        raise KeyError(f"no slot {name!r}; there are {', '.join(self.names)}")

    def replace(self, pixels: Mapping[str, Tensor] | None = None, mask: dict[str, Tensor] | None = None) -> Views:
        """A copy with other pixels for some slots (same sizes) or other masks; what is not given stays.

        Raises:
            KeyError: pixels for a slot that is not there.
            ValueError: pixels of another shape.
        """
        changed = dict(pixels or {})
        for name, tensor in changed.items():
            if tensor.shape != self[name].shape:
                raise ValueError(f"pixels of {name} are {tuple(tensor.shape)}, expected {tuple(self[name].shape)}")
        groups = tuple(
            torch.cat([changed.get(name, self[name]) for name in names]) if changed.keys() & set(names) else group
            for names, group in self.groups()
        )
        if mask is None:
            return replace(self, pixels=groups)
        return replace(self, pixels=groups, mask=mask, places=None)

    def beside_pixels(self) -> Views:
        """A copy whose masks lie where the pixels do, with the places of masked patches among all those of a slot.

        How many there are is known on the processor, where masks are drawn; a device would have to be waited for.
        """
        if self.mask is None:
            return self
        device = self.pixels[0].device
        places = {slot: send(mask.flatten().nonzero().squeeze(1), device) for slot, mask in self.mask.items()}
        return replace(self, mask={slot: send(mask, device) for slot, mask in self.mask.items()}, places=places)
