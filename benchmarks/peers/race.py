"""Racing the contenders of one model: they take turns in every column, then each embeds the held-out data."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peers.contenders import Contender
from peers.environments import OWN, environment
from turns import REST_SECONDS, Worker, worker

from toolkit.drift.metrics import failure, relative_l2

__all__ = ["Entry", "Pace", "Turns", "drifts", "open_entries", "race"]

Turns = dict[str, list[list[float]]]
"""Milliseconds of each timed run, by contender and round."""

_SCRIPT = Path(__file__).parents[1] / "encoder_contenders.py"
_WARMUP = 3


@dataclass(frozen=True, slots=True)
class Pace:
    """`runs` timed runs a turn; rounds until `seconds` are over, but at least `least` and at most `most`."""

    seconds: float
    least: int
    runs: int = 5
    most: int = 25


@dataclass(slots=True)
class Entry:
    """A contender with its process, which is stopped but while it answers."""

    key: str
    process: Worker


@contextmanager
def open_entries(
    work: Path, model: str, embedding: str, loads: Mapping[str, tuple[Contender, Path]], threads: int
) -> Iterator[list[Entry]]:
    """A process for each contender on its artefact; what it says on stderr is kept in the work folder."""
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        entries = []
        for key, (contender, path) in loads.items():
            job = {
                "kind": contender.kind, "path": str(path), "threads": threads, "embedding": embedding,
                "options": dict(contender.options),
            }  # fmt: skip
            command = [str(environment(work, contender.environment)), str(_SCRIPT), json.dumps(job)]
            variables = _variables(work, contender)
            log = logs / f"{model}-{key.replace('/', '-')}.txt"
            entries.append(Entry(key, stack.enter_context(worker(command, threads, log, variables))))
        yield entries


def _variables(work: Path, contender: Contender) -> dict[str, str]:
    # Ours needs the packages of this checkout; a peer must see none of them.
    path = os.pathsep.join(filter(None, sys.path)) if contender.environment == OWN else ""
    return {"PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(work / "inductor")}


def race(entries: Sequence[Entry], inputs: Path, pace: Pace) -> Turns:
    """Interleaved rounds of a turn each, an untimed run first; who fails drops out."""
    for entry in entries:
        began = time.monotonic()
        entry.process.ask({"run": str(inputs), "times": _WARMUP})
        print(f"{entry.key}: warm after {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    turns: Turns = {entry.key: [] for entry in entries}
    start, rounds = time.monotonic(), 0
    while rounds < pace.least or (rounds < pace.most and time.monotonic() - start < pace.seconds):
        for entry in entries:
            _take_turn(entry, inputs, pace.runs, turns)
        rounds += 1
    return {key: done for key, done in turns.items() if len(done) == rounds}


def _take_turn(entry: Entry, inputs: Path, runs: int, turns: Turns) -> None:
    time.sleep(REST_SECONDS)
    answer = entry.process.ask({"run": str(inputs), "times": runs + 1})
    if answer is not None:
        turns[entry.key].append([round(ms, 3) for ms in answer["ms"][1:]])


def drifts(entries: Sequence[Entry], reference: str, batches: Sequence[Path]) -> dict[str, float]:
    """Relative L2 of each contender's embeddings of all batches to those of the reference; infinite if incomparable."""
    with TemporaryDirectory(prefix="peers-") as folder:
        found = {entry.key: _embeddings(entry, batches, Path(folder) / f"{index}.npy")
                 for index, entry in enumerate(entries)}  # fmt: skip
    truth = found.pop(reference, None)
    if truth is None:
        return {}
    known = {key: array for key, array in found.items() if array is not None}
    return {key: float("inf") if failure(truth, array) else relative_l2(truth, array) for key, array in known.items()}


def _embeddings(entry: Entry, batches: Sequence[Path], output: Path) -> Any:
    answer = entry.process.ask({"embed": [str(path) for path in batches], "output": str(output)})
    return None if answer is None else np.load(output)
