"""What was measured, as it stands in the JSON file beside the page, and the tables that are made of it."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path

from toolkit.atomic import write_whole
from toolkit.bench import Ratio, turn_ratio

__all__ = ["STRANGE", "Drift", "Facts", "Raced", "Results", "replace_section", "speedup", "tables", "told"]

STRANGE = 0.5
"""Above this relative L2 a ratio of speeds compares two different computations, and the page says so."""

_NONE = "-"

Facts = Mapping[str, str]
"""When, at which commit and on what something was measured."""


@dataclass(slots=True)
class Raced:
    """One column: milliseconds of each timed run by contender and round.

    `moved` is the relative L2 of what a contender answers to the timed inputs from what the reference does.
    """

    title: str
    model: str
    measured: str
    load: float
    turns: dict[str, list[list[float]]]
    moved: dict[str, float]
    facts: Facts


@dataclass(slots=True)
class Drift:
    """Relative L2 by contender on the held-out set that `data` and `sha256` name."""

    title: str
    data: str
    sha256: str
    relative_l2: dict[str, float]
    facts: Facts

    @property
    def column(self) -> str:
        """The head of its column."""
        return f"drift {self.title}"


@dataclass(slots=True)
class Results:
    """Everything that a page says. `labels` are the rows in their order, `absent` reasons by model and contender."""

    reference: str
    labels: dict[str, str] = field(default_factory=dict)
    columns: dict[str, Raced] = field(default_factory=dict)
    drift: dict[str, Drift] = field(default_factory=dict)
    absent: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, reference: str) -> Results:
        """What is in the file; nothing yet where there is none. Older files hold one set of facts for all columns."""
        if not path.is_file():
            return cls(reference)
        stored = json.loads(path.read_text(encoding="utf-8"))
        shared = {"facts": stored.pop("facts", {})}
        columns = {key: Raced(**shared | value) for key, value in stored.pop("columns").items()}
        drift = {key: Drift(**shared | value) for key, value in stored.pop("drift").items()}
        return cls(**stored, columns=columns, drift=drift)

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_whole(path, json.dumps(asdict(self)))


def speedup(raced: Raced, key: str, reference: str) -> Ratio | None:
    """How many times as fast as the reference, over the rounds of the column; None where either is missing."""
    ours, theirs = raced.turns.get(key), raced.turns.get(reference)
    return turn_ratio(theirs, ours) if ours and theirs else None


def tables(results: Results) -> Iterator[str]:
    """Markdown: ratios with drift, milliseconds, and sentences on who is absent or answers something else."""
    titles = [raced.title for raced in results.columns.values()]
    drifts = [drift.column for drift in results.drift.values()]
    yield from _table([*titles, *drifts], results, _ratios)
    yield "\nMedian milliseconds of the same runs:\n"
    yield from _table(titles, results, _milliseconds)
    if remarks := [*_absences(results), *_strangers(results)]:
        yield ""
        yield from remarks


def told(results: Results, describe: Callable[[Facts], str]) -> str:
    """What `describe` says of all columns; where it differs, each with the columns that it is true of."""
    titles: dict[str, list[str]] = {}
    measured = {raced.title: raced.facts for raced in results.columns.values()}
    measured |= {drift.column: drift.facts for drift in results.drift.values()}
    for title, facts in measured.items():
        titles.setdefault(describe(facts), []).append(title)
    if len(titles) == 1:
        return next(iter(titles))
    return " and ".join(f"{what} ({', '.join(columns)})" for what, columns in titles.items())


def replace_section(page: str, name: str, lines: Iterable[str]) -> str:
    """The page with what stands between `<!-- NAME -->` and `<!-- end of NAME -->` replaced. Raises ValueError."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"the page has no {begin} … {end}")
    return "\n".join([before + begin, *lines, end + after])


def _table(heads: Sequence[str], results: Results, cells: Callable[[Results, str], list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(['contender', *heads])} |"
    yield f"|{'---|' * (len(heads) + 1)}"
    for key, label in results.labels.items():
        row = cells(results, key)
        if any(cell != _NONE for cell in row):
            yield f"| {' | '.join([label, *row])} |"


def _ratios(results: Results, key: str) -> list[str]:
    found = [speedup(raced, key, results.reference) for raced in results.columns.values()]
    speeds = [f"{ratio.median:.2f} ({ratio.p10:.2f} to {ratio.p90:.2f})" if ratio else _NONE for ratio in found]
    if key == results.reference:
        speeds = ["1" if ratio else _NONE for ratio in found]
    moved = [drift.relative_l2.get(key) for drift in results.drift.values()]
    return speeds + [_NONE if value is None else f"{value:.3f}" for value in moved]


def _milliseconds(results: Results, key: str) -> list[str]:
    turns = [raced.turns.get(key) for raced in results.columns.values()]
    return [f"{statistics.median(chain.from_iterable(done)):.1f}" if done else _NONE for done in turns]


def _absences(results: Results) -> Iterator[str]:
    for model, reasons in results.absent.items():
        for key, reason in reasons.items():
            yield f"- Absent on {model}: {results.labels.get(key, key)} ({' '.join(reason.split())[:300]})"


def _strangers(results: Results) -> Iterator[str]:
    for raced in results.columns.values():
        for key, moved in raced.moved.items():
            if moved > STRANGE:
                yield (f"- {results.labels.get(key, key)} answers something else on {raced.title}: relative L2 "
                       f"{moved:.2f} to the reference on the timed inputs.")  # fmt: skip
