"""Image, truth and prediction of segmentation by nearest patches."""

from __future__ import annotations

from pathlib import Path

from belvedere.evaluate.contract import EvalData, Result
from belvedere.report.drawing import Picture
from belvedere.report.protocols._segmentation import draw_segmentation


def draw(folder: Path, result: Result, data: EvalData) -> list[Picture]:
    """Write seg_knn.webp and seg_knn.csv."""
    return draw_segmentation(folder, result, data, "each patch takes the classes of the most similar training patches")
