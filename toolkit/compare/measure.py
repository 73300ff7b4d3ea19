"""The candidate's tapped tensors against the reference's on disk, batch by batch, none of them kept."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.cache_names import ATTENTION_MASK
from toolkit.compare.isolate import Form, as_fed, fed_name, isolated
from toolkit.compare.keys import Key
from toolkit.compare.result import Histogram
from toolkit.compare.store import Store
from toolkit.compare.taps import Taps, in_groups
from toolkit.drift import metrics
from toolkit.errors import StageError
from toolkit.memory import give_back
from toolkit.types import Tensors

__all__ = ["Measured", "Seen", "measure_taps"]

_LARGEST_HALF = 65504.0
_BINS = 81
_IDS = "input_ids"


@dataclass(slots=True)
class Seen:
    """One tensor at its worst over all batches; `half` says that it is of float16 as it stands.

    `added` is a noise-to-signal power ratio; see `measure_taps`.
    """

    shape: tuple[int, ...] = ()
    half: bool = False
    sqnr_db: float = math.inf
    cosine: float = 1.0
    relative_l2: float = 0.0
    max_abs: float = 0.0
    reference_absmax: float = 0.0
    candidate_absmax: float = 0.0
    added: float | None = None
    overflow: bool = False
    failure: str = ""

    def add(self, sums: metrics.Moments) -> None:
        """Take the worse of what was seen and one batch more."""
        self.sqnr_db = min(self.sqnr_db, sums.sqnr_db)
        self.cosine = min(self.cosine, sums.cosine)
        self.relative_l2 = max(self.relative_l2, sums.relative_l2)
        self.max_abs = max(self.max_abs, sums.peak)


@dataclass(slots=True)
class Measured:
    """What was seen of each tensor, on what it ran, and how the error of the first output is distributed."""

    ran_on: str
    tensors: dict[str, Seen] = field(default_factory=dict)
    error: Histogram | None = None
    unmatched: set[str] = field(default_factory=set)
    """Tensors that the reference has nothing for."""


def measure_taps(taps: Taps, keys: Mapping[str, Key], store: Store, batches: Sequence[Tensors], work: Path) -> Measured:
    """Run the candidate and compare each tensor with what the store has under its key.

    The noise-to-signal ratio of reference r and candidate c is Σ(r-c)² / Σr². What a tensor `added` is that ratio
    where the nodes that make it are fed with the reference's own tensors: what they read is free of noise, so all that
    is seen is theirs. Positions that nobody attends to do not count. Raises StageError where the graph fails.
    """
    run = _Run(taps, keys, store, batches, work)
    run.whole()
    run.alone()
    return run.measured


class _Run:
    def __init__(
        self, taps: Taps, keys: Mapping[str, Key], store: Store, batches: Sequence[Tensors], work: Path
    ) -> None:
        self._taps, self._keys, self._store, self._batches, self._work = taps, keys, store, batches, work
        self.measured = Measured("")

    def whole(self) -> None:
        """The graph as it is, a group of tensors at a time."""
        wanted = [name for name in self._taps.tensors if name in self._keys]
        self.measured.unmatched = set(self._taps.tensors) - set(wanted)
        for group in self._groups(wanted):
            session = self._taps.graph.session(group)
            self.measured.ran_on = session.ran_on
            try:
                for index, batch in enumerate(self._batches):
                    answers = session.run(batch)
                    for name in group:
                        self._compare(index, batch, name, answers.pop(name))
            finally:
                session.close()
                give_back()
        self.measured.error = _distribution(self._errors())

    def alone(self) -> None:
        """Each tensor made from the reference's, a group at a time."""
        known = {name: Form(seen.half, len(seen.shape)) for name, seen in self._sound() if seen.shape}
        wanted = [module.tensor for module in self._taps.modules if module.tensor in known]
        for group in self._groups(wanted):
            part = isolated(self._taps.graph.proto, group, known)
            fed = {value.name for value in part.graph.input}
            reads = [name for name in known if fed_name(name) in fed]
            session = self._taps.graph.open(part)
            try:
                for index, batch in enumerate(self._batches):
                    feeds = {**batch, **{fed_name(name): self._fed(index, name) for name in reads}}
                    for name, array in session.run(feeds).items():
                        self._add_alone(index, batch, name, array)
            finally:
                session.close()
                give_back()

    def _groups(self, names: Iterable[str]) -> list[list[str]]:
        return in_groups(self._taps, {name: self._store.largest(self._keys[name]) for name in names})

    def _sound(self) -> list[tuple[str, Seen]]:
        return [(name, seen) for name, seen in self.measured.tensors.items() if not seen.failure]

    def _compare(self, index: int, batch: Tensors, name: str, array: NDArray[Any]) -> None:
        seen = self.measured.tensors.setdefault(name, Seen())
        reference = self._store.get(index, self._keys[name])
        candidate = self._plain(name, array)
        seen.shape, seen.half = candidate.shape, array.dtype == np.float16
        reference = _like(reference, candidate, batch)
        seen.candidate_absmax = max(seen.candidate_absmax, _absmax(candidate))
        if reference is not None:
            seen.reference_absmax = max(seen.reference_absmax, _absmax(reference))
        if name in self._taps.half:
            seen.overflow |= max(_absmax(array), seen.reference_absmax) > _LARGEST_HALF
        if reference is None or reference.shape != candidate.shape:
            seen.failure = seen.failure or metrics.failure(reference, candidate)
            return
        reference, candidate = _attended(reference, batch), _attended(candidate, batch)
        reason = metrics.failure(reference, candidate)
        seen.failure = seen.failure or reason
        if not reason:
            seen.add(metrics.moments(reference, candidate))
        if name == self._taps.answer and not reason:
            np.save(self._work / f"error-{index}.npy", (candidate - reference).ravel())

    def _add_alone(self, index: int, batch: Tensors, name: str, array: NDArray[Any]) -> None:
        seen, reference = self.measured.tensors[name], self._store.get(index, self._keys[name])
        candidate = self._plain(name, array)
        reference = _like(reference, candidate, batch)
        if reference is None or reference.shape != candidate.shape:
            return
        reference, candidate = _attended(reference, batch), _attended(candidate, batch)
        if not metrics.failure(reference, candidate):
            ratio = metrics.moments(reference, candidate).relative_l2 ** 2
            seen.added = max(seen.added or 0.0, ratio)

    def _plain(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """In float32, and what the graph divided multiplied again."""
        plain = array.astype(np.float32) if array.dtype == np.float16 else array
        divisor = self._taps.divisors.get(name)
        return plain if divisor is None else plain * divisor

    def _fed(self, index: int, name: str) -> NDArray[Any]:
        seen = self.measured.tensors[name]
        array = _with_rank(self._store.get(index, self._keys[name]), len(seen.shape), self._batches[index])
        if array is None:
            raise StageError("compare", f"the reference has no {self._keys[name].name} in batch {index}")
        return as_fed(array, self._taps.divisors.get(name), half=seen.half)

    def _errors(self) -> list[Path]:
        return [path for index in range(len(self._batches)) if (path := self._work / f"error-{index}.npy").exists()]


def _absmax(array: NDArray[Any]) -> float:
    """NaN counts as infinite: it came of something that is."""
    largest = float(np.abs(array).max(initial=0)) if array.size else 0.0
    return math.inf if math.isnan(largest) else largest


def _like(reference: NDArray[Any] | None, candidate: NDArray[Any], batch: Tensors) -> NDArray[Any] | None:
    """The reference with the candidate's shape, where only the way that both hold tokens differs."""
    alike = _with_rank(reference, candidate.ndim, batch)
    return alike if alike is not None and alike.shape == candidate.shape else reference


def _with_rank(array: NDArray[Any] | None, rank: int, batch: Tensors) -> NDArray[Any] | None:
    """Tokens as the other side holds them: [batch, tokens, width] or, as `ort-cpu` does, [batch · tokens, width]."""
    if array is None or {array.ndim, rank} != {2, 3}:
        return array
    rows = len(next(iter(batch.values())))
    leading = (-1,) if rank == 2 else (rows, -1)
    fits = array.ndim == 3 or len(array) % max(rows, 1) == 0
    return array.reshape(*leading, array.shape[-1]) if fits and array.size else array


def _attended(array: NDArray[Any], batch: Tensors) -> NDArray[Any]:
    """Zeros where a tensor [batch, tokens, …] or [batch · tokens, …] stands for padding, which has no meaning.

    NaN and Inf stay.
    """
    mask, ids = batch.get(ATTENTION_MASK), batch.get(_IDS)
    if mask is None or ids is None or array.ndim < 2:
        return array
    attended = mask[:, -ids.shape[1] :] != 0
    if array.shape[:2] != ids.shape:
        if array.ndim != 2 or len(array) != ids.size:
            return array
        attended = attended.reshape(-1)
    if attended.all():
        return array
    kept = attended.reshape(*attended.shape, *[1] * (array.ndim - attended.ndim)) | ~np.isfinite(array)
    return np.where(kept, array, array.dtype.type(0))


def _distribution(errors: Sequence[Path]) -> Histogram | None:
    """Counts of the errors between the largest magnitude on either side, in bins of one width."""
    if not errors:
        return None
    largest = max(_absmax(np.load(path, mmap_mode="r")) for path in errors) or 1.0
    edges = np.linspace(-largest, largest, _BINS + 1)
    counts = sum(np.histogram(np.load(path), edges)[0] for path in errors)
    return Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, np.atleast_1d(counts))))
