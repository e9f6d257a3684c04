"""The types of the sections of params.yaml: strict, immutable models, bounded numbers, amounts of memory."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")

Share = Annotated[float, Field(ge=0, le=1)]

OpenShare = Annotated[float, Field(gt=0, lt=1)]

PositiveInt = Annotated[int, Field(ge=1)]

Count = Annotated[int, Field(ge=0)]

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]

Text = Annotated[str, Field(min_length=1)]

Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

# Without user, password and query: secrets belong in environment variables, not in params and reports.
Url = Annotated[str, Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")]

UNITS = {"MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}


class Section(BaseModel):
    """A part of params.yaml: strict types, no unknown keys, immutable after loading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    @classmethod
    def select_from(cls, whole: BaseModel) -> Self:
        """Select the same values from a larger model: the parameters of one stage from all parameters."""
        return cls.model_validate(whole, from_attributes=True)


def parse_bytes(text: str) -> int:
    """Parse `10 GB` as 10e9 and `10 GiB` as 10 x 2^30. Raise ValueError if number or unit is missing."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(MB|GB|MiB|GiB)", text)
    if not match or float(match[1]) == 0:
        raise ValueError(f"{text!r} is not an amount of memory; write a number and its unit, like '10 GB' or '10 GiB'")
    return int(float(match[1]) * UNITS[match[2]])


def _with_unit(text: str) -> str:
    parse_bytes(text)
    return text


MemoryAmount = Annotated[str, AfterValidator(_with_unit)]  # a number and its unit, as in params.yaml
