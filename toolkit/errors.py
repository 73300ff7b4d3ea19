"""The error tree: every failure a user can cause or meet has one class and one exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toolkit.drift.report import DriftReport

__all__ = [
    "DriftError",
    "MissingDependencyError",
    "StageError",
    "ToolkitError",
    "UnsupportedError",
    "UsageError",
]


class ToolkitError(Exception):
    """Base of all errors the toolkit raises on purpose.

    The message says what happened; `hint` says what is allowed and what to type next.
    `exit_code` is what the command line exits with.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(ToolkitError):
    """Something the user gave is wrong: a name, a path, a file, a value."""

    exit_code = 2


class MissingDependencyError(ToolkitError):
    """A library is needed that is not installed; the hint is the exact pip command."""

    exit_code = 3


class UnsupportedError(ToolkitError):
    """A combination that is not supported here; the hint names what is."""

    exit_code = 4


class StageError(ToolkitError):
    """A stage of the line failed. Raised `from` the library's own error."""

    exit_code = 5

    def __init__(self, stage: str, message: str, *, hint: str = "") -> None:
        super().__init__(f"{stage}: {message}", hint=hint)
        self.stage = stage


class DriftError(ToolkitError):
    """It ran, but its outputs moved further from the fp32 PyTorch reference than the gate allows.

    `report` is what was measured until then, where there is one.
    """

    exit_code = 6

    def __init__(self, message: str, *, hint: str = "", report: DriftReport | None = None) -> None:
        super().__init__(message, hint=hint)
        self.report = report
