"""One contender of a benchmark in a process of its own: `python -m toolkit.bench_worker JOB`.

It speaks JSON lines: one when it has loaded, then the seconds of N runs for `run N`, and its peak for `memory`;
a closed stdin ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import psutil

from toolkit import plugins
from toolkit.bundle.read import open_bundle
from toolkit.errors import ToolkitError, UnsupportedError, UsageError
from toolkit.sessions import open_engine
from toolkit.types import Session, Tensors

__all__ = ["main", "peak_rss", "pin"]

_NOT_HERE = "Time it on a machine with its device, or time a bundle of an ort-cpu target."


def main(job: Mapping[str, Any], commands: IO[str], answers: IO[str]) -> None:
    """Load what the job names, then answer commands until there are no more."""
    try:
        baseline, session = _load(job)
        with np.load(job["inputs"], allow_pickle=False) as stored:
            inputs = {name: stored[name] for name in stored.files}
        np.savez(job["outputs"], **cast("Any", session.run(inputs)))
        _answer(answers, {"ran_on": session.ran_on})
        for line in commands:
            _answer(answers, _obey(line.split(), session, inputs, baseline))
    except ToolkitError as error:
        _answer(answers, {"error": type(error).__name__, "message": str(error), "hint": error.hint})
    except Exception as error:
        _answer(answers, {"error": "StageError", "message": f"{type(error).__name__}: {error}", "hint": ""})
        raise


def peak_rss() -> int:
    """The most bytes this process ever had resident, mapped files included.

    From VmHWM on Linux, since ru_maxrss there is inherited from the parent through fork and exec.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    memory = psutil.Process().memory_info()
    if hasattr(memory, "peak_wset"):
        return int(memory.peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def pin(threads: int) -> None:
    """Keep this process to that many processors, of different cores first; pools are sized by that.

    Raises UnsupportedError where the system cannot do that, UsageError where there are too few processors.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UnsupportedError("--threads needs Linux", hint="Leave it out: all physical cores are used.")
    allowed = sorted(os.sched_getaffinity(0), key=lambda cpu: (_rank_in_core(cpu), cpu))
    if threads > len(allowed):
        raise UsageError(f"{threads} threads, but {len(allowed)} processors", hint=f"Allowed: 1 to {len(allowed)}.")
    os.sched_setaffinity(0, allowed[:threads])


def _rank_in_core(cpu: int) -> int:
    """0 for the first hardware thread of a core, 1 for its sibling."""
    listed = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
    if not listed.is_file():
        return 0
    first = listed.read_text().replace("-", ",").split(",")[0]
    return int(int(first) != cpu)


def _load(job: Mapping[str, Any]) -> tuple[int, Session]:
    """The resident bytes once the libraries are imported, and the session."""
    if job["pin"]:
        pin(job["threads"])
    bundle = open_bundle(Path(job["folder"]))
    spec = bundle.manifest.spec()
    if job["kind"] == "torch":
        import torch

        from exporters.reference import TorchSession

        torch.set_num_threads(job["threads"])
        family = plugins.family(spec.family)
        baseline = psutil.Process().memory_info().rss
        return baseline, TorchSession(family.load(spec))
    plugins.runtime(bundle.manifest.target.runtime)
    baseline = psutil.Process().memory_info().rss
    return baseline, open_engine(bundle, otherwise=_NOT_HERE)


def _obey(command: list[str], session: Session, inputs: Tensors, baseline: int) -> dict[str, Any]:
    if command[0] == "run":
        return {"seconds": [_timed(session, inputs) for _ in range(int(command[1]))]}
    return {"imported": baseline, "peak": peak_rss()}


def _timed(session: Session, inputs: Tensors) -> float:
    start = time.perf_counter()
    session.run(inputs)
    return time.perf_counter() - start


def _answer(answers: IO[str], value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    # Libraries print to file descriptor 1 as they like, so the answers get a descriptor of their own.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(json.loads(sys.argv[1]), sys.stdin, own)
