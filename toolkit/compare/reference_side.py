"""The side that the other is held to: run first, its tensors put on disk, then let go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from runtimes._onnxruntime.tapped import TappedGraph
from toolkit.compare.attention import AttentionSource, RecordedAttention
from toolkit.compare.keys import Key
from toolkit.compare.sides import GraphFile, Side
from toolkit.compare.store import Store
from toolkit.compare.taps import Taps, expected_bytes, find_taps, in_groups
from toolkit.memory import Weights
from toolkit.types import Tensors

__all__ = ["ReferenceSide", "taps_of"]


def taps_of(graph: GraphFile) -> Taps:
    """Where the graph can be tapped."""
    # Without, ONNX Runtime's CPU keeps no float16 between nodes: nothing could be read, and nothing would overflow.
    return find_taps(TappedGraph(graph.path, rounded=True))


class ReferenceSide:
    """The left side: its tensors on disk, and what its modules are.

    With `looked_at`, batches, its attentions on them are recorded as well, and `attention` has them.
    """

    def __init__(
        self, side: Side, eager: bool, folder: Path, batches: Sequence[Tensors], looked_at: Sequence[Tensors] = ()
    ) -> None:
        self._side, self._eager, self._batches = side, eager, batches
        self._folder, self._looked_at = folder, looked_at
        self.store = Store(folder / "taps")
        self.attention: RecordedAttention | None = None
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
        if self._looked_at:
            from toolkit.compare.attention_torch import TorchAttention

            self._record(TorchAttention(module))
        weights = Weights(module)
        del module
        weights.free()
        self.ran_on, self.kinds, self.weights = seen.ran_on, seen.kinds, seen.weights
        self._skipped = dict(seen.skipped)

    def _fill_from_graph(self, all_taps: Sequence[Taps]) -> None:
        own = self._side.own_graph()
        mine = taps_of(own)
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
        if self._looked_at:
            from toolkit.compare.attention_graph import GraphAttention

            source = GraphAttention(own.path)
            self._record(source)
            source.close()

    def _record(self, source: AttentionSource) -> None:
        self.attention = RecordedAttention(source, self._looked_at, self._folder / "attention")


def _wanted(all_taps: Sequence[Taps], has: Callable[[Key], bool]) -> set[Key]:
    """Of each tensor the first of its keys that the reference has."""
    found = (next(filter(has, keys), None) for taps in all_taps for keys in taps.tensors.values())
    return {key for key in found if key is not None}
