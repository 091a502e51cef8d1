"""Continuing must not destroy: the best look's weights are kept, and a run that falls below its start ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from belvedere.measure.knn import half_width


class Guard:
    """Watches the online k-NN of a run that started from given weights.

    The best weights live inside the run's checkpoint, so that both are always of the same moment.

    Attributes:
        images: of the k-NN; the fewer, the further an accuracy may fall by chance.
        best: step, k-NN in percent and weights (timm's names, on the CPU) of the best look; None before the first.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.best: dict[str, Any] | None = None

    def load(self, best: Mapping[str, Any] | None, model: nn.Module) -> None:
        """Take up what a checkpoint holds as `best`, for a backbone like `model`.

        Raises:
            Exception: when it is anything else: better now than when the run ends.
        """
        if best is not None:
            own = {name: x.shape for name, x in model.state_dict().items()}
            if {name: x.shape for name, x in best["weights"].items()} != own:
                raise ValueError("the best look's weights are of another network")
            self.best = {"step": int(best["step"]), "knn": float(best["knn"]), "weights": dict(best["weights"])}

    def look(self, step: int, knn: float, start: float, weights: Mapping[str, Tensor]) -> str:
        """Take a look at the run; returns why it should end, or nothing.

        Args:
            step: steps done.
            knn, start: accuracy in percent, now and of the starting weights.
            weights: of the backbone, timm's names.
        """
        if self.best is None or knn > self.best["knn"]:
            kept = {name: x.detach().cpu().clone() for name, x in weights.items()}
            self.best = {"step": step, "knn": knn, "weights": kept}
        margin = half_width(start, self.images)
        if knn >= start - margin:
            return ""
        return (
            f"k-NN fell to {knn:.1f} %, below the {start:.1f} % of the starting weights by more than chance "
            f"({margin:.1f} points); a smaller train.lr or a larger train.freeze_trunk is gentler"
        )
