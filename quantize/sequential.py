"""Walking the calibration data through the graph once, a stretch at a time, behind weights that are rounded on the way.

Before the Linears that read a tensor are rounded, what they read is computed with the rounded weights of all Linears
before them. What is alive between two stretches waits on disk, so memory holds one batch of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper

from quantize.calibration import feeds, fetch, not_finite, open_session, weights_folder
from quantize.gptq import Hessian
from quantize.nodes import map_tensor
from quantize.sampled_rows import first_row, real_rows
from quantize.smoothing import Group
from toolkit.types import Calibration

__all__ = ["walk"]

Array = NDArray[Any]
RoundGroup = Callable[[Group, Hessian], Mapping[str, Array]]
"""Answers, by name, the float32 weights that a group's Linears have from now on."""


def walk(
    model: ir.Model,
    groups: Sequence[Group],
    calibration: Calibration,
    round_group: RoundGroup,
    *,
    rows: int | None = None,
) -> None:
    """Call `round_group` for each group in graph order with the Hessian of what its Linears read by then.

    Rows that `attention_mask` calls padding are not counted; of the others about `rows` are, spread evenly, where
    those are given. The model itself is not touched here.
    Raises StageError that names the tensor where one holds NaN or Inf, UsageError where a batch lacks an input.
    """
    plan = _Plan(model, groups)
    inputs = {str(value.name) for value in model.graph.inputs}
    with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
        store = _Store(Path(folder), calibration, inputs, plan.read_inputs)
        weights: dict[str, Array] = {}
        for stretch in plan.stretches:
            session = _open(plan, stretch, store, weights_folder(model))
            fed = {name: _weight(model, name, weights) for name in stretch.weights}
            hessian = _run(session, stretch, store, fed, rows)
            weights.update(round_group(stretch.group, hessian))
            weights = {name: array for name, array in weights.items() if name in stretch.later}


@dataclass(frozen=True, slots=True, eq=False)
class _Stretch:
    """Nodes up to the Linears of `group`.

    They read `weights` of earlier Linears and other values `fed`; `alive` is what later stretches read, `outputs` what
    of it is made here, `later` the weights of Linears that they read.
    """

    group: Group
    nodes: tuple[NodeProto, ...]
    weights: frozenset[str]
    fed: frozenset[str]
    outputs: tuple[str, ...]
    alive: frozenset[str]
    later: frozenset[str]


class _Plan:
    """The graph cut before each group's first Linear, without the nodes that no group needs."""

    def __init__(self, model: ir.Model, groups: Sequence[Group]) -> None:
        weights = {each.weight for group in groups for each in group.linears}
        self._proto = _without_data(model, weights)
        self._initializers = {tensor.name: tensor for tensor in self._proto.graph.initializer}
        self._weights = {str(weight.name) for weight in weights}
        nodes = self._proto.graph.node
        place = {name: index for index, node in enumerate(nodes) for name in node.output}
        first = {group: min(place[str(each.node.outputs[0].name)] for each in group.linears) for group in groups}
        self._groups = sorted(groups, key=lambda group: first[group])
        needed = _needed(nodes, {str(group.activation.name) for group in groups}, place)
        self.stretches = self._cut({index: nodes[index] for index in needed}, [first[group] for group in self._groups])
        self.read_inputs = {value.name for value in self._proto.graph.input} & {
            *(name for index in needed for name in _reads(nodes[index])),
            *(str(group.activation.name) for group in groups),
        }

    def proto(self, stretch: _Stretch, dtypes: Mapping[str, np.dtype[Any]]) -> ModelProto:
        """The stretch as a graph of its own, whose inputs have those dtypes; its other weights stay where they are."""
        read = {name for node in stretch.nodes for name in _reads(node)}
        constants = [self._initializers[name] for name in sorted(read & set(self._initializers) - stretch.weights)]
        inputs = [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
            for name, dtype in sorted(dtypes.items())
        ]
        outputs = [helper.make_empty_tensor_value_info(name) for name in stretch.outputs]
        return helper.make_model(
            helper.make_graph(stretch.nodes, "stretch", inputs, outputs, constants),
            opset_imports=self._proto.opset_import,
            functions=self._proto.functions,
            ir_version=self._proto.ir_version,
        )

    def _cut(self, nodes: Mapping[int, NodeProto], cuts: Sequence[int]) -> list[_Stretch]:
        stretches: list[_Stretch] = []
        for number, (begin, end) in enumerate(zip([0, *cuts], cuts, strict=False)):
            inside = tuple(node for index, node in nodes.items() if begin <= index < end)
            made = {name for node in inside for name in node.output}
            read = {name for node in inside for name in _reads(node)} - made
            after = {name for index, node in nodes.items() if index >= end for name in _reads(node)}
            after |= {str(group.activation.name) for group in self._groups[number:]}
            alive = frozenset(after - set(self._initializers))
            stretches.append(
                _Stretch(
                    group=self._groups[number],
                    nodes=inside,
                    weights=frozenset(read & self._weights),
                    fed=frozenset(read - set(self._initializers)),
                    outputs=tuple(sorted(made & alive)),
                    alive=alive,
                    later=frozenset(after & self._weights),
                )
            )
        return stretches


