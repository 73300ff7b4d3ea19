"""Compiling in a process of its own: a crash, a hang or a hunger for memory becomes an error that says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtimes._tensorrt.job import BuiltEngine, Job, partial_path
from toolkit.errors import StageError

__all__ = ["Limits", "compile_engines", "probe"]

_TAIL = 6
_POLL_SECONDS = 0.2
_PROBE_SECONDS = 120
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a build may take: seconds of wall clock, and bytes of resident memory (default: 90% of the machine's)."""

    seconds: float = 3600.0
    memory: int | None = None

    @property
    def bytes(self) -> int:
        """The memory limit in bytes."""
        return self.memory if self.memory is not None else int(psutil.virtual_memory().total * 0.9)


def compile_engines(job: Job, limits: Limits | None = None) -> list[BuiltEngine]:
    """Run the job; answers one entry an architecture, in order, whose files lie in `job.folder`.

    Raises StageError with the last lines of the builder's log where it refuses, crashes, or passes a limit;
    no engine of the job is left then.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-trt-") as scratch:
        request, report = Path(scratch) / "job.json", Path(scratch) / "report.json"
        log = Path(scratch) / "log.txt"
        request.write_text(job.to_json(), encoding="utf-8")
        try:
            problem = _watch([str(request), str(report)], log, limits or Limits())
            if problem:
                raise StageError("build", f"{problem}: {_tail(log)}", hint=_hint(job))
            return [BuiltEngine(**entry) for entry in json.loads(report.read_text(encoding="utf-8"))]
        except BaseException:
            _remove_engines(job)
            raise


def probe(module: str) -> tuple[str, str]:
    """The library's version and an empty reason where its builder starts; else an empty version and the reason."""
    try:
        done = subprocess.run(
            _command(["--probe", module]),
            capture_output=True,
            text=True,
            timeout=_PROBE_SECONDS,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "", f"{module} did not start in {_PROBE_SECONDS} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"it ended with code {done.returncode}"
    return (last, "") if done.returncode == 0 else ("", f"{module} does not start: {last}")


def _command(arguments: list[str]) -> list[str]:
    return [sys.executable, "-m", "runtimes._tensorrt.builder", *arguments]


def _environment() -> dict[str, str]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _watch(arguments: list[str], log: Path, limits: Limits) -> str:
    """Run the builder to its end; answers what went wrong, or nothing."""
    with log.open("wb") as stream:
        process = subprocess.Popen(_command(arguments), stdout=stream, stderr=stream, env=_environment())
        try:
            problem = _wait(process, limits)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    return problem or _verdict(process.returncode)


def _wait(process: subprocess.Popen[bytes], limits: Limits) -> str:
    start = time.monotonic()
    while process.poll() is None:
        if time.monotonic() - start > limits.seconds:
            return f"TensorRT's builder took longer than the limit of {limits.seconds:g} s and was stopped"
        used = _resident(process.pid)
        if used > limits.bytes:
            return (
                f"TensorRT's builder used {used >> 20} MiB, "
                f"more than the limit of {limits.bytes >> 20} MiB, and was stopped"
            )
        try:
            process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    return ""


def _resident(pid: int) -> int:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _verdict(code: int) -> str:
    if code == 0:
        return ""
    if code < 0:
        return f"TensorRT's builder crashed with {signal.Signals(-code).name}"
    return "TensorRT refused the graph"


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_TAIL:]) or "it said nothing"


def _hint(job: Job) -> str:
    return (
        f"The graph stays fine for ONNX Runtime: try the target ort-cpu. To repeat the build alone, open {job.graph} "
        f"with {job.library}."
    )


def _remove_engines(job: Job) -> None:
    for architecture in job.architectures:
        path = Path(job.folder) / f"engine-{architecture}.plan"
        path.unlink(missing_ok=True)
        partial_path(path).unlink(missing_ok=True)
