"""Missing, painted, original: what MAE's student was shown and what its decoder painted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from belvedere.measure.encoder import Encoder
from belvedere.report.drawing import Picture
from belvedere.report.tasks.reconstruct import draw_painted


def draw(folder: Path, shown: Mapping[str, Tensor], encoder: Encoder) -> list[Picture]:
    """Write mae.webp and mae.csv; see `draw_painted`."""
    return draw_painted(folder, shown, encoder, "mae", "What the network paints where patches were taken away")
