"""Timing a bundle, alone or against another contender, in interleaved rounds.

Each contender lives in a process of its own and is told over a pipe when to run. So thread pools do not fight
over cores inside one process, peak memory is attributable to one contender, and a crash names its owner.

A round is one turn of each contender: an untimed run that wakes its threads, then a few timed ones. Machines
are shared and clocks move, so only what lies in one round is compared: the ratio is the median over rounds of
the ratio of the turns' medians, and its spread is their 10th to 90th percentile. Between turns all rest for
60 ms, because ONNX Runtime's workers go on spinning for about 45 ms after a run and would take the cores from
the next contender.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from toolkit.bench_process import Contender, Worker, load_average, physical_cores, start_worker
from toolkit.errors import UsageError
from toolkit.inputs import check_tensors
from toolkit.types import DeviceMemory

if TYPE_CHECKING:
    from toolkit.types import Dim, Tensors, TensorSpec

__all__ = [
    "REST_SECONDS", "BenchReport", "Contender", "Ratio", "Result", "Settings", "bench", "bench_bundle", "check_sizes",
    "label_of",
    "on_device", "sized_inputs", "turn_ratio",
]  # fmt: skip

REST_SECONDS = 0.06
RUNS_PER_TURN = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """`runs` timed runs of each after `warmup` untimed ones; `threads` None means all physical cores."""

    runs: int = 50
    warmup: int = 5
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Milliseconds of one contender over all its timed runs, and bytes of memory.

    `memory` is the peak of resident memory less what was resident once the libraries were imported: weights
    (also those mapped from a file), compiled kernels, workspace. `peak` is that peak as a whole. `rounds_ms`
    are the medians of its turns. `samples_per_second` is how many rows of the batch go through at the median time.
    `device` is what it holds of a device's own memory, where it runs on one.
    """

    label: str
    ran_on: str
    median_ms: float
    p90_ms: float
    min_ms: float
    memory: int
    peak: int
    rounds_ms: tuple[float, ...]
    samples_per_second: float
    device: DeviceMemory | None = None


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast the first contender is as the second: the median over rounds, and its spread."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True)
class BenchReport:
    """`sizes` are the dimensions that were run; `cosine` compares the contenders' outputs by name.

    `load` is how many processes wanted a processor in the minute before the start (None where that is not known).
    """

    sizes: Mapping[str, int]
    threads: int
    runs: int
    load: float | None
    results: tuple[Result, ...]
    ratio: Ratio | None = None
    cosine: Mapping[str, float] | None = None


def bench_bundle(folder: Path, vs: str | None, wanted: Mapping[str, int], settings: Settings) -> BenchReport:
    """Time the bundle, alone or against `vs` (`torch` or a bundle's folder).

    Both run on the bundle's first golden input, repeated or cut to the sizes `wanted`. Raises UsageError where
    they do not take the same inputs.
    """
    from toolkit.bundle.read import golden, open_bundle

    bundle = open_bundle(folder)
    contenders = [Contender(label_of(bundle.folder), "bundle", folder)]
    sample = golden(bundle)[0][0]
    inputs, sizes = sized_inputs(bundle.manifest.inputs, bundle.manifest.dims, sample, wanted)
    if vs == "torch":
        contenders.append(Contender("PyTorch", "torch", folder))
    elif vs is not None:
        other = open_bundle(Path(vs))
        check_tensors(inputs, other.manifest.inputs, other.manifest.dims)
        contenders.append(Contender(label_of(other.folder), "bundle", other.folder))
    return bench(contenders, inputs, sizes, settings)


def label_of(folder: Path) -> str:
    """What a bundle is called in a table: its folder's name."""
    return folder.resolve().name


def bench(
    contenders: Sequence[Contender], inputs: Tensors, sizes: Mapping[str, int], settings: Settings
) -> BenchReport:
    """Run one contender, or two in turn, on the same inputs.

    Raises what the contender's own process raised, and StageError where that process died.
    """
    threads, load = settings.threads or physical_cores(), load_average()
    with TemporaryDirectory(prefix="toolkit-bench-") as folder, ExitStack() as stack:
        np.savez(Path(folder) / "inputs.npz", **cast("Any", dict(inputs)))
        outputs = [str(Path(folder) / f"outputs-{index}.npz") for index in range(len(contenders))]
        jobs = [{"inputs": str(Path(folder) / "inputs.npz"), "outputs": path} for path in outputs]
        pin = settings.threads is not None
        workers = [
            stack.enter_context(start_worker(contender, job, Path(folder), index, threads, pin=pin))
            for index, (contender, job) in enumerate(zip(contenders, jobs, strict=True))
        ]
        turns = _rounds(workers, settings)
        results = tuple(
            _result(worker, turn, sizes.get("batch", 1)) for worker, turn in zip(workers, turns, strict=True)
        )
        cosine = _cosines(*outputs) if len(outputs) == 2 else None
    ratio = turn_ratio(turns[1], turns[0]) if len(turns) == 2 else None
    return BenchReport(dict(sizes), threads, len(turns[0]) * RUNS_PER_TURN, load, results, ratio, cosine)


