"""The errors that a user can cause, each with its exit code; their text says what, where and what to do."""

from typing import ClassVar


class FinetuneError(Exception):
    """An error with a clear one-line text and an exit code; printed without a traceback."""

    exit_code: ClassVar[int] = 1


class ConfigError(FinetuneError):
    """Bad use or bad configuration: an unknown key, a value out of range, two runs at once."""

    exit_code = 2


class BaseModelError(ConfigError):
    """The base model, its tokenizer or its template can't serve: the parts of validate's finding of that code."""

    def __init__(self, code: str, key: str, what: str, fix: str) -> None:
        super().__init__(f"params.yaml: model.{key}: {what}; {fix}")
        self.code, self.where, self.what, self.fix = code, f"params.yaml: model.{key}", what, fix


class DataError(FinetuneError):
    """Bad data or unsound evidence: a broken row, an empty split, an artifact that is not the one published."""

    exit_code = 3


class MachineError(FinetuneError):
    """This machine can't: no such device, no memory, no disk."""

    exit_code = 4


class InterruptedRunError(FinetuneError):
    """Stopped from outside with its state kept; the same command goes on."""

    exit_code = 5
