"""The section `data` of params.yaml: the sources of rows, and how they are processed up to the three splits."""

import difflib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Literal, Self

import regex
from pydantic import Field, field_validator, model_validator

from finetune.config.types import (
    Count,
    MemoryAmount,
    OpenShare,
    PositiveFloat,
    PositiveInt,
    Revision,
    Section,
    Seed,
    Share,
    Split,
    Text,
    parse_bytes,
)
from finetune.records.examples import ALL
from finetune.records.formats import FIELDS, FORMATS

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName = Literal[*FORMATS]
Policy = Literal["note", "drop", "stop"]
RoleName = Literal["system", "user", "assistant", "tool"]


class Source(Section):
    """One input of the mixture: a file or folder in `data.directory`, or a dataset of the Hub.

    Only name and place are required. An omitted key has no effect: all rows are used, none is renamed.
    """

    name: Text
    path: Text | None = None
    hub: Text | None = None
    revision: Revision | None = None  # of the Hub dataset
    subset: Text | None = None  # of the Hub dataset (its configuration)
    part: Text | None = None  # of a Hub dataset or a datasets folder: its own split, like `train`
    format: FormatName | None = None  # default: detected and reported
    columns: dict[str, Text] = Field(default_factory=dict)  # our field name: the source's
    agent: Text | None = None  # of rows that name none; default: the source's name
    system_prompt: Text | None = None
    fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    cap: PositiveInt | None = None
    weight: PositiveFloat | None = None
    split: Split | None = None  # assigns all of its rows there

    @property
    def held_out(self) -> bool:
        """Whether it is the user's own validation or test file, which is used unchanged."""
        return self.split in ("validation", "test")

    @property
    def default_agent(self) -> str:
        """The agent of rows that name none."""
        return self.agent or self.name

    @field_validator("columns")
    @classmethod
    def _known_fields(cls, columns: dict[str, str]) -> dict[str, str]:
        for name in columns:
            if name not in FIELDS:
                near = difflib.get_close_matches(name, FIELDS, n=1)
                advice = f"did you mean {near[0]}?" if near else f"known fields: {', '.join(FIELDS)}"
                raise ValueError(f"{name!r} is not a field of any format; {advice} (write FIELD: COLUMN)")
        return columns

    @field_validator("hub")
    @classmethod
    def _is_name(cls, hub: str | None) -> str | None:
        if hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
            raise ValueError(f"{hub!r} is not a dataset name on the Hub, like org/name")
        return hub

    @model_validator(mode="after")
    def _has_one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("set either path (a file in data.directory) or hub (a dataset on the Hub)")
        if self.hub is not None and (self.revision is None or self.part is None):
            raise ValueError(
                "a hub dataset needs revision (40 hex digits) and part (a split of the dataset, like train)"
            )
        if self.path is not None and (self.revision or self.subset):
            raise ValueError("revision and subset apply to a hub dataset, not to a path")
        return self

    @model_validator(mode="after")
    def _one_way_to_sample(self) -> Self:
        given = [key for key in ("fraction", "cap", "weight") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are mutually exclusive; keep one")
        if given and self.held_out:
            raise ValueError(f"a {self.split} file is used unchanged; remove {given[0]}")
        return self

    @field_validator("agent")
    @classmethod
    def _not_all(cls, agent: str | None) -> str | None:
        if agent == ALL:
            raise ValueError(f"{ALL!r} means all test examples; choose another name")
        return agent


class Bounds(Section):
    """The minimum and maximum that are kept; null means no limit."""

    min: Count | None
    max: PositiveInt | None

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is more than max {self.max}")
        return self

    @property
    def given(self) -> bool:
        """Whether there is anything to check."""
        return self.min is not None or self.max is not None


class FilterConfig(Section):
    """The rows to keep; each drop has a reason code in the ledger."""

    only_successful: bool
    characters: Bounds  # of all messages except the system prompt
    tokens: Bounds  # the same, in tokens of model.base, without the tokens of the chat template
    keep_matching: tuple[Text, ...]  # regular expressions; a row must match all of them
    drop_matching: tuple[Text, ...]  # a row must match none of them
    roles: Annotated[tuple[RoleName, ...], Field(min_length=1)]

    @field_validator("keep_matching", "drop_matching")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                regex.compile(pattern)
            except regex.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns


class DuplicateConfig(Section):
    """What counts as a copy, and what happens to copies. The first one in the order of the sources is kept."""

    exact: Literal["drop", "keep"]
    near: Literal["drop", "group", "ignore"]
    threshold: OpenShare
    shingle_words: PositiveInt
    permutations: Annotated[int, Field(ge=16, le=1024)]

    @model_validator(mode="after")
    def _near_is_exact_too(self) -> Self:
        if self.near == "drop" and self.exact == "keep":
            raise ValueError("near: drop also drops exact copies; set exact: drop, or near: group")
        return self


class RiskConfig(Section):
    """What happens to a row that contains such content; all are counted, and none is ever printed."""

    control_tokens: Policy
    control_characters: Policy
    secrets: Policy
    personal_data: Policy


class SplitConfig(Section):
    """The share of the kept examples in each split, and how they are assigned."""

    method: Literal["exact", "stable"]
    train: Share
    validation: Share
    test: Share
    stratify_by: Literal["agent", "source", "label"] | None

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-9:
            raise ValueError(f"train + validation + test is {total:g}; the three shares must sum to 1")
        if self.method == "stable" and self.stratify_by is not None:
            raise ValueError("method stable uses only the hash of each row; set stratify_by: null")
        return self


class DataConfig(Section):
    """The sources of the rows and how they are processed before and in the split."""

    directory: Text
    seed: Seed  # of prepare's random choices (fractions, splits); the seed of training does not affect rows
    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    on_bad_row: Literal["stop", "skip"]
    max_bad_fraction: Share
    max_row_size: MemoryAmount
    unicode: Literal["none", "NFC", "NFKC"]
    system_prompts: dict[str, str]
    default_system_prompt: str | None
    labels_in_prompt: bool
    filters: FilterConfig
    duplicates: DuplicateConfig
    risks: RiskConfig
    split: SplitConfig

    @cached_property
    def max_row_bytes(self) -> int:
        """The largest row that is read, in bytes."""
        return parse_bytes(self.max_row_size)

    @field_validator("sources")
    @classmethod
    def _names_differ(cls, sources: tuple[Source, ...]) -> tuple[Source, ...]:
        names = [source.name for source in sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are named {twice[0]!r}; give each source a unique name")
        return sources

    @model_validator(mode="after")
    def _shares_fit_the_files(self) -> Self:
        for name in ("validation", "test"):
            own = [source.name for source in self.sources if source.split == name]
            share = getattr(self.split, name)
            if own and share:
                raise ValueError(f"source {own[0]!r} is the {name} split, so set split.{name}: 0.0 (now {share:g})")
            if not own and not share:
                raise ValueError(f"split.{name} is 0 and no source is the {name} split; set a share or add a file")
        if not self.split.train and not any(source.split == "train" for source in self.sources):
            raise ValueError("split.train is 0 and no source is the train split; there would be no training data")
        return self


class BaseName(Section):
    """The base model: prepare uses its tokenizer if a filter counts tokens."""

    base: Text
    revision: Revision | None


class PrepareParams(Section):
    """The parameters of prepare."""

    data: DataConfig
    model: BaseName
