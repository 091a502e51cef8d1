"""Whether two networks still teach each other: in words, from the losses of the last steps and how samples differ."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping

from belvedere.measure.monitor import Verdict

WINDOW = 200
CHANCE = 2 * math.log(2)
"""The discriminator's loss when it tells nothing apart."""
STUCK = 20
"""Steps without a finite loss after which a run ends."""
# Of the discriminator's loss, the mean of its logits' gap, and the spread of samples over that of real images.
_SATURATED, _NEAR, _BLIND, _ALIKE = 0.05, 0.2, 1e-3, 0.2


class Health:
    """The last steps of a run, and what they say."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._last: deque[dict[str, float]] = deque(maxlen=WINDOW)

    def step(self, told: Mapping[str, float]) -> None:
        """Take up a step's losses."""
        self._last.append({name: told[name] for name in ("loss", "real", "fake", "moved")})

    def state_dict(self) -> list[dict[str, float]]:
        """Plain numbers."""
        return list(self._last)

    def load_state_dict(self, state: list[dict[str, float]]) -> None:
        """Go back to a state.

        Raises:
            Exception: when it is none.
        """
        self._last = deque(maxlen=WINDOW)
        for told in state:
            self.step(told)

    @property
    def stuck(self) -> bool:
        """Whether none of the last steps moved both networks."""
        last = list(self._last)[-STUCK:]
        return len(last) == STUCK and not any(entry["moved"] for entry in last)

    def verdict(self, spread: float) -> Verdict:
        """The worst of what is wrong, and a sentence for each; `spread` as `quality.spread`."""
        moved = [entry for entry in self._last if entry["moved"]]
        if not moved:
            return Verdict("green", "young", ["No step yet."]) if not self._last else _not_finite(1.0)
        lost = 1 - len(moved) / len(self._last)
        loss = statistics.fmean(entry["loss"] for entry in moved)
        gap = statistics.fmean(entry["real"] - entry["fake"] for entry in moved)
        found = [_not_finite(lost)] if lost > 0 else []
        apart = f"The discriminator's loss is {loss:.2g} (chance {CHANCE:.3g})"
        cure = "raise loss.r1 or lower train.lr_discriminator"
        if loss < _SATURATED:
            told = f"{apart}: it tells all images apart, and the generator learns nothing more; {cure}."
            found.append(Verdict("red", "discriminator saturated", [told]))
        elif loss < _NEAR:
            told = f"{apart}: it tells nearly all images apart; if that goes on, {cure}."
            found.append(Verdict("amber", "discriminator ahead", [told]))
        elif abs(gap) < _BLIND:
            told = f"{apart}, and its answers to real and generated images are the same; lower loss.r1."
            found.append(Verdict("amber", "discriminator blind", [told]))
        if spread < _ALIKE:
            told = f"Samples differ from each other {spread:.0%} as much as real images do: they look alike."
            found.append(Verdict("red", "samples alike", [told]))
        if not found:
            told = f"{apart}; samples differ from each other {spread:.0%} as much as real images do."
            return Verdict("green", "healthy", [told])
        worst = next((one for one in found if one.color == "red"), found[0])
        return Verdict(worst.color, worst.word, [sentence for one in found for sentence in one.sentences])


def _not_finite(share: float) -> Verdict:
    told = f"{share:.0%} of the last steps had a loss that is not finite, and changed nothing; lower train.lr."
    return Verdict("red", "not finite", [told])
