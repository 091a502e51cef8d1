"""Is the most similar other image of the same class? Recall@k and mAP@R among the test images.

Spec evaluation 2.6. Every labelled test image asks all the others (leave-one-out, by index: a copy of the query counts
as any other image). Nothing is trained and nothing chosen. Recall@k is the share of queries with at least one image of
their class among the k nearest (IRT, arXiv:2102.05644); mAP@R is the mean over the R other images of the class of the
precision at each that is found among the R nearest ("A Metric Learning Reality Check", Musgrave et al., ECCV 2020,
arXiv:2003.08505).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, PositiveInt
from torch import Tensor

from belvedere.errors import UserError
from belvedere.evaluate.contract import EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.images.survey import spread
from belvedere.measure.knn import top_neighbours

SHOWN, NEAREST = 6, 6
"""Queries that are kept for the report, and images found for each."""


class Options(BaseModel):
    """The ks of recall@k."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ks: tuple[PositiveInt, ...] = Field((1, 10, 100), min_length=1)


class Retrieval(Protocol):
    """Recall@k and mAP@R in percent."""

    Options = Options
    quick = True

    def run(self, data: EvalData) -> Result:
        """Search with every encoder in `data.features`; an image alone in its class is no query, but may be found.

        Raises:
            UserError: when every class has one test image only.
        """
        labels = torch.from_numpy(data.test_labels)
        partners = torch.bincount(labels)[labels] - 1
        asked = (partners > 0).nonzero().squeeze(1)
        if not len(asked):
            raise UserError("retrieval: no test image has another one of its class to find; add images, or a test set")
        ks = sorted({k for k in self.options.ks if k < len(labels)}) or [1]
        counts = resample(len(asked), data.seed)
        shown = asked[torch.from_numpy(spread(len(asked), SHOWN))]
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, dict[str, Tensor]] = {}
        for name, (_, features) in data.features.items():
            depth = max(*ks, int(partners.max()))
            same = found(features.to(data.device), labels, asked, depth)
            items[name] = {f"recall{k}": recall_at(same, k) for k in ks}
            items[name]["map_r"] = map_at_r(same, partners[asked])
            metrics[name] = {metric: mean_percent(values, counts) for metric, values in items[name].items()}
            cosines, nearest = top_neighbours(features, features[shown], NEAREST, exclude=shown)
            draws[name] = {"queries": shown, "nearest": nearest, "cosines": cosines}
        return Result(
            protocol="retrieval",
            metrics=metrics,
            chosen={},
            settings={
                "queries": len(asked),
                "gallery": len(labels),
                "alone_in_their_class": len(labels) - len(asked),
                "interval": f"95 % bootstrap over {len(asked)} queries, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )


def found(features: Tensor, labels: Tensor, queries: Tensor, depth: int) -> Tensor:
    """(Q, depth) bool: is the n-th nearest other image of a query of its class?

    Args:
        features: (M, D), each row a query's candidate.
        labels: (M,) class ids, on the CPU.
        queries: (Q,) rows that ask.
    """
    _, index = top_neighbours(
        features, features[queries.to(features.device)], depth, exclude=queries.to(features.device)
    )
    return labels[index.cpu()] == labels[queries][:, None]


def recall_at(same: Tensor, k: int) -> NDArray[np.float64]:
    """(Q,) 1 where at least one of the k nearest is of the query's class."""
    return same[:, :k].any(1).double().numpy()


def map_at_r(same: Tensor, partners: Tensor) -> NDArray[np.float64]:
    """(Q,) mean over R = `partners` ranks of the precision there, where the image found is of the query's class."""
    ranks = torch.arange(1, same.shape[1] + 1)
    return average_precision(same & (ranks <= partners[:, None]), partners)


def average_precision(same: Tensor, partners: Tensor) -> NDArray[np.float64]:
    """(Q,) sum of the precision at every rank where an image of the query's class stands, over how many there are."""
    precision = same.cumsum(1) / torch.arange(1, same.shape[1] + 1)
    return ((precision * same).sum(1).double() / partners).numpy()
