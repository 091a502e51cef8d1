"""How a run makes images of larger ones: tiles, their overlap, and pages of writing as nothing but ink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter


@dataclass(frozen=True)
class Cutting:
    """Everything that stands between a user's files and the images of a run; kept with whatever was trained on them.

    Attributes:
        tile: side of the squares that larger images are cut into, px; 0 = whole images.
        overlap: share of a tile's side that it has in common with the next one, in [0, 1).
        binarize: "sauvola" makes every image gray with ink white on black; "none" leaves it as it is.
        min_ink: tiles with a smaller share of ink are set aside.
    """

    tile: Annotated[int, Field(ge=0, lt=2**31)] = 0
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.0
    binarize: Literal["none", "sauvola"] = "none"
    min_ink: Annotated[float, Field(ge=0, le=1)] = 0.0

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Cutting:
        """Of a classifier's `config.json`: what stands in `cutting`, or a tile's side alone.

        Raises:
            ValueError: when that is no cutting.
        """
        return TypeAdapter(cls).validate_python(stored.get("cutting", {"tile": stored.get("tile", 0)}))

    @property
    def step(self) -> int:
        """Pixels from one tile to the next."""
        return max(1, round(self.tile * (1 - self.overlap)))


WHOLE = Cutting()
"""Files as they are."""
