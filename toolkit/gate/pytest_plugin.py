"""The gate as pytest items: `pytest --toolkit-recipe recipes/mini.yaml --toolkit-baseline drift-baseline.json`.

Every pytest run of an environment with the toolkit loads this file, so nothing is imported here but pytest: the rest
is, once one of the options is given.
"""

from __future__ import annotations

import shlex
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from toolkit.gate.result import CheckName, Outcome
    from toolkit.gate.run import Against

__all__ = ["GateError", "GateFile", "GateItem"]


class GateError(Exception):
    """What a check found, in sentences; it is shown without a traceback."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that bring items: each recipe and each bundle has one for each check of each of its targets."""
    group = parser.getgroup("toolkit", "drift gate of the transformer export toolkit")
    group.addoption("--toolkit-recipe", action="append", default=[], metavar="FILE", help="Run this recipe's gates.")
    group.addoption("--toolkit-bundle", action="append", default=[], metavar="DIR", help="Check this bundle's gates.")
    group.addoption("--toolkit-baseline", metavar="FILE", help="Hold them to this baseline as well.")
    group.addoption("--toolkit-tolerance", default="", metavar="KEY=VALUE,...", help="As toolkit gate --tolerance.")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the gate's items before `-k` and others choose among them."""
    paths = [Path(given) for given in (*config.getoption("toolkit_recipe"), *config.getoption("toolkit_bundle"))]
    if not paths:
        return
    from toolkit.errors import ToolkitError

    try:
        gate = config.stash[_GATE] = _Gate(_against(config))
        for path in paths:
            file = GateFile.from_parent(session, path=path.resolve(), given=path, gate=gate)
            found = list(file.collect())
            file.ihook.pytest_collectreport(report=pytest.CollectReport(file.nodeid, "passed", None, [*found]))
            items.extend(found)
    except ToolkitError as error:
        raise pytest.UsageError(f"{error}\n{error.hint}".rstrip()) from error


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What no item fails for: improvements, and libraries that changed."""
    gate = config.stash.get(_GATE, None)
    for outcome in gate.ran if gate else ():
        for said in outcome.better:
            terminalreporter.write_line(f"better: {outcome.subject}: {said}")
        for said in outcome.notes:
            terminalreporter.write_line(f"note: {outcome.subject}: {said}")


class GateFile(pytest.File):
    """A recipe, or a bundle's folder."""

    def __init__(self, *, given: Path, gate: _Gate, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.given, self.gate = given, gate

    def collect(self) -> Iterator[GateItem]:
        """An item for each check of each target. Raises UsageError where the file is not right."""
        from toolkit.gate.measure import sources_of
        from toolkit.gate.result import CHECKS

        for source in sources_of(self.given):
            for check in CHECKS if self.gate.against.baseline else CHECKS[:2]:
                yield GateItem.from_parent(
                    self, name=f"{source.target}::{check}", target=source.target, check=check, line=source.line
                )


class GateItem(pytest.Item):
    """One check of one subject; the first of a file runs it, the others read the outcome."""

    def __init__(self, *, target: str, check: CheckName, line: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.target, self.check, self.line = target, check, line

    def runtest(self) -> None:
        """Fail with the check's sentences, or skip with why it was not made, where another item fails for that."""
        file = self.parent
        if not isinstance(file, GateFile):
            raise TypeError(f"{self.nodeid} was not collected from a recipe or a bundle")
        outcome = file.gate.outcome(file.given, self.target)
        found = outcome.check(self.check)
        if found.state == "skipped":
            if not outcome.passed and not self._told(outcome):
                raise GateError("\n".join([*found.sentences, *outcome.failures]))
            pytest.skip("; ".join(found.sentences))
        if found.state != "passed":
            raise GateError("\n".join(found.sentences))

    def _told(self, outcome: Outcome) -> bool:
        """Whether an item of what failed is in this run: `-k size` must not be green where the export crashed."""
        failed = {check.name for check in outcome.checks if check.state in ("failed", "error")}
        return any(
            isinstance(item, GateItem)
            and item.parent is self.parent
            and item.target == self.target
            and item.check in failed
            for item in self.session.items
        )

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The sentences alone, for what the gate found; a traceback for anything else."""
        return str(excinfo.value) if isinstance(excinfo.value, GateError) else super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int, str]:
        """The recipe's line of the target, from 0 as pytest counts."""
        return self.path, self.line - 1, f"{self.target}: {self.check}"


class _Gate:
    """What the items of one run share: the baseline, and the outcomes by file and target."""

    def __init__(self, against: Against) -> None:
        self.against = against
        self._outcomes: dict[tuple[Path, str], Outcome] = {}

    @property
    def ran(self) -> list[Outcome]:
        """The outcomes so far."""
        return list(self._outcomes.values())

    def outcome(self, path: Path, target: str) -> Outcome:
        """The outcome of that target; all those of its file are made at once."""
        if (path, target) not in self._outcomes:
            self._outcomes |= {(path, outcome.source.target): outcome for outcome in self._run(path)}
        return self._outcomes[path, target]

    def _run(self, path: Path) -> tuple[Outcome, ...]:
        from toolkit.cli import library_messages
        from toolkit.gate.measure import Choices
        from toolkit.gate.run import run
        from toolkit.progress import Silent

        # A project may turn warnings into errors; the libraries' are not its own.
        with tempfile.TemporaryDirectory(prefix="toolkit-gate-") as place, warnings.catch_warnings():
            library_messages(shown=False)
            typed = shlex.join(["pytest", "--toolkit-bundle" if path.is_dir() else "--toolkit-recipe", str(path)])
            choices = Choices(Path(place), temporary=True, command=typed)
            return run([path], choices, self.against, Silent()).outcomes


_GATE = pytest.StashKey[_Gate]()


def _against(config: pytest.Config) -> Against:
    from toolkit.gate.run import Against, against_file

    given: str | None = config.getoption("toolkit_baseline")
    tolerance: str = config.getoption("toolkit_tolerance")
    return against_file(Path(given), tolerance) if given else Against()
