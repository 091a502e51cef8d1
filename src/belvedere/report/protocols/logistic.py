"""The logistic probe, drawn: confusion matrix, classes with intervals, most confident errors."""

from belvedere.report.protocols._classification import draw_classification as draw

__all__ = ["draw"]
