"""Timing a language model: time to the first token, time between tokens, memory, and how near the memory's speed.

Contenders and rounds are those of `toolkit.bench`; a turn is one prompt continued by so many tokens, greedily.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.bench import REST_SECONDS, Ratio, label_of, on_device, turn_ratio
from toolkit.bench_process import Contender, Worker, load_average, physical_cores, start_worker
from toolkit.cache_names import is_past
from toolkit.compiled import built_engines
from toolkit.errors import UsageError
from toolkit.sessions import context_of, decoder_spec

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle
    from toolkit.types import DeviceMemory, TensorSpec

__all__ = ["DecoderReport", "DecoderResult", "DecoderSettings", "bench_decoder"]


@dataclass(frozen=True, slots=True)
class DecoderSettings:
    """One prompt of so many tokens and so many new ones, `runs` times after `warmup` untimed ones.

    `threads` None means all physical cores.
    """

    prompt_tokens: int = 128
    new_tokens: int = 128
    runs: int = 5
    warmup: int = 1
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class DecoderResult:
    """Milliseconds to the first token (median of runs) and from token to token (median and p90 of all).

    `bytes_per_token` counts the weights' files as read once, the embedding's table too though a token needs one row
    of it, and the cache at its mean length; `bandwidth_share` is the part of the measured bandwidth that this makes
    at the median time: None on a device, whose own memory's speed is not measured. `memory`, `peak` and `device` as in
    `toolkit.bench.Result`.
    """

    label: str
    ran_on: str
    ttft_ms: float
    itl_ms: float
    itl_p90_ms: float
    tokens_per_second: float
    memory: int
    peak: int
    bytes_per_token: int
    bandwidth_share: float | None
    rounds_ttft_ms: tuple[float, ...]
    rounds_itl_ms: tuple[float, ...]
    device: DeviceMemory | None = None


@dataclass(frozen=True, slots=True)
class DecoderReport:
    """`bandwidth` is in bytes a second, as `toolkit.bench_worker.read_bandwidth` measures it with as many threads.

    Ratios are by rounds, how many times as fast the first contender is; `same_tokens` is how many of the new tokens
    both chose before they first differ.
    """

    prompt_tokens: int
    new_tokens: int
    threads: int
    runs: int
    load: float | None
    bandwidth: float
    results: tuple[DecoderResult, ...]
    ttft_ratio: Ratio | None = None
    itl_ratio: Ratio | None = None
    same_tokens: int | None = None


def bench_decoder(bundle: Bundle, vs: str | None, settings: DecoderSettings) -> DecoderReport:
    """Time the bundle, alone or against `vs` (`torch` with Transformers' own cache, or a bundle's folder).

    The prompt is the bundle's first golden row, repeated or cut. Raises UsageError for sizes beyond the model, and
    for a bundle of another vocabulary.
    """
    bundles = [bundle]
    contenders = [Contender(label_of(bundle.folder), "bundle", bundle.folder)]
    if vs == "torch":
        contenders.append(Contender("PyTorch", "torch", bundle.folder))
    elif vs is not None:
        bundles.append(_other(bundle, Path(vs)))
        contenders.append(Contender(label_of(bundles[1].folder), "bundle", bundles[1].folder))
    for one in bundles:
        _check_sizes(one, settings)
    job = {"tokens": _prompt(bundle, settings.prompt_tokens), "new_tokens": settings.new_tokens}
    sources = bundles if len(bundles) == len(contenders) else [bundle, bundle]
    threads, load = settings.threads or physical_cores(), load_average()
    with TemporaryDirectory(prefix="toolkit-bench-") as folder, ExitStack() as stack:
        pin = settings.threads is not None
        workers = [
            stack.enter_context(start_worker(contender, job, Path(folder), index, threads, pin=pin))
            for index, contender in enumerate(contenders)
        ]
        turns = _rounds(workers, settings)
        memory = [worker.ask("memory") for worker in workers]
        bandwidth = float(workers[0].ask("bandwidth")["bandwidth"])
    results = tuple(
        _result(worker, turns[index], memory[index], bandwidth, _read(worker, sources[index], settings))
        for index, worker in enumerate(workers)
    )
    report = DecoderReport(
        settings.prompt_tokens, settings.new_tokens, threads, settings.runs, load, bandwidth, results
    )
    return _compared(report, workers, turns) if len(workers) == 2 else report


def _other(bundle: Bundle, folder: Path) -> Bundle:
    from toolkit.bundle.read import open_bundle

    other = open_bundle(folder)
    ours, theirs = decoder_spec(bundle).vocabulary, decoder_spec(other).vocabulary
    if ours != theirs:
        raise UsageError(
            f"{folder} has {theirs} tokens in its vocabulary, {bundle.folder} {ours}",
            hint="Compare bundles of one model, or of models with the same tokenizer.",
        )
    return other


def _check_sizes(bundle: Bundle, settings: DecoderSettings) -> None:
    longest = context_of(bundle)
    if settings.prompt_tokens + settings.new_tokens > longest:
        raise UsageError(
            f"{settings.prompt_tokens} and {settings.new_tokens} tokens, {bundle.folder} goes to {longest}",
            hint="Give a smaller --prompt-tokens or --new-tokens.",
        )
    if settings.new_tokens < 2:
        raise UsageError("1 new token has no time between tokens", hint="Give --new-tokens 2 or more.")


def _prompt(bundle: Bundle, count: int) -> list[int]:
    from toolkit.bundle.read import golden

    sample = golden(bundle)[0][0]
    tokens = sample["input_ids"][0][sample["attention_mask"][0][-sample["input_ids"].shape[1] :] != 0]
    repeated: list[int] = np.resize(tokens, count).tolist()
    return repeated


def _rounds(workers: Sequence[Worker], settings: DecoderSettings) -> list[list[Mapping[str, Any]]]:
    """What each contender's runs took, in seconds: `first`, and `next` for every token after it."""
    for worker in workers:
        worker.ask(f"run {settings.warmup}")
        time.sleep(REST_SECONDS)
    turns: list[list[Mapping[str, Any]]] = [[] for _ in workers]
    for _ in range(settings.runs):
        for worker, done in zip(workers, turns, strict=True):
            done.extend(worker.ask("run 1")["runs"])
            time.sleep(REST_SECONDS)
    return turns


