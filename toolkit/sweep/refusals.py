"""What is refused before anything runs: each run is planned as `toolkit export --dry-run` does, in another process.

A model's own code may be called for that, which must not be able to end the sweep.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from toolkit.cli import library_messages
from toolkit.errors import ToolkitError
from toolkit.plan import plan
from toolkit.sweep.child import perform, run_child
from toolkit.sweep.row import in_short
from toolkit.sweep.run import Job

__all__ = ["refusals"]


def refusals(jobs: Sequence[Job]) -> Mapping[str, str]:
    """By run's key, why it is refused; a run that could not be planned for another reason is left to fail by itself."""
    if not jobs:
        return {}
    first, limit = jobs[0], jobs[0].settings.seconds
    seconds = limit and limit * len(jobs)
    ended = run_child(__name__, tuple(jobs), folder=first.folder, search=first.search, seconds=seconds)
    return dict(json.loads(line) for line in ended.lines)


def _work(jobs: Sequence[Job]) -> Iterator[str]:
    library_messages(shown=False)
    for job in jobs:
        if reason := _reason(job):
            yield json.dumps([job.run.key, reason])


def _reason(job: Job) -> str:
    try:
        plan(job.request())
    except ToolkitError as error:
        return in_short(f"{error}. {error.hint}")
    except Exception:
        return ""
    return ""


if __name__ == "__main__":
    perform(_work)
