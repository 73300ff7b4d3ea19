"""Writing an ONNX graph as if it were numpy: values with operators, shared constants, loops and branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["Graph", "Value"]

_OPSET, _ML_OPSET, _IR = 18, 4, 10
_ENDLESS = np.iinfo(np.int64).max


class Value:
    """A tensor of a graph that is being written. An operator adds a node; a plain number becomes a constant."""

    __slots__ = ("graph", "name")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, graph: Graph, name: str) -> None:
        self.graph, self.name = graph, name

    def __add__(self, other: Any) -> Value:
        return self.graph.op("Add", self, other)

    def __sub__(self, other: Any) -> Value:
        return self.graph.op("Sub", self, other)

    def __mul__(self, other: Any) -> Value:
        return self.graph.op("Mul", self, other)

    def __floordiv__(self, other: Any) -> Value:
        """Of numbers that are not negative, as ONNX's Div of integers rounds towards zero."""
        return self.graph.op("Div", self, other)

    def __mod__(self, other: Any) -> Value:
        return self.graph.op("Mod", self, other)

    def __lt__(self, other: Any) -> Value:
        return self.graph.op("Less", self, other)

    def __ge__(self, other: Any) -> Value:
        return self.graph.op("GreaterOrEqual", self, other)

    def __gt__(self, other: Any) -> Value:
        return self.graph.op("Greater", self, other)

    def __le__(self, other: Any) -> Value:
        return self.graph.op("LessOrEqual", self, other)

    def __eq__(self, other: Any) -> Value:  # type: ignore[override]
        return self.graph.op("Equal", self, other)

    def __and__(self, other: Any) -> Value:
        return self.graph.op("And", self, other)

    def __or__(self, other: Any) -> Value:
        return self.graph.op("Or", self, other)

    def __invert__(self) -> Value:
        return self.graph.op("Not", self)

    def cast(self, kind: int = TensorProto.INT64) -> Value:
        """To int64, or to the given type of `TensorProto`."""
        return self.graph.op("Cast", self, to=kind)


class Graph:
    """Nodes and constants of a graph in the making. Nodes go to the innermost loop or branch that is open."""

    def __init__(self) -> None:
        self._scopes: list[list[NodeProto]] = [[]]
        self._constants: dict[tuple[str, tuple[int, ...], bytes], TensorProto] = {}
        self._count = 0

    def input(self, name: str) -> Value:
        """A value that the model is fed."""
        return Value(self, name)

    def constant(self, value: ArrayLike) -> Value:
        """A constant; the same one for the same type, shape and content. Python's integers are int64."""
        array = np.asarray(value)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = numpy_helper.from_array(array, self._name("constant"))
        return Value(self, self._constants[key].name)

    def op(self, kind: str, *inputs: Any, domain: str = "", spare: int = 0, **attributes: Any) -> Value:
        """Add a node and answer its first output; `spare` is how many more it has, that nobody reads."""
        names = [self._value(item).name for item in inputs]
        outputs = [self._name(kind.lower()) for _ in range(spare + 1)]
        self._scopes[-1].append(helper.make_node(kind, names, outputs, domain=domain, **attributes))
        return Value(self, outputs[0])

    def label(self, keys: Value, known: NDArray[np.int64], values: NDArray[np.int64], default: int) -> Value:
        """Each int64 key's value, by LabelEncoder of `ai.onnx.ml` 4; `default` for one that is not `known`."""
        return self.op(
            "LabelEncoder",
            keys,
            domain="ai.onnx.ml",
            keys_tensor=numpy_helper.from_array(known.astype(np.int64), "keys"),
            values_tensor=numpy_helper.from_array(values.astype(np.int64), "values"),
            default_tensor=numpy_helper.from_array(np.array([default], np.int64), "default"),
        )

    def loop(
        self,
        carried: Sequence[Value],
        body: Callable[[Sequence[Value]], tuple[Value, Sequence[Value]]],
        types: Sequence[int] | None = None,
    ) -> list[Value]:
        """Do `body` at least once, as long as the bool scalar it answers is true; carried is int64, or `types`."""
        types = types or [TensorProto.INT64] * len(carried)
        count, going = self._name("count"), self._name("going")
        inner = [Value(self, self._name("carried")) for _ in carried]
        self._scopes.append([])
        again, after = body(inner)
        # An output may not be a value from outside, nor an input, nor stand there twice.
        ends = [self.op("Identity", item) for item in (again, *after)]
        given = [helper.make_tensor_value_info(count, TensorProto.INT64, []), _info(going, TensorProto.BOOL, [])]
        given += [_info(item.name, kind) for item, kind in zip(inner, types, strict=True)]
        kinds = [TensorProto.BOOL, *types]
        made = [
            _info(item.name, kind, [] if kind == TensorProto.BOOL else None)
            for item, kind in zip(ends, kinds, strict=True)
        ]
        graph = helper.make_graph(self._scopes.pop(), self._name("body"), given, made)
        outputs = [self._name("loop") for _ in carried]
        start = [self.constant(_ENDLESS).name, self.constant(True).name, *(item.name for item in carried)]
        self._scopes[-1].append(helper.make_node("Loop", start, outputs, body=graph))
        return [Value(self, name) for name in outputs]

    def choose(self, condition: Value, then: Callable[[], Value], otherwise: Callable[[], Value], kind: int) -> Value:
        """One of two values of a type of `TensorProto`; only the chosen one is worked out."""
        output = self._name("if")
        branches = {"then_branch": self._branch(then, kind), "else_branch": self._branch(otherwise, kind)}
        self._scopes[-1].append(helper.make_node("If", [condition.name], [output], **branches))
        return Value(self, output)

    def model(self, inputs: Sequence[Any], outputs: Sequence[tuple[Value, Any]]) -> ModelProto:
        """The whole model; each output is a value and the `ValueInfoProto` it is known by."""
        for value, info in outputs:
            self._scopes[0].append(helper.make_node("Identity", [value.name], [info.name]))
        made = [info for _, info in outputs]
        used = _used(self._scopes[0])
        constants = [tensor for tensor in self._constants.values() if tensor.name in used]
        graph = helper.make_graph(self._scopes[0], "text", list(inputs), made, constants)
        domains = {"": _OPSET, "ai.onnx.ml": _ML_OPSET, "ai.onnx.contrib": 1}
        opsets = [helper.make_opsetid(name, version) for name, version in domains.items()]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR, producer_name="toolkit")

    def _branch(self, body: Callable[[], Value], kind: int) -> GraphProto:
        self._scopes.append([])
        value = self.op("Identity", body())
        return helper.make_graph(self._scopes.pop(), self._name("branch"), [], [_info(value.name, kind)])

    def _value(self, item: Any) -> Value:
        return item if isinstance(item, Value) else self.constant(item)

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def _info(name: str, kind: int = TensorProto.INT64, shape: Sequence[int] | None = None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _used(nodes: Sequence[NodeProto]) -> set[str]:
    """The names that nodes read, those in their loops and branches included."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                names |= _used(attribute.g.node)
    return names
