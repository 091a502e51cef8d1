"""Which ordered pairs of views a symmetric loss sums over."""

from __future__ import annotations

from collections.abc import Sequence

from belvedere.objectives.contract import Term, is_global


def every_global_from_every_other(slots: Sequence[str], total: float = 1.0) -> list[Term]:
    """Every global view as the target of every other view, in equal weights that add up to `total`."""
    pairs = [(target, source) for target in slots if is_global(target) for source in slots if source != target]
    return [Term(target, source, total / len(pairs)) for target, source in pairs]
