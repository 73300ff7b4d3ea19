"""The report of a checklist: `report.md` for people, `report.json` for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gpu_steps import Checklist, Outcome

__all__ = ["write"]


def write(checklist: Checklist) -> None:
    """Write both files into the checklist's folder, whole or not at all."""
    texts = {
        "report.json": json.dumps(checklist.as_json(), indent=2) + "\n",
        "report.md": "\n".join(_markdown(checklist)) + "\n",
    }
    for name, text in texts.items():
        partial = checklist.folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(checklist.folder / name)


def _markdown(checklist: Checklist) -> Iterator[str]:
    counts = {verdict: _count(checklist, verdict) for verdict in ("passed", "failed", "not run")}
    yield "# GPU checklist"
    yield ""
    yield ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    yield ""
    for name in ("gpu", "versions"):
        yield from _facts(checklist, name)
    yield "| step | verdict | seconds | said | log |"
    yield "|---|---|---|---|---|"
    yield from (_row(outcome) for outcome in checklist.outcomes)
    yield ""
    yield from _measured(checklist, "drift", _DRIFT)
    yield from _measured(checklist, "bench", _BENCH)


def _count(checklist: Checklist, verdict: str) -> int:
    return sum(outcome.verdict == verdict for outcome in checklist.outcomes)


def _facts(checklist: Checklist, name: str) -> Iterator[str]:
    for outcome in checklist.outcomes:
        if outcome.name == name and outcome.facts:
            yield from (f"- {key}: {value}" for key, value in outcome.facts.items())
            yield ""


def _row(outcome: Outcome) -> str:
    log = f"[log]({outcome.log})" if outcome.log else ""
    return f"| {outcome.name} | {outcome.verdict} | {outcome.seconds:g} | {_cell(outcome.reason)} | {log} |"


_DRIFT = {"device_sqnr_db": "SQNR dB on the device", "graph_sqnr_db": "of the compiled graph", "ran_on": "ran on"}
_BENCH = {"contenders": "contenders", "ratio": "times as fast", "device_memory": "device memory"}


def _measured(checklist: Checklist, kind: str, columns: Mapping[str, str]) -> Iterator[str]:
    rows = [outcome for outcome in checklist.outcomes if outcome.name.startswith(kind) and outcome.facts]
    if not rows:
        return
    yield f"| {kind} | {' | '.join(columns.values())} |"
    yield "|" + "---|" * (len(columns) + 1)
    for outcome in rows:
        cells = " | ".join(_cell(outcome.facts.get(key, "")) for key in columns)
        yield f"| {outcome.name} | {cells} |"
    yield ""


def _cell(value: Any) -> str:
    text = f"{value:.2f}" if isinstance(value, float) else str(value if value is not None else "")
    return text.replace("|", "\\|").replace("\n", " ")
