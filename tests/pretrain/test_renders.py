"""Views that were rendered to be chosen from are not rendered again, and are the same bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere.pretrain.rendering import Renders
from belvedere.pretrain.stopwatch import Stopwatch
from belvedere.views.params import ViewParams
from belvedere.views.render import render_views
from belvedere.views.sample import sample_views
from belvedere.views.slots import ViewSettings, build_slots
from belvedere.views.views import Views

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 40, 48, 3), dtype=np.uint8))
SETTINGS = ViewSettings(size=(16, 16), globals=4, locals=2, local_size=(8, 8))


def masks_of(params: ViewParams) -> dict[str, Tensor]:
    """Some mask of every global view that its key decides."""
    return {
        slot: torch.stack([torch.full((2, 2), bool(key % 2)) for key in params.key[params.slot(slot)].tolist()])
        for slot in params.slots
        if slot.startswith("global")
    }


def counting() -> tuple[Renders, list[tuple[str, ...]]]:
    asked = []

    def render(params: ViewParams, scale: float) -> Views:
        asked.append(params.slots)
        views = render_views(IMAGES, params, mean=(0.5,) * 3, std=(0.2,) * 3, scale=scale)
        return views.replace(mask=masks_of(params))

    return Renders(render, Stopwatch(torch.device("cpu"))), asked


@pytest.fixture
def candidates() -> ViewParams:
    return sample_views(build_slots(SETTINGS, 3), np.arange(5), np.full((5, 2), 40), 0, 0)


def chosen(candidates: ViewParams) -> ViewParams:
    choice = torch.tensor([[0, 3, 2, 1, 0], [1, 2, 3, 0, 3], [4, 4, 4, 4, 4], [5, 5, 5, 5, 5]])
    return candidates.gather(choice, ["global_a", "global_b", "local_1", "local_2"])


def same(a: Views, b: Views) -> bool:
    assert a.mask is not None
    assert b.mask is not None
    return (
        a.names == b.names
        and all(torch.equal(a[slot], b[slot]) for slot in a.names)
        and a.mask.keys() == b.mask.keys()
        and all(torch.equal(a.mask[slot], b.mask[slot]) for slot in a.mask)
    )


def test_seen_views_are_picked_and_others_rendered(candidates: ViewParams) -> None:
    renders, asked = counting()
    winners = chosen(candidates)
    fresh = renders.winners(winners)
    assert asked == [winners.slots]
    renders(candidates.select(["global_a", "global_b", "global_c", "global_d"]))
    assert same(renders.winners(winners), fresh)
    assert asked[-1] == ("local_1", "local_2")
    renders(candidates)
    count = len(asked)
    assert same(renders.winners(winners), fresh)
    assert len(asked) == count


def test_what_was_seen_otherwise_is_rendered(candidates: ViewParams) -> None:
    """At another size, of other images, or to be learned from."""
    winners = chosen(candidates)
    renders, asked = counting()
    renders(candidates, 0.5)
    renders.winners(winners)
    assert asked[-1] == winners.slots
    renders(candidates)
    renders.winners(winners.take(torch.arange(5).flip(0)))
    assert asked[-1] == winners.slots
    count = len(asked)
    winners.brightness.requires_grad_()
    renders.winners(winners)
    assert len(asked) == count + 1
