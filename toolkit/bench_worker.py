"""One contender of a benchmark in a process of its own: `python -m toolkit.bench_worker JOB`.

It speaks JSON lines: one when it has loaded, then what N runs took for `run N`, its peak for `memory`, and bytes a
second for `bandwidth`; a closed stdin ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Protocol, cast

import numpy as np
import psutil

from toolkit import plugins
from toolkit.bundle.read import Bundle, open_bundle
from toolkit.errors import ToolkitError, UnsupportedError, UsageError
from toolkit.generation.generate import Generation, generate
from toolkit.sessions import open_decoder, open_engine
from toolkit.types import Decoder, OnDevice, Session

__all__ = ["main", "peak_rss", "pin", "read_bandwidth"]

_NOT_HERE = "Time it on a machine with its device, or time a bundle of an ort-cpu target."
_BANDWIDTH_BYTES = 256 << 20


class _Work(Protocol):
    """What a contender does when told to run; `ready` is what it says once it has loaded, `runs` what does it."""

    ready: dict[str, Any]

    @property
    def runs(self) -> Session | Decoder: ...

    def run(self, times: int) -> dict[str, Any]: ...


class _Batch:
    """Runs a session on the same inputs; the first outputs are saved."""

    def __init__(self, job: Mapping[str, Any], session: Session) -> None:
        with np.load(job["inputs"], allow_pickle=False) as stored:
            self._inputs = {name: stored[name] for name in stored.files}
        self.runs = session
        np.savez(job["outputs"], **cast("Any", session.run(self._inputs)))
        self.ready: dict[str, Any] = {"ran_on": session.ran_on}

    def run(self, times: int) -> dict[str, Any]:
        """Seconds of each run."""
        return {"seconds": [self._timed() for _ in range(times)]}

    def _timed(self) -> float:
        start = time.perf_counter()
        self.runs.run(self._inputs)
        return time.perf_counter() - start


class _Text:
    """Lets a language model continue the same tokens greedily; nothing ends it early. `facts` go into `ready`."""

    def __init__(self, job: Mapping[str, Any], decoder: Decoder, **facts: int) -> None:
        self.runs = decoder
        self._prompt = np.array(job["tokens"], np.int64)
        self._settings = Generation(max_new_tokens=job["new_tokens"])
        self.ready: dict[str, Any] = {"ran_on": decoder.ran_on, "tokens": self._generated()[0], **facts}

    def run(self, times: int) -> dict[str, Any]:
        """Seconds to the first token, and from each token to the next, of each run."""
        return {"runs": [self._timed() for _ in range(times)]}

    def _timed(self) -> dict[str, Any]:
        start = time.perf_counter()
        _, moments = self._generated()
        return {"first": moments[0] - start, "next": np.diff(moments).tolist()}

    def _generated(self) -> tuple[list[int], list[float]]:
        tokens, moments = [], []
        for event in generate(self.runs, [self._prompt], self._settings):
            tokens.append(event.token)
            moments.append(time.perf_counter())
        return tokens, moments


def main(job: Mapping[str, Any], commands: IO[str], answers: IO[str]) -> None:
    """Load what the job names, then answer commands until there are no more."""
    try:
        baseline, work = _load(job)
        _answer(answers, work.ready)
        for line in commands:
            _answer(answers, _obey(line.split(), work, baseline, job["threads"]))
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


def read_bandwidth(threads: int, size: int = _BANDWIDTH_BYTES) -> float:
    """Bytes a second at which that many threads read memory: numpy's maximum of float32, each thread its own part.

    The parts are `size` bytes together, far beyond any cache; the best of seven passes counts.
    """
    parts = [np.ones(size // 4 // threads, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        seconds = min(_pass(pool, parts) for _ in range(7))
    return sum(part.nbytes for part in parts) / seconds


def _pass(pool: ThreadPoolExecutor, parts: list[np.ndarray[Any, Any]]) -> float:
    start = time.perf_counter()
    list(pool.map(np.max, parts))
    return time.perf_counter() - start


def _load(job: Mapping[str, Any]) -> tuple[int, _Work]:
    """The resident bytes once the libraries are imported, and what is to run."""
    if job["pin"]:
        pin(job["threads"])
    bundle = open_bundle(Path(job["folder"]))
    limit = len(job["tokens"]) + job["new_tokens"] if "tokens" in job else 0
    if job["kind"] == "torch":
        return _load_torch(job, bundle, limit)
    plugins.runtime(bundle.manifest.target.runtime)
    baseline = psutil.Process().memory_info().rss
    if not limit:
        return baseline, _Batch(job, open_engine(bundle, otherwise=_NOT_HERE))
    return baseline, _Text(job, open_decoder(bundle, limit=limit, rows=1, otherwise=_NOT_HERE))


def _load_torch(job: Mapping[str, Any], bundle: Bundle, limit: int) -> tuple[int, _Work]:
    import torch

    from exporters.reference import TorchSession
    from toolkit.generation.torch_decoder import TorchDecoder

    torch.set_num_threads(job["threads"])
    spec = bundle.manifest.spec()
    family = plugins.family(spec.family)
    baseline = psutil.Process().memory_info().rss
    if not limit:
        return baseline, _Batch(job, TorchSession(family.load(spec)))
    decoder = TorchDecoder(family.load(spec), limit=limit)
    return baseline, _Text(job, decoder, weights=decoder.weight_bytes)


def _obey(command: list[str], work: _Work, baseline: int, threads: int) -> dict[str, Any]:
    if command[0] == "run":
        return work.run(int(command[1]))
    if command[0] == "bandwidth":
        return {"bandwidth": read_bandwidth(threads)}
    device = asdict(work.runs.device_memory()) if isinstance(work.runs, OnDevice) else None
    return {"imported": baseline, "peak": peak_rss(), "device": device}


def _answer(answers: IO[str], value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    # Libraries print to file descriptor 1 as they like, so the answers get a descriptor of their own.
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    main(json.loads(sys.argv[1]), sys.stdin, own)
