"""The random policy of SimCLR, MoCo v3, DINO and iBOT: every view drawn independently by its slot's law."""

from __future__ import annotations

from belvedere.views.policy import ViewPolicy


class Random(ViewPolicy):
    """One view a slot, by the recipe's numbers; the yardstick for every other policy."""

    class Options(ViewPolicy.Options):
        """None: the numbers are the recipe's view settings."""