def _without_data(model: ir.Model, weights: set[ir.Value]) -> ModelProto:
    """The model's proto, but for the data of those weights, which are fed: smoothed ones would all be made at once."""
    held = {weight: weight.const_value for weight in weights}
    try:
        for weight in weights:
            weight.const_value = ir.tensor(np.zeros(0, np.float32), name=weight.name)
        return ir.to_proto(model)
    finally:
        for weight, tensor in held.items():
            weight.const_value = tensor


class _Store:
    """The live values of each batch, one file a value."""

    def __init__(self, folder: Path, calibration: Calibration, inputs: set[str], read: set[str]) -> None:
        self._folders: list[Path] = []
        self._numbers: dict[str, int] = {}
        self.masks: list[Array | None] = []
        for index, batch in enumerate(feeds(calibration, inputs)):
            self._folders.append(folder / str(index))
            self._folders[-1].mkdir()
            self.write(index, {name: batch[name] for name in read if name in batch})
            self.masks.append(batch.get("attention_mask"))

    def __len__(self) -> int:
        return len(self._folders)

    def read(self, index: int, names: frozenset[str]) -> dict[str, Array]:
        """Those values of one batch."""
        return {name: np.load(self._path(index, name)) for name in names}

    def write(self, index: int, values: Mapping[str, Array]) -> None:
        """Keep these values of one batch."""
        for name, array in values.items():
            np.save(self._path(index, name), array)

    def keep(self, index: int, alive: frozenset[str]) -> None:
        """Drop the values of one batch that nothing reads any more."""
        kept = {self._path(index, name) for name in alive}
        for path in self._folders[index].iterdir():
            if path not in kept:
                path.unlink()

    def _path(self, index: int, name: str) -> Path:
        # A value's own name may be no file's name, or differ from another's in case only.
        return self._folders[index] / f"{self._numbers.setdefault(name, len(self._numbers))}.npy"


def _open(plan: _Plan, stretch: _Stretch, store: _Store, folder: str) -> ort.InferenceSession | None:
    if not stretch.outputs:
        return None
    dtypes = {name: array.dtype for name, array in store.read(0, stretch.fed).items()}
    dtypes.update(dict.fromkeys(stretch.weights, np.dtype(np.float32)))
    return open_session(plan.proto(stretch, dtypes), folder)


def _weight(model: ir.Model, name: str, rounded: Mapping[str, Array]) -> Array:
    tensor = model.graph.initializers[name].const_value
    if name in rounded or tensor is None:
        return rounded[name]
    return map_tensor(tensor, lambda array: np.array(array, dtype=np.float32))


def _run(
    session: ort.InferenceSession | None,
    stretch: _Stretch,
    store: _Store,
    weights: Mapping[str, Array],
    most: int | None,
) -> Hessian:
    """Run one stretch over all batches, keep what is alive, and add up what the group's Linears read."""
    hessian = Hessian(stretch.group.width)
    name = str(stretch.group.activation.name)
    for index in range(len(store)):
        if session is not None:
            feed = {**store.read(index, stretch.fed), **weights}
            store.write(index, fetch(session, list(stretch.outputs), feed, index))
        activation = store.read(index, frozenset({name}))[name]
        read = activation.reshape(-1, activation.shape[-1])
        try:
            hessian.add(_thinned(real_rows(read, store.masks[index]), index, len(store), most))
        except ValueError as error:
            raise not_finite(stretch.group.activation, str(error), index) from error
        store.keep(index, stretch.alive)
    return hessian


def _thinned(rows: Array, index: int, batches: int, most: int | None) -> Array:
    """Every so many of the rows [R, K], so that as many batches like this one have about `most` rows in all."""
    if most is None:
        return rows
    step = max(1, len(rows) * batches // most)
    return rows[first_row(index, step) :: step]


def _needed(nodes: Sequence[NodeProto], wanted: set[str], place: Mapping[str, int]) -> list[int]:
    kept: set[int] = set()
    pending = [place[name] for name in wanted if name in place]
    while pending:
        index = pending.pop()
        if index not in kept:
            kept.add(index)
            pending.extend(place[name] for name in _reads(nodes[index]) if name in place)
    return sorted(kept)


def _reads(node: NodeProto) -> set[str]:
    """What the node reads, and what the graphs in its attributes read from outside."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        made = {name for inner in attribute.g.node for name in inner.output}
        made |= {value.name for value in (*attribute.g.input, *attribute.g.initializer)}
        names |= {name for inner in attribute.g.node for name in _reads(inner)} - made
    return names