def sized_inputs(
    specs: Sequence[TensorSpec], dims: Mapping[str, Dim], sample: Tensors, wanted: Mapping[str, int]
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """The sample repeated or cut along its dynamic dimensions, and the sizes that it then has.

    A dimension that is not `wanted` takes the size that engines are tuned for. Raises UsageError for a
    dimension that the model does not have, or a size outside its range.
    """
    sizes = {name: dim.opt for name, dim in dims.items()}
    check_sizes(wanted, dims)
    sizes |= wanted
    return {spec.name: _resized(sample[spec.name], spec, sizes) for spec in specs}, sizes


def check_sizes(wanted: Mapping[str, int], dims: Mapping[str, Dim]) -> None:
    """Raise UsageError for a dimension that there is not, or a size outside its range."""
    for name, size in wanted.items():
        _check_size(name, size, dims)


def _check_size(name: str, size: int, dims: Mapping[str, Dim]) -> None:
    if name not in dims:
        raise UsageError(
            f"the model has no dimension '{name}'", hint=f"It has: {', '.join(dims) or 'fixed sizes only'}."
        )
    if not dims[name].min <= size <= dims[name].max:
        raise UsageError(
            f"{name} {size} is outside its range",
            hint=f"Allowed: {dims[name].min} to {dims[name].max}; to change it, export with --dim.",
        )


def _resized(array: NDArray[Any], spec: TensorSpec, sizes: Mapping[str, int]) -> NDArray[Any]:
    for axis, name in enumerate(spec.shape):
        if isinstance(name, str):
            array = np.take(array, np.arange(sizes[name]) % array.shape[axis], axis=axis)
    return np.ascontiguousarray(array)


def _turn(worker: Worker, runs: int) -> list[float]:
    """Milliseconds of that many runs."""
    return [1000 * seconds for seconds in worker.ask(f"run {runs}")["seconds"]]


def _rounds(workers: Sequence[Worker], settings: Settings) -> list[list[list[float]]]:
    """Milliseconds by contender, round and run."""
    for worker in workers:
        _turn(worker, settings.warmup)
        time.sleep(REST_SECONDS)
    turns: list[list[list[float]]] = [[] for _ in workers]
    for _ in range(-(-settings.runs // RUNS_PER_TURN)):
        for worker, done in zip(workers, turns, strict=True):
            done.append(_turn(worker, RUNS_PER_TURN + 1)[1:])
            time.sleep(REST_SECONDS)
    return turns


def _result(worker: Worker, turns: Sequence[Sequence[float]], rows: int) -> Result:
    memory = worker.ask("memory")
    times = np.concatenate([np.asarray(turn) for turn in turns])
    return Result(
        label=worker.contender.label,
        ran_on=worker.ran_on,
        median_ms=float(np.median(times)),
        p90_ms=float(np.quantile(times, 0.9)),
        min_ms=float(times.min()),
        memory=memory["peak"] - memory["imported"],
        peak=memory["peak"],
        rounds_ms=tuple(float(np.median(turn)) for turn in turns),
        samples_per_second=1000 * rows / float(np.median(times)),
        device=on_device(memory),
    )


def on_device(memory: Mapping[str, Any]) -> DeviceMemory | None:
    """What a worker says that it holds of a device's memory; None where it runs on none."""
    return DeviceMemory(**memory["device"]) if memory["device"] else None


def turn_ratio(slower: Sequence[Sequence[float]], faster: Sequence[Sequence[float]]) -> Ratio:
    """How many times as long the first takes as the second, by the medians of the turns of each round."""
    ratios = [float(np.median(a) / np.median(b)) for a, b in zip(slower, faster, strict=True)]
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    return Ratio(median=float(middle), p10=float(low), p90=float(high))


def _cosines(first: str, second: str) -> dict[str, float]:
    from toolkit.drift.metrics import cosine, failure

    with np.load(first, allow_pickle=False) as left, np.load(second, allow_pickle=False) as right:
        shared = [name for name in left.files if name in right.files]
        return {name: cosine(right[name], left[name]) for name in shared if not failure(right[name], left[name])}
