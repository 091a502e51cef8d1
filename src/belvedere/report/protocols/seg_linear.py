"""Image, truth and prediction of segmentation by a linear layer."""

from __future__ import annotations

from pathlib import Path

from belvedere.evaluate.contract import EvalData, Result
from belvedere.report.drawing import Picture
from belvedere.report.protocols._segmentation import draw_segmentation


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write seg_linear.webp and seg_linear.csv."""
    return draw_segmentation(folder, result, data, "one linear layer on the frozen network's patches")
