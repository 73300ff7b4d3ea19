"""Where a graph can be tapped: the outputs of its modules that are still there once ONNX Runtime has fused it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from quantize.scaled import SCALED, divided
from runtimes._onnxruntime.tapped import TappedGraph, Typed
from toolkit.compare.keys import Key
from toolkit.compare.modules import Module, Modules
from toolkit.types import Tensors

__all__ = ["Taps", "expected_bytes", "find_taps", "in_groups"]

_SMALLEST_GROUP = 1 << 25
"""Bytes of tapped tensors that are never worth another pass over the model."""


@dataclass(frozen=True, slots=True)
class Taps:
    """Of one graph the modules that can be tapped, the tensors to tap with what the other side may call each, and why
    other modules cannot be tapped.

    `divisors` has vectors [K], by tensor, that the graph divided that tensor's last axis by; `types` is what ONNX
    Runtime knows of the tensors; `half` are those of float16, or that were until a cast. `answer` is the first output.
    """

    graph: TappedGraph
    modules: tuple[Module, ...]
    tensors: Mapping[str, tuple[Key, ...]]
    answer: str
    types: Mapping[str, Typed]
    divisors: Mapping[str, NDArray[np.float32]]
    half: frozenset[str]
    skipped: dict[str, str] = field(default_factory=dict)

    def by_key(self) -> dict[Key, str]:
        """The tensor that each key stands for."""
        return {key: tensor for tensor, keys in self.tensors.items() for key in keys}


def find_taps(graph: TappedGraph) -> Taps:
    """Read the graph, see what ONNX Runtime makes of it, and leave out what would change that."""
    found = Modules(graph.proto)
    optimised = graph.optimised()
    skipped = dict(found.ambiguous)
    wanted: dict[str, list[Key]] = {}
    modules = []
    for module in found.modules or _by_tensor(found, optimised.tensors):
        if module.tensor in optimised.tensors:
            modules.append(module)
            wanted.setdefault(module.tensor, []).append(Key("out", module.path))
        else:
            readers = ", ".join(dict.fromkeys(found.readers(module.tensor))) or "what follows"
            skipped[module.path] = f"ONNX Runtime fuses its output with {readers}"
    for module in modules:
        if module.entering in optimised.tensors:
            wanted.setdefault(module.entering, []).append(Key("in", module.path))
    answer = graph.proto.graph.output[0].name
    wanted.setdefault(answer, []).append(Key("answer", answer))
    kept = _harmless(graph, list(wanted), optimised.operators)
    for module in modules:
        if module.tensor not in kept:
            skipped[module.path] = "ONNX Runtime would fuse otherwise if its output were read"
    return Taps(
        graph=graph,
        modules=tuple(module for module in modules if module.tensor in kept),
        tensors={name: (*wanted[name], Key("tensor", name)) for name in wanted if name in kept},
        answer=answer,
        types=optimised.tensors,
        divisors=_divisors(graph.proto, found),
        half=frozenset(name for name in wanted if found.half(name)),
        skipped=skipped,
    )


def in_groups(taps: Taps, sizes: Mapping[str, int]) -> list[list[str]]:
    """The tensors, whose bytes are given, in groups of at most an eighth of the model's bytes: memory is bounded.

    A graph answers all its outputs at once; every group is a pass of its own.
    """
    limit = max(_SMALLEST_GROUP, taps.graph.weight_bytes // 8)
    groups: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return [group for group in groups if group]


def expected_bytes(taps: Taps, names: Iterable[str], batches: Sequence[Tensors]) -> dict[str, int]:
    """Bytes of tensors before they were seen, on the largest batch; of unknown shape: as the largest that is known."""
    known = {name: [_bytes(taps, taps.types[name].shape, batch) for batch in batches] for name in taps.tensors}
    largest = max((max(sizes, default=0) for name, sizes in known.items() if taps.types[name].shape), default=0)
    largest = largest or _SMALLEST_GROUP // 4
    return {name: max(known[name], default=0) if taps.types[name].shape else largest for name in names}


def _harmless(graph: TappedGraph, names: list[str], operators: Mapping[Any, int]) -> set[str]:
    """Those of the tensors that can be read without another graph coming of it, found by halves."""
    if not names or graph.optimised(names).operators == operators:
        return set(names)
    if len(names) == 1:
        return set()
    middle = len(names) // 2
    return _harmless(graph, names[:middle], operators) | _harmless(graph, names[middle:], operators)


def _by_tensor(found: Modules, tensors: Mapping[str, Typed]) -> list[Module]:
    """Of a graph that knows no modules every float tensor, called by its own name."""
    if found.named:
        return []
    floats = (name for name in tensors if name in found.floats and found.order(name) >= 0)
    made = (Module(name, found.kind(name), name, found.order(name), leaf=True) for name in floats)
    return sorted(made, key=lambda module: module.order)


def _divisors(proto: onnx.ModelProto, found: Modules) -> dict[str, NDArray[np.float32]]:
    """What the quantize stage noted of tensors that it divided by a vector; see `quantize.scaled`."""
    noted = next((entry.value for entry in proto.graph.metadata_props if entry.key == SCALED), "")
    by_path = {module.path: module for module in found.modules}
    divisors: dict[str, NDArray[np.float32]] = {}
    for side, path, divisor in divided(noted):
        module = by_path.get(path)
        tensor = (module.tensor if side == "out" else module.entering) if module else ""
        if tensor:
            divisors[tensor] = divisor
    return divisors


def _bytes(taps: Taps, shape: Sequence[int | str], batch: Tensors) -> int:
    """A size that no input has counts as the largest one that any has."""
    sizes: dict[str, int] = {}
    for value in taps.graph.proto.graph.input:
        array = batch.get(value.name)
        dims = value.type.tensor_type.shape.dim
        sizes |= {
            dim.dim_param: size for dim, size in zip(dims, array.shape if array is not None else (), strict=False)
        }
    largest = max(sizes.values(), default=1)
    return 4 * math.prod(size if isinstance(size, int) else sizes.get(size, largest) for size in shape)
