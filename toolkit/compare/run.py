"""Comparing two sides module by module: the reference goes to disk first, the candidate is measured against it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.compare.attention import attention_drift, attention_pictures, worst_heads
from toolkit.compare.inputs import Pictured, choose_inputs, choose_picture
from toolkit.compare.measure import Measured, Seen, measure_taps
from toolkit.compare.modules import Module
from toolkit.compare.reference_side import ReferenceSide, taps_of
from toolkit.compare.result import Comparison, ModuleDrift, StageModules
from toolkit.compare.sides import REFERENCE, STAGES, open_side
from toolkit.compare.taps import Taps
from toolkit.errors import UsageError
from toolkit.progress import Silent, Watch
from toolkit.types import Tensors

__all__ = ["Asked", "compare"]

_THRESHOLD_DB = 20.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a comparison shall say, beside the modules after the candidate's own stage.

    `stages`: the modules after each stage of its line too. `threshold`: in dB, the gate's own where None. `module`: a
    pattern of the paths to report. `inputs`: an .npz to compare on. `target`: which of a recipe's targets. `attention`:
    how far attention maps are. `picture`: the input that maps are drawn for; a row of the golden inputs, from 0, or a
    text or an image file, none where empty.
    """

    stages: bool = False
    threshold: float | None = None
    module: str = "*"
    inputs: Path | None = None
    target: str = ""
    attention: bool = False
    picture: str = ""


def compare(
    left: str, right: str, asked: Asked | None = None, *, folder: Path | None = None, watch: Watch | None = None
) -> Comparison:
    """Compare `right` with `left` module by module; each is what `toolkit compare` takes, as `reference` or a bundle.

    Scratch files go to `folder`, the system's own by default, and with the call. The two sides are never in memory
    together. Raises UsageError for what is not there, UnsupportedError where the PyTorch model cannot be loaded here,
    StageError where a stage of the line or a graph fails.
    """
    with tempfile.TemporaryDirectory(prefix="toolkit-compare-", dir=folder) as place:
        return _Run(left, right, asked or Asked(), Path(place), watch or Silent()).result()


