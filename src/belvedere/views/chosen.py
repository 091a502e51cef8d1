"""What a selection of views chose, told against what it did not choose: numbers for the log (spec view_policies 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from belvedere.views.pairs import pair_facts
from belvedere.views.params import ViewParams

# Equal bins of the logged histograms of overlap, from IoU 0 to 1.
IOU_BINS = 10


class Scored(NamedTuple):
    """Scores `[P, N]` of P choices, and the share of masked patches `[N]` of every scored view that has a mask."""

    scores: Tensor
    masked: dict[str, Tensor]


class Selection(NamedTuple):
    """One selection: the record of the candidates, P choices, each image's winner `[N]`, and how they were scored."""

    params: ViewParams
    choices: list[tuple[str, ...]]
    winner: Tensor
    scored: Scored


def fidelity(cheap: Tensor, full: Tensor) -> dict[str, float]:
    """How often both choose alike, and `kept`: (full score of the cheap choice - mean) / (max - mean); of `[P, N]`."""
    images = torch.arange(full.shape[1], device=full.device)
    chosen = cheap.argmax(0)
    mean, best = full.mean(0), full.max(0).values
    kept = (full[chosen, images] - mean).sum() / (best - mean).sum().clamp(min=1e-12)
    return {"fidelity": float((chosen == full.argmax(0)).float().mean()), "kept": float(kept)}


def describe(selection: Selection) -> dict[str, float]:
    """Means over the images of what was chosen (`iou`, ...) and of all that was not (`iou_others`, ...).

    `iou_bin/K`, `iou_bin_others/K`: the share of such pairs whose IoU lies in bin K of `IOU_BINS`, and
    `iou_bin_first/K` that of the first pairs, which are a random choice; `min_iou`: how often the chosen pair is the
    one that overlaps least; `corr/FACT`: rank correlation of a fact with the score (`rank_correlations`);
    `chosen/NAME`: how often a candidate was in the chosen pair; `gain`: how much harder that is than the mean, in
    standard deviations of the scores.
    """
    params, choices, winner, (scores, masked) = selection
    pairs = list(dict.fromkeys((a, b) for a, b, *_ in choices))
    number = {pair: i for i, pair in enumerate(pairs)}
    pair_of = torch.tensor([number[choice[0], choice[1]] for choice in choices])
    chosen = pair_of[winner]
    mine = torch.nn.functional.one_hot(chosen, len(pairs)).T.bool()
    each = [pair_facts(params, a, b, masked) for a, b in pairs]
    facts = {name: torch.stack([fact[name] for fact in each]) for name in each[0]}
    found: dict[str, float] = {}
    for name, values in facts.items():
        found[name] = float(values[mine].mean())
        if len(pairs) > 1:
            found[f"{name}_others"] = float(values[~mine].mean())
        if name == "iou":
            found |= _histogram("iou_bin", values[mine])
            if len(pairs) > 1:
                found |= _histogram("iou_bin_others", values[~mine]) | _histogram("iou_bin_first", values[0])
            least = values.gather(0, chosen[None])[0] <= values.min(0).values  # several pairs may not overlap at all
            found["min_iou"] = float(least.float().mean())
    for name, correlation in rank_correlations(facts, _of_pairs(scores, pair_of)).items():
        found[f"corr/{name}"] = correlation
    for name in dict.fromkeys(name for pair in pairs for name in pair):
        inside = torch.tensor([name in pair for pair in pairs])
        found[f"chosen/{name}"] = float(inside[chosen].float().mean())
    spread = scores.std(0).clamp(min=1e-12) if len(choices) > 1 else torch.ones_like(scores[0])
    found["gain"] = float(((scores.max(0).values - scores.mean(0)) / spread).mean())
    return found


def rank_correlations(facts: Mapping[str, Tensor], scores: Tensor) -> dict[str, float]:
    """Spearman's correlation of each fact `[P, N]` with the scores `[P, N]` of P pairs of N images, by name.

    Spec view_policies 5, V6. Ranks are among the pairs of an image, since what is decided is which of those is hardest;
    ties share their mean rank. Images whose pairs do not differ in a fact draw it towards 0, for it decides nothing
    there. A fact that differs nowhere has no correlation and is left out.
    """
    ranks, found = _ranks(scores), {}
    for name, fact in facts.items():
        own = _ranks(fact)
        norm = float(own.norm() * ranks.norm())
        if norm > 0:
            found[name] = float((own * ranks).sum()) / norm
    return found


def _ranks(values: Tensor) -> Tensor:
    """`[P, N]` ranks within each column about their mean: half of (how many are smaller - how many are larger)."""
    return (values[:, None] - values).sign().sum(1) / 2


def _of_pairs(scores: Tensor, pair: Tensor) -> Tensor:
    """Scores of pairs `[P, N]`: the means over the choices `[C, N]` of each, which differ in their local views."""
    shares = torch.nn.functional.one_hot(pair).float()
    return (shares / shares.sum(0)).T @ scores


def _histogram(name: str, iou: Tensor) -> dict[str, float]:
    """`NAME/K`: the share of values in bin K."""
    shares = torch.histc(iou, IOU_BINS, 0, 1) / len(iou)
    return {f"{name}/{k}": share for k, share in enumerate(shares.tolist())}
