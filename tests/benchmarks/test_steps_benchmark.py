"""The benchmark of whole steps in small: its loops learn, and its table tells ratios."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import steps
from newcomer import photo_folder
from steps import OURS, measure, ours, pixels_of, table, torchvision_loop


def test_loops_take_steps(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "BATCH", 8)
    monkeypatch.setattr(steps, "ROUNDS", 2)
    torch.manual_seed(0)
    folder = photo_folder(tmp_path, 24)
    pixels = pixels_of(folder)
    assert pixels.dtype == np.uint8
    peers = {"torchvision": torchvision_loop(pixels), "in bf16": torchvision_loop(pixels, bf16=True)}
    found = measure({OURS: ours(folder, "float32"), **peers})
    assert {name: len(seconds) for name, seconds in found.items()} == {OURS: 2, "torchvision": 2, "in bf16": 2}
    assert min(min(seconds) for seconds in found.values()) > 0


def test_the_loss_is_nt_xent() -> None:
    """Equal pairs, all others orthogonal: ln of one and the share of the 2N - 2 others at e^(-1/T)."""
    z = torch.eye(4)
    expected = np.log(1 + 6 * np.exp(-1 / steps.TEMPERATURE))
    assert steps._nt_xent(z, z).item() == pytest.approx(expected, rel=1e-5)


def test_the_table_tells_ratios() -> None:
    times = {OURS: [1.0, 2.0, 1.0], "lightly": [3.0, 5.0, 4.0], "torchvision": [1.0, 1.0, 1.0]}
    last = table({"seconds": {"float32 for all": times}}).splitlines()[-1]
    assert last == "| float32, each its own head | 3.00 (2.50 to 4.00) | 1.00 (0.50 to 1.00) |"
