"""Compiling in a process of its own: a crash, a hang or a hunger for memory becomes an error that says so."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil

from runtimes._tensorrt import builder
from runtimes._tensorrt.job import Job, partial_path
from runtimes._tensorrt.kernels import count_kernels
from toolkit.compiled import BuiltEngine
from toolkit.errors import StageError
from toolkit.supervision import stop, watch

__all__ = ["Limits", "Probed", "compile_engines", "probe"]

_TAIL = 6
_PROBE_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Limits:
    """What one architecture's build may take: seconds of wall clock, and bytes of resident memory.

    The default for memory is 90% of the machine's.
    """

    seconds: float = 3600.0
    memory: int | None = None

    @property
    def bytes(self) -> int:
        """The memory limit in bytes."""
        return self.memory if self.memory is not None else int(psutil.virtual_memory().total * 0.9)


def compile_engines(job: Job, limits: Limits | None = None) -> list[BuiltEngine]:
    """Run the job, each architecture in a process of its own; answers one entry each, with files in `job.folder`.

    The limits hold for each. Raises StageError that names the architecture, with the last lines of the builder's log,
    where it refuses, crashes, or passes a limit; no engine of the job is left then.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="toolkit-trt-") as scratch:
            recipe = Path(scratch) / "recipe.json"
            recipe.write_text(job.recipe(), encoding="utf-8")
            return [_compile(job, recipe, architecture, limits or Limits()) for architecture in job.architectures]
    except BaseException:
        _remove_engines(job)
        raise


def _compile(job: Job, recipe: Path, architecture: str, limits: Limits) -> BuiltEngine:
    report, log = recipe.with_name(f"{architecture}.json"), recipe.with_name(f"{architecture}.txt")
    arguments = ["--recipe", recipe, "--library", job.library, "--arch", architecture]
    problem, hint = _watch([*map(str, arguments), "--output", job.folder, "--report", str(report)], log, limits)
    if problem:
        raise StageError("build", f"{architecture}: {problem}: {_tail(log)}", hint=hint or _hint(job))
    answer = json.loads(report.read_text(encoding="utf-8"))
    counts = count_kernels(answer["plan"])
    return BuiltEngine(
        architecture=architecture,
        file=answer["file"],
        bytes=answer["bytes"],
        seconds=answer["seconds"],
        attentions=answer["attentions"],
        sha256=answer["sha256"],
        profiles=max(sum(map(bool, job.profiles)), 1),
        fused_attentions=counts.fused_attentions if counts else None,
        gemms=counts.gemms if counts else None,
        kernels=counts.kernels if counts else None,
        int8_attentions=counts.int8_attentions if counts else None,
    )


@dataclass(frozen=True, slots=True)
class Probed:
    """A library's version and the architectures it compiles for (none: its own GPU's only), or why it does not."""

    version: str = ""
    offered: tuple[str, ...] = ()
    reason: str = ""


def probe(module: str) -> Probed:
    """Start the library's builder in a process of its own."""
    try:
        done = subprocess.run(
            _command(["--probe", module]), capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Probed(reason=f"{module} did not start in {_PROBE_SECONDS} s")
    if done.returncode:
        silent = f"{module} does not start: it ended with code {done.returncode}"
        last = (done.stderr.strip().splitlines() or [silent])[-1]
        return Probed(reason=last.removeprefix(builder.FAILED))
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    return Probed(answer["version"], tuple(answer["offered"]))


def _command(arguments: list[str]) -> list[str]:
    # Our own modules beside it must not stand in for anybody's of the same name.
    return [sys.executable, "-P", builder.__file__, *arguments]


def _watch(arguments: list[str], log: Path, limits: Limits) -> tuple[str, str]:
    """Run the builder to its end; answers what went wrong and what to do about it, or nothing."""
    with log.open("wb") as stream:
        process = subprocess.Popen(_command(arguments), stdout=stream, stderr=stream)
        try:
            problem = _wait(process, limits)
        finally:
            stop(process)
    return problem if problem[0] else (_verdict(process.returncode), "")


def _wait(process: subprocess.Popen[bytes], limits: Limits) -> tuple[str, str]:
    breach = watch(process, seconds=limits.seconds, memory=limits.bytes)
    if breach is None:
        return "", ""
    if breach.what == "seconds":
        hint = f"Allow it more seconds: --build-timeout {max(2 * limits.seconds, 60):g}."
    else:
        hint = f"Allow it more MiB: --build-memory {2 * (int(breach.used) >> 20)}."
    return f"TensorRT's builder {breach.said}", hint


def _verdict(code: int) -> str:
    if code == 0:
        return ""
    if code < 0:
        return f"TensorRT's builder crashed with {signal.Signals(-code).name}"
    if code == 1:
        return "TensorRT's builder failed"
    return "TensorRT refused the graph" if code == builder.REFUSED else "TensorRT's builder did not start"


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
