"""Comparing two sides module by module: the reference goes to disk first, the candidate is measured against it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from runtimes._onnxruntime.tapped import TappedGraph
from toolkit.compare.inputs import choose_inputs
from toolkit.compare.keys import Key
from toolkit.compare.measure import Measured, Seen, measure_taps
from toolkit.compare.modules import Module
from toolkit.compare.result import Comparison, ModuleDrift, StageModules
from toolkit.compare.sides import REFERENCE, STAGES, GraphFile, Side, open_side
from toolkit.compare.store import Store
from toolkit.compare.taps import Taps, expected_bytes, find_taps, in_groups
from toolkit.errors import UsageError
from toolkit.memory import give_back
from toolkit.progress import Silent, Watch
from toolkit.types import Tensors

__all__ = ["compare"]

_THRESHOLD_DB = 20.0
_BEFORE_ENGINE = STAGES[:-1]


def compare(
    left: str,
    right: str,
    *,
    stages: bool = False,
    threshold: float | None = None,
    module: str = "*",
    inputs: Path | None = None,
    target: str = "",
    folder: Path | None = None,
    watch: Watch | None = None,
) -> Comparison:
    """Compare `right` with `left` module by module; each is what `toolkit compare` takes, as `reference` or a bundle.

    `stages` measures the candidate's line after each stage too; `threshold` in dB is by default the gate's own;
    `module` is a pattern of paths to report; `target` chooses one of a recipe's. Scratch files go to `folder`, the
    system's own by default, and with the call. The two sides are never in memory together.
    Raises UsageError for what is not there, UnsupportedError where the PyTorch model cannot be loaded here, StageError
    where a stage of the line or a graph fails.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-compare-", dir=folder) as place:
        run = _Run(left, right, Path(place), watch or Silent(), inputs, target)
        return run.result(stages=stages, threshold=threshold, pattern=module)


class _Run:
    def __init__(self, left: str, right: str, work: Path, watch: Watch, inputs: Path | None, target: str) -> None:
        if right == REFERENCE:
            raise UsageError(
                "the reference is what the other side is held to", hint=f"Give it first: reference {left}."
            )
        self._work, self._watch = work, watch
        self._right = open_side(right, work / "right", watch, target)
        self._left = None if left == REFERENCE else open_side(left, work / "left", watch, target)
        self._labels = (left, right)
        self._inputs = inputs

    def result(self, *, stages: bool, threshold: float | None, pattern: str) -> Comparison:
        """The comparison; stages come first, since they are made first."""
        if stages and self._right.stage is None:
            raise UsageError(f"{self._labels[1]} is a graph, not a line with stages", hint="Leave out --stages.")
        with self._watch.stage("taps") as row:
            own = self._right.own_graph()
            taps = {"": _taps(own)}
            taps |= {name: _taps(self._right.graph(name)) for name in (_BEFORE_ENGINE if stages else ())}
            row.said = f"{len(taps[''].modules)} modules, {len(taps[''].skipped)} skipped"
        sides = [side for side in (self._left, self._right) if side is not None]
        batches, told = choose_inputs(sides, self._inputs, taps[""].graph)
        reference = _Reference(self._left or self._right, self._left is None, self._work / "taps", batches)
        with self._watch.stage("reference") as row:
            reference.fill(list(taps.values()))
            row.said = f"{reference.ran_on}, {reference.store.size / 1e6:.0f} MB on disk"
        limit = threshold if threshold is not None else self._right.gate.min_sqnr_db
        limit = limit if limit is not None else _THRESHOLD_DB
        drifts = {name: self._measured(name, found, reference, batches, limit, pattern) for name, found in taps.items()}
        modules, measured, skipped = drifts.pop("")
        leaves = {module.path for module in taps[""].modules if module.leaf}
        return Comparison(
            reference=self._labels[0],
            candidate=self._labels[1],
            reference_ran_on=reference.ran_on,
            candidate_ran_on=", ".join(filter(None, [measured.ran_on, own.said])),
            inputs=told,
            threshold_db=limit,
            modules=modules,
            first_bad=next((module.module for module in modules if module.bad), None),
            guilty=_guilty(modules, leaves),
            stages=tuple(
                StageModules(stage=name, ran_on=seen.ran_on, modules=found) for name, (found, seen, _) in drifts.items()
            ),
            skipped=skipped,
            error=measured.error,
        )

    def _measured(
        self,
        name: str,
        taps: Taps,
        reference: _Reference,
        batches: Sequence[Tensors],
        limit: float,
        pattern: str,
    ) -> tuple[tuple[ModuleDrift, ...], Measured, dict[str, str]]:
        keys = reference.keys(taps)
        work = self._work / f"measure-{name}"
        work.mkdir()
        with self._watch.stage("compare", name):
            measured = measure_taps(taps, keys, reference.store, batches, work)
        skipped = {**taps.skipped, **reference.skipped(taps)}
        modules: list[ModuleDrift] = []
        for module in taps.modules:
            seen = measured.tensors.get(module.tensor)
            if seen is None:
                skipped.setdefault(module.path, "the reference has no such module or tensor")
            elif fnmatchcase(module.path, pattern):
                modules.append(_drift(module, seen, reference, limit, taps))
        return tuple(modules), measured, {path: why for path, why in skipped.items() if fnmatchcase(path, pattern)}


