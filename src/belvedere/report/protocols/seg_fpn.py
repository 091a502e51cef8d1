"""Image, truth and prediction of segmentation by the whole network."""

from __future__ import annotations

from pathlib import Path

from belvedere.evaluate.contract import EvalData, Result
from belvedere.report.drawing import Picture
from belvedere.report.protocols._segmentation import draw_segmentation


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write seg_fpn.webp and seg_fpn.csv."""
    return draw_segmentation(folder, result, data, "the whole network trained with a light head")
