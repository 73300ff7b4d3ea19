"""The process of one run: the export as `toolkit export` does it, and a row of what came out."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from toolkit import console
from toolkit.bundle.read import open_bundle, report
from toolkit.cli import library_messages
from toolkit.drift.report import DriftReport
from toolkit.drift.table import task_words
from toolkit.errors import DriftError, ToolkitError
from toolkit.pipeline import export
from toolkit.plan import plan
from toolkit.progress import Rows
from toolkit.sweep.child import perform
from toolkit.sweep.row import Status, in_short
from toolkit.sweep.run import Job
from toolkit.sweep.supervise import blank_row

__all__: list[str] = []


def _work(job: Job) -> Iterator[str]:
    library_messages(shown=False)
    status, said = _outcome(job)
    yield blank_row(job, status).model_copy(update=said).model_dump_json()


def _outcome(job: Job) -> tuple[Status, dict[str, Any]]:
    try:
        (folder,) = export(plan(job.request()), Rows(console.progress()))
    except DriftError as error:
        _tell(error)
        measured = _numbers(error.report) if error.report else {}
        return "drifted", {"error": in_short(str(error)), **measured}
    except Exception as error:
        _tell(error)
        named = str(error) if isinstance(error, ToolkitError) else f"{type(error).__name__}: {error}"
        return "failed", {"error": in_short(named)}
    return "ok", _bundle_numbers(folder)


def _bundle_numbers(folder: Path) -> dict[str, Any]:
    bundle = open_bundle(folder)
    size = sum(entry.bytes for entry in bundle.manifest.files.values())
    return {"bytes": size, **_numbers(report(bundle))}


def _numbers(measured: DriftReport) -> dict[str, Any]:
    """Those of the stage that drifted, or of the last one."""
    stage = next((stage for stage in measured.stages if not stage.passed), measured.stages[-1])
    worst = stage.worst()
    return {"sqnr_db": worst.sqnr_db, "cosine": worst.cosine, "task": task_words(stage.task)}


def _tell(error: Exception) -> None:
    traceback.print_exception(error)
    if isinstance(error, ToolkitError) and error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201 - into the log


if __name__ == "__main__":
    perform(_work)
