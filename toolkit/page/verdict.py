"""The answer first: whether a bundle keeps its gates, what is worst in it, and on what that was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from toolkit.console import byte_size
from toolkit.drift.report import DriftReport, OutputDrift, StageDrift
from toolkit.drift.table import task_words
from toolkit.page.blocks import Cell, number
from toolkit.page.sources import Subject
from toolkit.page.words import decibels, decimals

__all__ = ["Verdict", "headline", "shipped_bytes", "verdict", "worst_output"]

_NOTABLE_DB = 0.05


@dataclass(frozen=True, slots=True)
class Verdict:
    """One bundle in a few sentences; `why` says why an engine did not run, `facts` are its key figures by name."""

    label: str
    target: str
    passed: bool
    sentence: str
    engine: str
    why: str
    again: str
    task: str
    facts: tuple[tuple[str, Cell], ...]


def verdict(subject: Subject) -> Verdict:
    """The bundle's verdict, from its drift report and from what was measured again."""
    last = subject.drift.stages[-1]
    return Verdict(
        label=subject.label,
        target=subject.target,
        passed=subject.passed,
        sentence=_sentence(subject.drift, subject.rerun.drift),
        engine=_engine(subject, last),
        why=subject.bundle.manifest.engine.reason,
        again=_again(subject),
        task=task_words(last.task),
        facts=_facts(subject, last),
    )


def headline(verdicts: Sequence[Verdict]) -> str:
    """The page's first line."""
    broken = [each.label for each in verdicts if not each.passed]
    if len(verdicts) == 1:
        return f"{verdicts[0].label} {'breaks its gates' if broken else 'keeps its gates'}"
    if not broken:
        return f"{'Both' if len(verdicts) == 2 else f'All {len(verdicts)}'} bundles keep their gates"
    return f"{len(broken)} of {len(verdicts)} bundles {'breaks its' if len(broken) == 1 else 'break their'} gates"


def worst_output(stage: StageDrift) -> OutputDrift:
    """The output that could not be compared, else the one with the lowest SQNR."""
    failed = [output for output in stage.outputs if output.failure]
    return failed[0] if failed else min(stage.outputs, key=lambda output: output.sqnr_db or 0.0)


def shipped_bytes(subject: Subject) -> int:
    """The size of what runs: the engine's files, or the graph and its weights where nothing was compiled."""
    manifest = subject.bundle.manifest
    weights = [data.name for data in subject.graph.data_files]
    names = manifest.engine.files or (manifest.graph, *weights)
    return sum(manifest.files[name].bytes for name in dict.fromkeys(names) if name in manifest.files)


def _sentence(drift: DriftReport, here: StageDrift | None) -> str:
    broken = next((stage for stage in drift.stages if not stage.passed), None)
    if broken is not None:
        return f"Stage {broken.stage} moved too far: {'; '.join(broken.failures)}."
    if here is not None and not here.passed:
        return f"It passed when it was written, but not here: {'; '.join(here.failures)}."
    last = drift.stages[-1]
    worst = worst_output(last)
    return f"At its worst output, {worst.name}, SQNR is {decibels(worst.sqnr_db)}{_margin(worst, last)}.{_cost(drift)}"


def _margin(worst: OutputDrift, stage: StageDrift) -> str:
    gate = stage.gate.min_sqnr_db
    if gate is None or worst.sqnr_db is None:
        return ""
    spare = worst.sqnr_db - gate
    return (
        f", {decibels(spare)} above the gate of {gate:g} dB" if spare < float("inf") else f"; the gate is {gate:g} dB"
    )


def _cost(drift: DriftReport) -> str:
    losses = [
        (loss, stage.stage)
        for stage, loss in zip(drift.stages, drift.added_loss_db(), strict=True)
        if loss is not None and loss >= _NOTABLE_DB
    ]
    if not losses:
        return ""
    loss, stage = max(losses)
    return f" Stage {stage} cost most, {decibels(loss)}."


def _engine(subject: Subject, last: StageDrift) -> str:
    engine = subject.bundle.manifest.engine
    if engine.status == "executed":
        return f"The engine was executed: drift is its own, by {last.ran_on}."
    if engine.status == "built":
        return f"Built by {engine.builder}, the engine has not run: drift is that of its graph, by {last.ran_on}."
    return f"There is no engine, only its graph: drift is that of the graph, by {last.ran_on}."


def _again(subject: Subject) -> str:
    here = subject.rerun.drift
    if here is None:
        return f"{subject.rerun.told}."
    judged = "passed" if here.passed else "FAILED"
    return f"{subject.rerun.told}: {decibels(here.worst().sqnr_db)}, {judged}."


def _facts(subject: Subject, last: StageDrift) -> tuple[tuple[str, Cell], ...]:
    worst = last.worst()
    size = shipped_bytes(subject)
    facts = [
        ("SQNR", number(decibels(worst.sqnr_db), worst.sqnr_db)),
        ("cosine", number(decimals(worst.cosine, 6), worst.cosine)),
        ("size", Cell(byte_size(size), str(size))),
    ]
    return tuple(facts)
