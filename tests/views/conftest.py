"""Photographs, records and settings for the view tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from belvedere.views.params import ViewParams
from belvedere.views.sample import sample_views
from belvedere.views.slots import Slot, ViewSettings, build_slots


@pytest.fixture(scope="session")
def photos() -> Tensor:
    """Eight parts of photographs, uint8 [8, 96, 80, 3], with clipped highlights, shadows and fine texture."""
    data = pytest.importorskip("skimage.data")
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    parts = []
    for i in range(8):
        picture = pictures[i % 4]
        top, left = 40 + 60 * (i // 4), 90 + 75 * (i // 4)
        parts.append(torch.from_numpy(np.ascontiguousarray(picture[top : top + 192 : 2, left : left + 160 : 2])))
    return torch.stack(parts)


@pytest.fixture(scope="session")
def slots() -> tuple[Slot, ...]:
    """Two globals and two locals with every operation on."""
    settings = ViewSettings(
        size=(48, 40),
        locals=2,
        local_size=(24, 24),
        jitter=(0.4, 0.4, 0.4, 0.5),
        blur_p=(1.0, 0.5, 0.5),
        solarize_p=(0.0, 0.5, 0.2),
    )
    return build_slots(settings, channels=3)


@pytest.fixture
def drawn(photos: Tensor, slots: tuple[Slot, ...]) -> ViewParams:
    """A record of the photographs' views."""
    return sample_views(slots, range(len(photos)), [photos.shape[1:3]] * len(photos), epoch=3, seed=5)
