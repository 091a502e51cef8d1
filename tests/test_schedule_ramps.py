"""Schedules: the references' arrays for any numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from belvedere.schedules import ramp

VALUES = st.floats(-10, 10)


@given(st.integers(1, 60), VALUES, VALUES)
def test_a_ramp_of_points_is_numpys_line(points: int, start: float, end: float) -> None:
    """One point is the start, as in DINO's table of temperatures."""
    line = [ramp(epoch, points, start, end, points=points) for epoch in range(points)]
    assert line == pytest.approx(np.linspace(start, end, points).tolist(), abs=1e-12)
    assert ramp(points, points, start, end, points=points) == end


@given(st.floats(0, 100), st.floats(0.1, 50), VALUES, VALUES)
def test_a_ramp_stays_between_its_ends(position: float, length: float, start: float, end: float) -> None:
    found = ramp(position, length, start, end)
    assert min(start, end) - 1e-9 <= found <= max(start, end) + 1e-9
    assert position < length or found == end
    assert ramp(0, length, start, end) == start