class _Reference:
    """The left side: its tensors on disk, and what its modules are."""

    def __init__(self, side: Side, eager: bool, folder: Path, batches: Sequence[Tensors]) -> None:
        self._side, self._eager, self._batches = side, eager, batches
        self.store = Store(folder)
        self.ran_on = ""
        self.kinds: Mapping[str, str] = {}
        self.weights: Mapping[str, float] = {}
        self._skipped: dict[str, str] = {}

    def fill(self, all_taps: Sequence[Taps]) -> None:
        """Run this side and put what the taps need into the store; then let it go."""
        if self._eager:
            self._fill_from_torch(all_taps)
        else:
            self._fill_from_graph(all_taps)
        give_back()

    def keys(self, taps: Taps) -> dict[str, Key]:
        """For each tensor of the taps what the store has it under."""
        found = {name: next((key for key in keys if self.store.has(key)), None) for name, keys in taps.tensors.items()}
        return {name: key for name, key in found.items() if key is not None}

    def skipped(self, taps: Taps) -> dict[str, str]:
        """Modules of this side that cannot be compared with the taps, and why."""
        known = {module.path for module in taps.modules} | set(taps.skipped)
        unseen = dict.fromkeys(self.weights, "the candidate's graph computes it together with others")
        return {path: why for path, why in unseen.items() if path not in known} | self._skipped

    def _fill_from_torch(self, all_taps: Sequence[Taps]) -> None:
        from toolkit.compare.eager import paths_of, watch

        module = self._side.module()
        paths = paths_of(module)

        def has(key: Key) -> bool:
            return key.kind == "answer" or (key.kind in ("out", "in") and key.name in paths)

        seen = watch(module, _wanted(all_taps, has), self._batches, self.store)
        del module
        self.ran_on, self.kinds, self.weights = seen.ran_on, seen.kinds, seen.weights
        self._skipped = dict(seen.skipped)

    def _fill_from_graph(self, all_taps: Sequence[Taps]) -> None:
        own = self._side.own_graph()
        mine = _taps(own)
        tensors = mine.by_key()
        wanted = _wanted(all_taps, lambda key: key in tensors)
        by_tensor: dict[str, list[Key]] = {}
        for key in wanted:
            by_tensor.setdefault(tensors[key], []).append(key)
        for group in in_groups(mine, expected_bytes(mine, by_tensor, self._batches)):
            session = mine.graph.session(group)
            self.ran_on = ", ".join(filter(None, [session.ran_on, own.said]))
            for index, batch in enumerate(self._batches):
                answers = session.run(batch)
                for name in group:
                    array = answers.pop(name).astype(np.float32)
                    divisor = mine.divisors.get(name)
                    for key in by_tensor[name]:
                        self.store.put(index, key, array if divisor is None else array * divisor)
            session.close()
        self.kinds = {module.path: module.kind for module in mine.modules}
        self._skipped = {}


def _wanted(all_taps: Sequence[Taps], has: Callable[[Key], bool]) -> set[Key]:
    """Of each tensor the first of its keys that the reference has."""
    found = (next(filter(has, keys), None) for taps in all_taps for keys in taps.tensors.values())
    return {key for key in found if key is not None}


def _taps(graph: GraphFile) -> Taps:
    return find_taps(TappedGraph(graph.path, rounded=graph.rounded))


def _drift(module: Module, seen: Seen, reference: _Reference, limit: float, taps: Taps) -> ModuleDrift:
    measured: dict[str, Any] = {}
    broken = False
    if not seen.failure:
        names = ("sqnr_db", "cosine", "relative_l2", "max_abs", "added")
        measured = {name: getattr(seen, name) for name in names}
        broken = seen.sqnr_db < limit
    typed = taps.types.get(module.tensor)
    return ModuleDrift(
        module=module.path,
        kind=reference.kinds.get(module.path, module.kind),
        tensor=module.tensor,
        shape=typed.shape if typed else seen.shape,
        reference_absmax=seen.reference_absmax,
        candidate_absmax=seen.candidate_absmax,
        weight_absmax=reference.weights.get(module.path),
        overflow=seen.overflow,
        bad=broken or (bool(seen.failure) and not np.isfinite(seen.candidate_absmax)),
        failure=seen.failure,
        **measured,
    )


def _guilty(modules: Sequence[ModuleDrift], leaves: set[str]) -> tuple[str, ...]:
    """Leaves by the noise that they add themselves, worst first; those that add none are not guilty."""
    adding = [module for module in modules if module.module in leaves and module.added]
    return tuple(module.module for module in sorted(adding, key=lambda module: -(module.added or 0.0)))
