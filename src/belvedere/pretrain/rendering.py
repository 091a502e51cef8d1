"""What a policy rendered in order to choose is not rendered again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from belvedere.pretrain.stopwatch import Stopwatch
from belvedere.views.params import ViewParams, send
from belvedere.views.views import Views, runs


class Renders:
    """`views.policy.Render` of one micro-step, which remembers what it rendered last at full size."""

    def __init__(self, render: Callable[[ViewParams, float], Views], watch: Stopwatch) -> None:
        self._render = render
        self.watch = watch
        self._seen: Views | None = None
        self.spared = 0.0
        """Share of the work measured by `watch` that training would have done without a policy."""

    def __call__(self, params: ViewParams, scale: float = 1.0) -> Views:
        """The views of a record at `size * scale`."""
        if scale != 1.0:
            return self._render(params, scale)
        with self.watch:
            self._seen = self._render(params, scale)
        return self._seen

    def winners(self, params: ViewParams) -> Views:
        """The views to train on: slots of which every view was seen are picked, the others rendered.

        Views are recognised by their key. What is being learned is rendered again, since choosing keeps no gradient.
        """
        picked = {} if params.requires_grad else self._picked(params)
        if not picked or self._seen is None:
            return self._render(params, 1.0)
        self.spared = len(picked) / len(self._seen.names)
        pixels = {slot: own for slot, (own, _) in picked.items()}
        masks = {slot: mask for slot, (_, mask) in picked.items() if mask is not None}
        if rest := [slot for slot in params.slots if slot not in picked]:
            others = self._render(params.select(rest), 1.0)
            pixels |= {slot: others[slot] for slot in rest}
            masks |= others.mask or {}
        groups = tuple(torch.cat([pixels[params.slots[v]] for v in run]) for run in runs(params))
        return Views(params, groups, masks or None)

    def _picked(self, params: ViewParams) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Slot -> (N, C, h, w) pixels and masks, for slots of which all views were seen at the same size."""
        seen, found = self._seen, dict[str, tuple[Tensor, Tensor | None]]()
        if seen is None or not torch.equal(seen.params.index, params.index):
            return found
        images = torch.arange(len(params.index))
        for slot, size, key in zip(params.slots, params.size, params.key, strict=True):
            for (names, group), run in zip(seen.groups(), runs(seen.params), strict=True):
                same = seen.params.key[list(run)] == key
                if seen.params.size[run[0]] == size and bool(same.any(0).all()):
                    rows = same.to(torch.uint8).argmax(0)
                    places = rows * len(images) + images
                    pixels = group.index_select(0, send(places, group.device))
                    masks = [seen.mask[name] for name in names if name in seen.mask] if seen.mask else []
                    found[slot] = pixels, torch.stack(masks).flatten(0, 1).index_select(0, places) if masks else None
        return found
