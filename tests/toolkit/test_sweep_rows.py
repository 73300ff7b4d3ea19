"""Rows survive any interruption, and what was not finished is done again."""

from __future__ import annotations

import csv
import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from toolkit.errors import DriftError, StageError, ToolkitError, UnsupportedError, UsageError
from toolkit.sweep import driver
from toolkit.sweep.expand import runs_of
from toolkit.sweep.row import ROWS, Ledger, Row, Status, read_rows, write_table
from toolkit.sweep.run import Job, Run, Settings
from toolkit.sweep.supervise import blank_row
from toolkit.sweep.table import raise_if_not_all_passed

ENDS: tuple[Status, ...] = ("ok", "drifted", "failed", "timeout", "ok")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Run, ...]:
    """Five runs, none of which is refused."""
    monkeypatch.setattr(driver, "refusals", lambda jobs: {})
    path = tmp_path / "sweep.yaml"
    names = ", ".join(f"{{name: r{index}, seed: {index}}}" for index in range(len(ENDS)))
    path.write_text(f"models: [m]\ntargets: [t]\nrecipes: [{names}]\n", encoding="utf-8")
    return runs_of([path])


class Executor:
    """Ends each run as ENDS says, with a folder where it passed; is interrupted once `patience` runs are done."""

    def __init__(self, patience: int = 99) -> None:
        self.patience = patience
        self.done: list[str] = []

    def __call__(self, jobs: Sequence[Job]) -> Generator[Row]:
        for job in jobs:
            if len(self.done) == self.patience:
                raise KeyboardInterrupt
            status = ENDS[job.run.recipe.seed]
            if status == "ok":
                job.place.mkdir(exist_ok=True)
            self.done.append(job.run.variant)
            yield blank_row(job, status)


def do(runs: tuple[Run, ...], folder: Path, executor: Executor, *, retry: bool = True) -> tuple[Row, ...]:
    return driver.sweep(runs, Settings(folder), executor, lambda row: None, retry=retry)


def test_an_interruption_after_any_run_changes_no_row(runs: tuple[Run, ...], tmp_path: Path) -> None:
    whole = do(runs, tmp_path / "whole", Executor())
    assert [row.status for row in whole] == list(ENDS)
    for patience in range(len(runs)):
        folder = tmp_path / f"after-{patience}"
        with pytest.raises(KeyboardInterrupt):
            do(runs, folder, Executor(patience))
        assert len(read_rows(folder)) == patience
        assert do(runs, folder, Executor()) == whole


def test_a_file_cut_at_any_byte_is_gone_on_with(runs: tuple[Run, ...], tmp_path: Path) -> None:
    rows = [blank_row(Job(run, Settings(tmp_path)), "ok") for run in runs[:2]]
    with Ledger.open(tmp_path / "whole") as ledger:
        for row in rows:
            ledger.append(row)
    content = (tmp_path / "whole" / ROWS).read_bytes()
    for length in range(len(content) + 1):
        (tmp_path / ROWS).write_bytes(content[:length])
        with Ledger.open(tmp_path) as ledger:
            assert len(ledger.latest) == content[:length].count(b"\n")
            for row in rows:
                if row.key not in ledger.latest:
                    ledger.append(row)
        assert (tmp_path / ROWS).read_bytes() == content


def test_only_what_failed_runs_again(runs: tuple[Run, ...], tmp_path: Path) -> None:
    do(runs, tmp_path, Executor())
    kept = Executor()
    do(runs, tmp_path, kept, retry=False)
    assert kept.done == []
    again = Executor()
    rows = do(runs, tmp_path, again)
    assert again.done == ["r2", "r3"]
    assert len((tmp_path / ROWS).read_text().splitlines()) == len(runs) + 2
    assert [row.status for row in rows] == list(ENDS)
    (tmp_path / rows[0].run).rmdir()
    missing = Executor()
    do(runs, tmp_path, missing, retry=False)
    assert missing.done == ["r0"]


def test_a_refusal_is_asked_for_anew_and_written_once(
    runs: tuple[Run, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "refusals", lambda jobs: {runs[0].key: "no such model"})
    for _ in range(2):
        rows = do(runs[:1], tmp_path, Executor())
        assert [(row.status, row.error) for row in rows] == [("refused", "no such model")]
    assert len((tmp_path / ROWS).read_text().splitlines()) == 1
    monkeypatch.setattr(driver, "refusals", lambda jobs: {})
    assert [row.status for row in do(runs[:1], tmp_path, Executor())] == ["ok"]


def test_one_sweep_at_a_time(tmp_path: Path) -> None:
    with Ledger.open(tmp_path), pytest.raises(UsageError, match="another sweep is writing"), Ledger.open(tmp_path):
        pass


def test_a_line_that_is_no_row_is_told(tmp_path: Path) -> None:
    (tmp_path / ROWS).write_text('{"key": "a"}\n')
    with pytest.raises(UsageError, match=r"rows.jsonl, line 1 is no row"):
        read_rows(tmp_path)


def test_the_table_says_what_the_rows_say(runs: tuple[Run, ...], tmp_path: Path) -> None:
    row = blank_row(Job(runs[0], Settings(tmp_path)), "ok")
    exact = row.model_copy(update={"sqnr_db": float("inf"), "cosine": 1.0, "task": 'a "b", c', "bytes": 5})
    with Ledger.open(tmp_path) as ledger:
        ledger.append(exact)
    assert list(read_rows(tmp_path).values()) == [exact]
    with write_table([exact], tmp_path).open(newline="") as stream:
        (line,) = csv.DictReader(stream)
    said = json.loads((tmp_path / ROWS).read_text())
    assert line == {name: "" if said[name] is None else str(said[name]) for name in line}
    assert (line["sqnr_db"], line["task"]) == ("inf", 'a "b", c')


@pytest.mark.parametrize(
    ("statuses", "raised"),
    [
        (["ok", "refused"], None),
        (["ok", "drifted", "refused"], DriftError),
        (["drifted", "failed"], StageError),
        (["drifted", "timeout"], StageError),
        (["refused", "refused"], UnsupportedError),
    ],
)
def test_the_worst_of_the_rows_is_the_exit(
    statuses: list[Status], raised: type[ToolkitError] | None, runs: tuple[Run, ...], tmp_path: Path
) -> None:
    rows = [blank_row(Job(runs[0], Settings(tmp_path)), status) for status in statuses]
    if raised is None:
        raise_if_not_all_passed(rows, tmp_path)
        return
    with pytest.raises(raised) as error:
        raise_if_not_all_passed(rows, tmp_path)
    assert type(error.value) is raised