def _result(
    worker: Worker, turns: Sequence[Mapping[str, Any]], memory: Mapping[str, Any], bandwidth: float, read: int
) -> DecoderResult:
    between = 1000 * np.concatenate([turn["next"] for turn in turns])
    median, device = float(np.median(between)), on_device(memory)
    return DecoderResult(
        label=worker.contender.label,
        ran_on=worker.ran_on,
        ttft_ms=1000 * float(np.median([turn["first"] for turn in turns])),
        itl_ms=median,
        itl_p90_ms=float(np.quantile(between, 0.9)),
        tokens_per_second=1000 / float(between.mean()),
        memory=memory["peak"] - memory["imported"],
        peak=memory["peak"],
        bytes_per_token=read,
        bandwidth_share=None if device else read / bandwidth / (median / 1000),
        rounds_ttft_ms=tuple(1000 * turn["first"] for turn in turns),
        rounds_itl_ms=tuple(1000 * float(np.median(turn["next"])) for turn in turns),
        device=device,
    )


def _compared(
    report: DecoderReport, workers: Sequence[Worker], turns: Sequence[Sequence[Mapping[str, Any]]]
) -> DecoderReport:
    ours, theirs = turns
    return replace(
        report,
        ttft_ratio=turn_ratio([[turn["first"]] for turn in theirs], [[turn["first"]] for turn in ours]),
        itl_ratio=turn_ratio([turn["next"] for turn in theirs], [turn["next"] for turn in ours]),
        same_tokens=_same(*(worker.ready["tokens"] for worker in workers)),
    )


def _same(first: Sequence[int], second: Sequence[int]) -> int:
    return next((index for index, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1]), len(first))


def _read(worker: Worker, bundle: Bundle, settings: DecoderSettings) -> int:
    """Bytes that a token reads: weights, which PyTorch's process counts itself, and cache."""
    weights = int(worker.ready.get("weights", 0)) or _weight_bytes(bundle)
    return weights + _cache_bytes(bundle.manifest.inputs, settings)


def _weight_bytes(bundle: Bundle) -> int:
    """Bytes of the engine's own files: the graph with its data, or what was compiled for one architecture."""
    entry = bundle.manifest.engine
    if engines := built_engines(entry.details):
        # One of them runs; which, only its runtime knows.
        return max(engine.bytes for engine in engines)
    # Beside graph and engines, a bundle has configuration, a lock and a script.
    compiled = [name for name in entry.files if not name.endswith((".json", ".py"))]
    names = compiled or (bundle.manifest.graph, f"{bundle.manifest.graph}.data")
    return sum(bundle.manifest.files[name].bytes for name in names if name in bundle.manifest.files)


def _cache_bytes(inputs: Sequence[TensorSpec], settings: DecoderSettings) -> int:
    """Bytes of the cache at its mean length while tokens are generated."""
    positions = settings.prompt_tokens + settings.new_tokens / 2
    caches = [item for item in inputs if is_past(item.name)]
    a_position = sum(
        math.prod(size for size in item.shape if isinstance(size, int)) * np.dtype(item.dtype).itemsize
        for item in caches
    )
    return int(a_position * positions)
