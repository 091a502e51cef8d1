"""Near-duplicates among all images, test images with a twin in training, and suspected label errors; no labels needed.

Exact twins have equal pixels; near ones are copies that were changed a little, by a hash and the correlation of their
pixels, or have equal 8 x 8 hashes and features of a cosine above 0.98 (see `measure.twins`). A label is suspected when
the neighbours of an image, itself left out by index, vote for another class with a high margin; images of different
labels that are twins of each other are named too. Raw pixels and the untrained network go through the same lines: what
pixels find as well needs no network.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from belvedere.evaluate.contract import RUN, EvalData, Number, Protocol, Result
from belvedere.evaluate.intervals import DRAWS, mean_percent, resample
from belvedere.measure.knn import TEMPERATURE, best_classes, count_votes, top_neighbours
from belvedere.measure.twins import (
    BITS_APART,
    CORRELATION,
    COSINE,
    Twins,
    copies_between,
    copies_within,
    groups_of,
    looks_of,
    twins_between,
    twins_within,
)

LISTED = 100
"""Most entries of each kind in the JSON; the report's table has all."""

Suspects = list[dict[str, Any]]


class Options(BaseModel):
    """When images are equal, and when a label is suspected."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    cosine: float = Field(COSINE, gt=0, le=1)
    k: int = Field(20, ge=1)
    """Neighbours that vote on a label; at most half the images of an average class."""
    margin: float = Field(0.5, ge=0, le=1)
    """Share of the votes by which another class leads the label's own, from which on it is suspected."""


