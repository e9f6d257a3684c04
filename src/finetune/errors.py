"""Problems, and the errors that a user can cause, each with its exit code.

A problem has one shape everywhere, in findings, errors and JSON: a stable code for programs, the location, what is
wrong there, and what to do about it.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from os import PathLike
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem or remark."""

    code: str
    place: str  # a file, a file and line, or a key of params.yaml; may be empty
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}" if self.place else self.message
        return f"{text}; {self.remedy}" if self.remedy else text

    def to_json(self) -> dict[str, str | None]:
        """Return the fields for a JSON report."""
        return asdict(self)


class FinetuneError(Exception):
    """One or more problems and an exit code; printed without a traceback."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "defect"  # of problems without their own code

    def __init__(self, place: str | PathLike[str], message: str, remedy: str = "", *, code: str | None = None) -> None:
        self.problems: tuple[Problem, ...] = (Problem(code or self.code, str(place), message, remedy),)
        super().__init__(place, message, remedy)

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> Self:
        """Build one error for several problems, with one line each."""
        error = cls.__new__(cls)
        error.problems = tuple(problems)
        return error

    @property
    def problem(self) -> Problem:
        """The first problem."""
        return self.problems[0]

    def elsewhere(self, folder: str, name: str) -> Self:
        """Return the same error, with a temporary folder in its text replaced by the name that the user knows."""
        texts = [(part.replace(folder, "") for part in (p.place, p.message, p.remedy)) for p in self.problems]
        named = [(name + place if place else name.rstrip(": "), *rest) for place, *rest in texts]
        return type(self).of(Problem(p.code, *parts) for p, parts in zip(self.problems, named, strict=True))

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))

    def __reduce__(self) -> tuple[object, ...]:  # it is raised in worker processes
        return type(self).of, (self.problems,)


class ConfigError(FinetuneError):
    """Invalid usage or configuration: an unknown key, a value out of range, two runs at once."""

    exit_code = 2
    code = "bad-config"


class BaseModelError(ConfigError):
    """The base model, its tokenizer or its template is unusable; the code is that of validate's finding."""

    def __init__(self, code: str, key: str, message: str, remedy: str) -> None:
        super().__init__(f"params.yaml: model.{key}", message, remedy, code=code)


class DataError(FinetuneError):
    """Invalid data or unsound evidence: a malformed row, an empty split, an artifact that is not the published one."""

    exit_code = 3
    code = "bad-data"


class MachineError(FinetuneError):
    """The hardware or the system does not support the run: a missing device, too little memory or disk space."""

    exit_code = 4
    code = "machine"


class InterruptedRunError(FinetuneError):
    """Interrupted by a signal with the state saved; the same command resumes the run."""

    exit_code = 5
    code = "interrupted"