class _Run:
    def __init__(self, left: str, right: str, asked: Asked, work: Path, watch: Watch) -> None:
        if right == REFERENCE:
            raise UsageError(
                "the reference is what the other side is held to", hint=f"Give it first: reference {left}."
            )
        self._asked, self._work, self._watch = asked, work, watch
        self._labels = (left, right)
        self._right = open_side(right, work / "right", watch, asked.target)
        self._left = None if left == REFERENCE else open_side(left, work / "left", watch, asked.target)
        if asked.stages and self._right.stage is None:
            raise UsageError(f"{right} is a graph, not a line with stages", hint="Leave out --stages.")

    def result(self) -> Comparison:
        """Graphs are made first, then the reference runs, then each graph is measured against it."""
        taps = self._taps()
        sides = [side for side in (self._left, self._right) if side is not None]
        batches, told = choose_inputs(sides, self._asked.inputs, taps[""].graph)
        pictured = choose_picture(self._asked.picture, sides, batches) if self._asked.picture else None
        reference = self._reference(taps, batches, pictured)
        drifts = {name: self._measured(name, found, reference, batches) for name, found in taps.items()}
        modules, measured, skipped = drifts.pop("")
        leaves = {module.path for module in taps[""].modules if module.leaf}
        comparison = Comparison(
            reference=self._labels[0],
            candidate=self._labels[1],
            reference_ran_on=reference.ran_on,
            candidate_ran_on=", ".join(filter(None, [measured.ran_on, self._right.own_graph().said])),
            inputs=told,
            threshold_db=self._threshold(),
            modules=modules,
            first_bad=next((module.module for module in modules if module.bad), None),
            guilty=_guilty(modules, leaves),
            stages=tuple(
                StageModules(stage=name, ran_on=seen.ran_on, modules=found) for name, (found, seen, _) in drifts.items()
            ),
            skipped=skipped,
            error=measured.error,
        )
        return self._with_attention(comparison, reference, batches, pictured)

    def _taps(self) -> dict[str, Taps]:
        """Of the candidate under an empty name, and of the stages by theirs."""
        with self._watch.stage("taps") as row:
            taps = {"": taps_of(self._right.own_graph())}
            if self._asked.stages:
                taps |= {name: taps_of(self._right.graph(name)) for name in STAGES[:-1]}
            row.said = f"{len(taps[''].modules)} modules, {len(taps[''].skipped)} skipped"
        return taps

    def _reference(self, taps: dict[str, Taps], batches: Sequence[Tensors], pictured: Pictured | None) -> ReferenceSide:
        looked_at = [*batches, *([pictured.batch] if pictured else [])] if self._looks else []
        side = ReferenceSide(
            self._left or self._right, self._left is None, self._work / "reference", batches, looked_at
        )
        with self._watch.stage("reference") as row:
            side.fill(list(taps.values()))
            row.said = f"{side.ran_on}, {side.store.size / 1e6:.0f} MB on disk"
        return side

    @property
    def _looks(self) -> bool:
        return self._asked.attention or bool(self._asked.picture)

    def _threshold(self) -> float:
        given = self._asked.threshold
        limit = given if given is not None else self._right.gate.min_sqnr_db
        return limit if limit is not None else _THRESHOLD_DB

    def _measured(
        self, name: str, taps: Taps, reference: ReferenceSide, batches: Sequence[Tensors]
    ) -> tuple[tuple[ModuleDrift, ...], Measured, dict[str, str]]:
        work, pattern = self._work / f"measure-{name}", self._asked.module
        work.mkdir()
        with self._watch.stage("compare", name):
            measured = measure_taps(taps, reference.keys(taps), reference.store, batches, work)
        skipped = {**taps.skipped, **reference.skipped(taps)}
        modules: list[ModuleDrift] = []
        for module in taps.modules:
            seen = measured.tensors.get(module.tensor)
            if seen is None:
                skipped.setdefault(module.path, "the reference has no such module, or fuses its output")
            elif fnmatchcase(module.path, pattern):
                modules.append(_drift(module, seen, reference, self._threshold(), taps))
        return tuple(modules), measured, {path: why for path, why in skipped.items() if fnmatchcase(path, pattern)}

    def _with_attention(
        self, comparison: Comparison, reference: ReferenceSide, batches: Sequence[Tensors], pictured: Pictured | None
    ) -> Comparison:
        if reference.attention is None:
            return comparison
        from toolkit.compare.attention_graph import GraphAttention

        candidate = GraphAttention(self._right.own_graph().path)
        try:
            with self._watch.stage("attention"):
                drift = attention_drift(reference.attention, candidate, batches, self._work)
                heads = [head for head in drift.heads if fnmatchcase(head.module, self._asked.module)]
                pictures = (
                    attention_pictures(
                        reference.attention,
                        candidate,
                        pictured.batch,
                        worst_heads(heads),
                        row=pictured.row,
                        name=pictured.name,
                        labels=pictured.labels,
                        work=self._work,
                    )
                    if pictured
                    else ()
                )
        finally:
            candidate.close()
        unread = {f"{name} (attention map)": why for name, why in drift.skipped.items()}
        return comparison.model_copy(
            update={"attention": tuple(heads), "pictures": pictures, "skipped": comparison.skipped | unread}
        )


def _drift(module: Module, seen: Seen, reference: ReferenceSide, limit: float, taps: Taps) -> ModuleDrift:
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
        shape=typed.shape if typed and typed.shape else seen.shape,
        reference_absmax=seen.reference_absmax,
        candidate_absmax=seen.candidate_absmax,
        weight_absmax=reference.weights.get(module.path),
        overflow=seen.overflow,
        # Another shape is no drift; NaN and Inf are.
        bad=broken or (bool(seen.failure) and not np.isfinite(seen.candidate_absmax)),
        failure=seen.failure,
        **measured,
    )


def _guilty(modules: Sequence[ModuleDrift], leaves: set[str]) -> tuple[str, ...]:
    """Leaves by the noise that they add themselves, worst first; those that add none are not guilty."""
    adding = [module for module in modules if module.module in leaves and module.added]
    return tuple(module.module for module in sorted(adding, key=lambda module: -(module.added or 0.0)))