class Duplicates(Protocol):
    """Percent of the images that have a near-duplicate, of the test images with one in training, and of suspects."""

    Options = Options
    needs = ()
    quick = True

    def run(self, data: EvalData) -> Result:
        """Search with every subject; the names are those that the run found."""
        # The same name may stand in both sets.
        names = [f"train: {name}" for name in data.train.names] + [f"test: {name}" for name in data.test.names]
        labels = np.concatenate([data.train_labels, data.test_labels])
        train_looks, test_looks = looks_of(data.train), looks_of(data.test)
        looks = train_looks + test_looks
        copies, test_copies = copies_within(looks), copies_between(test_looks, train_looks)
        judged = judgeable(labels)
        metrics: dict[str, dict[str, Number]] = {}
        items: dict[str, dict[str, NDArray[np.float64]]] = {}
        draws: dict[str, Any] = {}
        for name, (train, test) in data.features.items():
            every = torch.cat([train, test])
            within = twins_within(every, looks, copies, self.options.cosine)
            across = twins_between(test, test_looks, train, train_looks, test_copies, self.options.cosine)
            groups = groups_of(within.pairs, len(every))
            items[name] = {
                "duplicated": _marked([i for group in groups for i in group], len(every)),
                "test_twins": _marked(across.pairs[:, 0].tolist(), len(test)),
            }
            suspects: Suspects = []
            if len(judged):
                suspects = self._suspects(every.to(data.device), labels, judged)
                items[name]["suspected"] = _marked([one["image"] for one in suspects], len(every))[judged]
            metrics[name] = {
                metric: mean_percent(values, resample(len(values), data.seed)) for metric, values in items[name].items()
            }
            draws[name] = {"within": within, "across": across, "groups": groups, "suspects": suspects}
        found = draws[RUN]
        return Result(
            protocol="duplicates",
            metrics=metrics,
            chosen={},
            settings={
                "exact": "all pixels equal",
                "near": f"DCT hashes at most {BITS_APART} of 64 bits apart and 16 x 16 gray cells correlated at "
                f"{CORRELATION:g} or more, or equal average hashes and a cosine above {self.options.cosine:g}",
                "margin_from": self.options.margin,
                "judged_labels": len(judged),
                **_named(found, names, labels, data.classes, len(data.train)),
                "interval": f"95 % bootstrap over the images of each metric, {DRAWS} draws",
            },
            items=items,
            draws=draws,
        )

    def _suspects(self, features: Tensor, labels: NDArray[np.int64], judged: NDArray[np.int64]) -> Suspects:
        """Images whose neighbours among the labelled ones vote for another class, the clearest first."""
        classes = int(labels.max()) + 1
        known = np.flatnonzero(labels >= 0)
        k = max(1, min(self.options.k, len(known) // (2 * len(np.unique(labels[known])))))
        place = torch.from_numpy(np.searchsorted(known, judged)).to(features.device)
        gallery = features[torch.from_numpy(known).to(features.device)]
        cosines, index = top_neighbours(gallery, gallery[place], k, exclude=place)
        of_neighbours = torch.from_numpy(labels[known])[index.cpu()]
        votes = count_votes(cosines, of_neighbours, classes, TEMPERATURE)
        shares = votes / votes.sum(1, keepdim=True)
        best = best_classes(shares).squeeze(1)
        own = torch.from_numpy(labels[judged])
        margin = (shares.gather(1, best[:, None]) - shares.gather(1, own[:, None])).squeeze(1)
        rows = ((best != own) & (margin >= self.options.margin)).nonzero().flatten().tolist()
        rows.sort(key=lambda row: -float(margin[row]))
        # The nearest of the suggested class is the one to compare with; argmax gives the first.
        nearest = index.cpu().gather(1, (of_neighbours == best[:, None]).int().argmax(1, keepdim=True)).squeeze(1)
        return [
            {
                "image": int(judged[row]),
                "suggested": int(best[row]),
                "margin": float(margin[row]),
                "neighbour": int(known[int(nearest[row])]),
            }
            for row in rows
        ]


def judgeable(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of images with a label whose class has another image: only these can be voted for."""
    if not (labels >= 0).any():
        return np.zeros(0, np.int64)
    sizes = np.bincount(labels[labels >= 0])
    return np.flatnonzero((labels >= 0) & (sizes[labels] > 1))


def disagreeing(groups: list[list[int]], labels: NDArray[np.int64]) -> list[list[int]]:
    """Groups of near-duplicates whose known labels differ."""
    return [group for group in groups if len({int(labels[i]) for i in group if labels[i] >= 0}) > 1]


def _marked(rows: list[int], images: int) -> NDArray[np.float64]:
    marks = np.zeros(images)
    marks[rows] = 1
    return marks


def _named(
    found: dict[str, Any], names: list[str], labels: NDArray[np.int64], classes: list[str], training: int
) -> dict[str, Any]:
    """What the run found, counted and by name: the largest groups, twins and suspects first."""
    across: Twins = found["across"]
    groups = sorted(found["groups"], key=lambda group: -len(group))
    at_odds = disagreeing(groups, labels)
    twins = across.order()[:LISTED]
    suspects: Suspects = found["suspects"]
    return {
        "counts": {
            "groups": len(groups),
            "exact_duplicates": int(found["within"].exact.sum()),
            "near_duplicates": int((~found["within"].exact).sum()),
            "test_twins": len(across.pairs),
            "exact_test_twins": int(across.exact.sum()),
            "suspects": len(suspects),
            "groups_of_different_labels": len(at_odds),
        },
        "groups": [[names[i] for i in group] for group in groups[:LISTED]],
        "groups_of_different_labels": [[names[i] for i in group] for group in at_odds[:LISTED]],
        "test_twins": [
            {"pair": [names[training + test], names[train]], "exact": bool(exact), "cosine": round(float(cosine), 4)}
            for (test, train), exact, cosine in zip(
                across.pairs[twins].tolist(), across.exact[twins], across.cosines[twins], strict=True
            )
        ],
        "suspects": [
            {
                "image": names[one["image"]],
                "label": classes[labels[one["image"]]],
                "suggested": classes[one["suggested"]],
                "margin": round(one["margin"], 4),
            }
            for one in suspects[:LISTED]
        ],
    }
