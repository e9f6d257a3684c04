"""The base of every report: an immutable model, read from its file or rejected with the invalid field."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.errors import DataError
from finetune.files.strict_json import read_json


class Report(BaseModel):
    """A part of a report: no unknown fields, immutable after reading."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """Return plain objects, as in the file."""
        return self.model_dump(mode="json")


R = TypeVar("R", bound=Report)


def read_report(path: Path, kind: type[R]) -> R:
    """Read a report. Raise DataError, naming the field, if it is missing, malformed, or of another version."""
    return parse_report(read_json(path), kind, str(path))


def parse_report(content: Any, kind: type[R], place: str) -> R:
    """Build a report from plain objects; `place` names their file in errors."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "(top level)"
        message = f"{field}: {first['msg'][:1].lower()}{first['msg'][1:]}; it was written by a different version"
        remedy = "run its stage again (dvc repro)"
        raise DataError(place, message, remedy, code="report-version") from None


class BaseIdentity(Report):
    """The base model, pinned: a commit of the Hub, or the hash of a local folder."""

    name: str
    revision: str


class MachineReport(Report):
    """The machine of a measurement."""

    system: str
    processor: str
    cores: int | None
    memory_bytes: int
    device: str
    arithmetic: dict[str, Any]  # what determines rounding
    image: str | None
    gpu: str | None = None
    gpu_memory_bytes: int | None = None
    cuda: str | None = None
