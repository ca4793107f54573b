"""Types that the sections of a study share."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt

Count = Annotated[StrictInt, Field(ge=1, lt=2**31)]
FiniteRate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seed = Annotated[StrictInt, Field(ge=0, lt=2**32)]
Rate = Annotated[float, Field(gt=0, lt=1)]


def as_tuple(value: Any) -> Any:
    """A list, as TOML has it, as a tuple; anything else unchanged."""
    return tuple(value) if isinstance(value, list) else value


def listed(value: Any) -> Any:
    """A list as a tuple, and a single word or number as a list of one; "depths" stands for a list already."""
    if isinstance(value, str | int | float) and not isinstance(value, bool) and value != "depths":
        return (value,)
    return as_tuple(value)


class Section(BaseModel):
    """A section of a study: frozen, without unknown keys, each key documented by the string under it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
