"""What a result in a file has to be for the pages to show it: the file may be a stranger's."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StrictInt, StrictStr, ValidationError

_Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Number(BaseModel):
    value: _Finite
    low: _Finite
    high: _Finite


class _Images(BaseModel):
    images: StrictInt = 0


class _Twins(_Images):
    pairs: list[Annotated[list[Any], Field(min_length=2, max_length=2)]]


class _Settings(BaseModel):
    """What the pages read of the settings; whatever else stands there is shown as it is, or not at all."""

    split: StrictStr = ""
    test: _Images = _Images()
    twins: _Twins = _Twins(pairs=[])
    blur: list[_Finite] = []
    noise: list[_Finite] = []
    jpeg: list[_Finite] = []
    contrast: list[_Finite] = []


class _Result(BaseModel):
    protocol: StrictStr
    metrics: dict[Any, dict[Any, _Number]]
    chosen: dict[Any, Any]
    settings: _Settings


def is_result(plain: object) -> bool:
    """Whether JSON data is a result as `Result.to_json` gives it, so far as the pages read it."""
    try:
        _Result.model_validate(plain)
    except ValidationError:
        return False
    return True
