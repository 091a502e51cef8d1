"""What the options of objectives share."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from belvedere.errors import UserError

Auto = Literal["auto"]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Positive: TypeAlias = Annotated[float, Field(gt=0)]
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
NotNegative: TypeAlias = Annotated[float, Field(ge=0)]


class AutoOptions(BaseModel):
    """Base of an objective's options: immutable, unknown ones refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def require_settled(self) -> None:
        """Refuse options that still wait for a derived value.

        Raises:
            UserError: naming the first one.
        """
        for name, value in self:
            if value == "auto":
                raise UserError(
                    f"objective.{name} is still 'auto' and nothing to derive it from is known: give a value"
                )


def require_labels(objective: str, facts: Any) -> None:
    """Refuse images without labels, or of one class, for an objective that learns from them; `facts`: `derive.Facts`.

    Raises:
        UserError: saying how labels are given.
    """
    if facts.classes < 2:
        found = "have no labels" if facts.classes == 0 else "are all of one class"
        raise UserError(
            f"objective {objective} learns from labels, and the images {found}: sort them into one folder a class, "
            "or give images.labels=FILE.csv with the columns path,label"
        )
