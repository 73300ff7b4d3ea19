"""A search's trials as rows of a table."""

from __future__ import annotations

from toolkit.tune.result import Trial, TuneResult
from toolkit.tune.words import changes_of

__all__ = ["COLUMNS", "rows"]

COLUMNS = ("", ">trial", "recipe", ">SQNR dB", "task", ">size", ">median ms", ">times as fast", ">10th to 90th", "gate")


def rows(result: TuneResult) -> list[tuple[str, ...]]:
    """A row a trial, in the order of `COLUMNS`; `>` is the winner, `*` is on the front."""
    return [_row(result, trial) for trial in result.trials]


def _row(result: TuneResult, trial: Trial) -> tuple[str, ...]:
    from toolkit.console import byte_size

    return (
        (">" if trial.index == result.winner else "") + ("*" if trial.index in result.pareto else ""),
        str(trial.index),
        changes_of(trial),
        "" if trial.sqnr_db is None else f"{trial.sqnr_db:.1f}",
        trial.task,
        "" if trial.bytes is None else byte_size(trial.bytes),
        "" if trial.median_ms is None else f"{trial.median_ms:.2f}",
        "" if trial.ratio is None else f"{trial.ratio:.2f}",
        "" if trial.ratio_low is None or not trial.index else f"{trial.ratio_low:.2f}-{trial.ratio_high:.2f}",
        {"measured": "within", "drifted": "past"}.get(trial.status, f"failed: {trial.reason}".partition("\n")[0]),
    )
