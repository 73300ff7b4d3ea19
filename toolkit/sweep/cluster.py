"""Runs on a Ray cluster: Ray schedules them and starts those of a lost worker or node anew; each makes its row there.

Every node has to see the sweep's folder, the models and the data under the same paths, and have the same toolkit.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import toolkit
from toolkit.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from toolkit.sweep.row import Row
    from toolkit.sweep.run import Job

__all__ = ["ray_executor"]

_RETRIES = 2
_CONNECT_SECONDS = 5
_WAIT_SECONDS = 1
_START = "Start a cluster on this machine with: ray start --head (and end it with: ray stop)."
_ABROAD = "Give --ray auto for the cluster of this machine, or --ray HOST:PORT."


def ray_executor(address: str, cpus: int) -> Callable[[Sequence[Job]], Generator[Row]]:
    """Does runs on the cluster at `auto` or HOST:PORT, each on a node with `cpus` free.

    A run whose worker or node is lost starts anew, twice at most; then the loss is its row. Closing the rows ends the
    runs at work. Raises MissingDependencyError where Ray is not installed and UsageError where nobody answers at the
    address, both at once; UsageError too, with the first row, where there is no cluster or no node with as many CPUs.
    """
    ray = _import_ray()
    _require_listener(address)
    return lambda jobs: _run(ray, jobs, address, cpus)


def _run(ray: Any, jobs: Sequence[Job], address: str, cpus: int) -> Generator[Row]:
    if not jobs:
        return
    # Ray prints what befalls its workers; stdout is for the answer.
    with redirect_stdout(sys.stderr), _connected(ray, address), _token(jobs[0].settings.output) as token:
        _require_room(ray, cpus)
        task = ray.remote(num_cpus=cpus, max_retries=_RETRIES)(_on_node)
        pending = {task.remote(job, str(token)): job for job in jobs}
        try:
            while pending:
                done, _ = ray.wait(list(pending), timeout=_WAIT_SECONDS)
                for reference in done:
                    yield _row(ray, reference, pending.pop(reference))
        finally:
            for reference in pending:
                ray.cancel(reference, force=True)


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            "--ray needs Ray, which is not installed", hint="pip install 'transformer-export-toolkit[ray]'"
        ) from error
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    # Ray takes SIGTERM for itself, and our own clean-up hangs on it.
    handler = signal.getsignal(signal.SIGTERM)
    environment = {"PYTHONPATH": os.pathsep.join(str(Path(place).absolute()) for place in sys.path if place)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env={"env_vars": environment})
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"no Ray cluster at '{address}': {error}", hint=_START) from error
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray itself waits two minutes for a cluster that is not there, and then ends the process."""
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", "auto")
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "://" in address:
        raise UsageError(f"'{address}' is no address of a Ray cluster", hint=f"{_ABROAD} {_START}")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no Ray cluster answers at {address}: {error}", hint=f"{_ABROAD} {_START}") from error


def _require_room(ray: Any, cpus: int) -> None:
    """A task that asks for more than any node has waits forever."""
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=0)
    if cpus > largest:
        raise UsageError(
            f"no node of the Ray cluster has {cpus} CPUs; the largest has {largest}",
            hint=f"Reserve fewer for a run: --ray-cpus {max(largest, 1)}.",
        )


@contextmanager
def _token(folder: Path) -> Iterator[Path]:
    """A file by which a node knows that it sees the sweep's folder, and not one of its own of that name."""
    path = folder / f".sweep-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def _on_node(job: Job, token: str) -> Row:
    """What the cluster does for one run."""
    from toolkit.sweep.supervise import blank_row, run_job

    node = socket.gethostname()
    if toolkit.__version__ != job.version:
        return blank_row(
            job, "failed", f"node {node} has toolkit {toolkit.__version__}, the sweep was started by {job.version}"
        )
    if not Path(token).exists():
        return blank_row(
            job,
            "failed",
            f"node {node} does not share the folder {job.settings.output}: mount it there under the same path",
        )
    return run_job(job) or blank_row(job, "failed", f"was stopped on node {node}")


def _row(ray: Any, reference: Any, job: Job) -> Row:
    from toolkit.sweep.row import in_short
    from toolkit.sweep.supervise import blank_row

    try:
        row: Row = ray.get(reference)
    except ray.exceptions.RayError as error:
        shutil.rmtree(job.place, ignore_errors=True)
        return blank_row(job, "failed", in_short(f"lost by Ray, {_RETRIES + 1} tries at most: {error}"))
    return row
