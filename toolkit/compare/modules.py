"""The PyTorch modules in an ONNX graph: which nodes are whose, which tensor leaves a module and which enters it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import onnx

__all__ = ["FLOATS", "Module", "Modules"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_EMPTY = "_empty_nn_module_stack_from_metadata_hook"
FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})
_PRECISION = frozenset({"Cast", "DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})
"""Operators that change how a tensor is stored: a module that reads through them reads what is before."""
_SMOOTHING = "_smoothing"
"""How `quantize.smoothing` ends the name of the vector that one activation is multiplied by for a Linear's sake."""
_INTEGERS = frozenset({"ArgMax", "DynamicQuantizeLinear", "NonZero", "QuantizeLinear", "Shape", "Size"})
_BOOLEANS = frozenset({"And", "Equal", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Not", "Or"})


_RANDOM = frozenset({"Bernoulli", "RandomNormal", "RandomUniform"})


@dataclass(frozen=True, slots=True)
class Module:
    """A module whose output is one tensor; `entering` is the tensor that a leaf reads, where it reads only one.

    `order` is the position of the node that makes the output.
    """

    path: str
    kind: str
    tensor: str
    order: int
    leaf: bool
    entering: str = ""


@dataclass
class Modules:
    """Reads a graph without its weights. `modules` are in the order of execution, `ambiguous` says why not others."""

    proto: onnx.ModelProto
    ambiguous: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        graph = self.proto.graph
        self._nodes = list(graph.node)
        self._producer = {name: index for index, node in enumerate(self._nodes) for name in node.output if name}
        self._readers: dict[str, list[int]] = defaultdict(list)
        for index, node in enumerate(self._nodes):
            for name in node.input:
                self._readers[name].append(index)
        self._outputs = {value.name for value in graph.output}
        self._weights = {tensor.name for tensor in graph.initializer}
        self._inputs = {value.name for value in graph.input} - self._weights
        self._constants = self._constant_tensors()
        self._types = self._tensor_types()
        self.floats = frozenset(name for name, dtype in self._types.items() if dtype in FLOATS)
        self.modules = tuple(sorted(self._modules(), key=lambda each: (each.order, -each.path.count("."))))

    @cached_property
    def scopes(self) -> list[tuple[str, ...]]:
        """Of each node the paths of the modules around it, outermost first; the node that it reads from gives its own
        where it has none, as a cast that a session put in.
        """
        own = self.proto.producer_name == "toolkit"
        found: list[tuple[str, ...]] = []
        for node in self._nodes:
            scopes = _scopes(node, complete=own)
            above = next((self._producer[name] for name in node.input if name in self._producer), None)
            if not scopes and above is not None and above < len(found) and node.op_type in _PRECISION:
                scopes = found[above]
            found.append(scopes)
        return found

    @property
    def named(self) -> bool:
        """Whether the graph knows its modules at all."""
        return any(self.scopes)

    def kind(self, tensor: str) -> str:
        """The operator that makes the tensor."""
        index = self._producer.get(tensor)
        return self._nodes[index].op_type if index is not None else ""

    def order(self, tensor: str) -> int:
        """The position of the node that makes the tensor, -1 for an input."""
        return self._producer.get(tensor, -1)

    def readers(self, tensor: str) -> tuple[str, ...]:
        """The operators that read the tensor."""
        return tuple(self._nodes[index].op_type for index in self._readers[tensor])

    def half(self, tensor: str) -> bool:
        """Whether the tensor is of float16, or was just before it was cast to another type."""
        while self._types.get(tensor) != onnx.TensorProto.FLOAT16:
            index = self._producer.get(tensor)
            if index is None or self._nodes[index].op_type != "Cast":
                return False
            tensor = self._nodes[index].input[0]
        return True

    def _modules(self) -> Iterator[Module]:
        members: dict[str, set[int]] = defaultdict(set)
        for index, scopes in enumerate(self.scopes):
            for path in scopes:
                members[path].add(index)
        parents = {path.rpartition(".")[0] for path in members} | {
            scope for scopes in self.scopes for scope in scopes[:-1]
        }
        for path, nodes in members.items():
            leaving = self._leaving(nodes)
            if len(leaving) > 1:
                self.ambiguous[path] = f"{len(leaving)} tensors leave it in the graph: {', '.join(leaving[:3])}"
            for tensor in leaving if len(leaving) == 1 else ():
                leaf = path not in parents
                entering = self._entering(nodes) if leaf else []
                only = entering[0] if len(entering) == 1 else ""
                yield Module(path, self.kind(tensor), tensor, self._producer[tensor], leaf, only)

    def _leaving(self, nodes: set[int]) -> list[str]:
        """Floats that somebody outside reads; outputs of the model only where there is nothing else, as a cache."""
        outputs = (name for index in sorted(nodes) for name in self._nodes[index].output)
        made = [name for name in outputs if name in self.floats and name not in self._constants]
        read = [name for name in made if set(self._readers[name]) - nodes]
        # What is stored for its readers is no output of the module that is named on those nodes, but what is before it.
        plain = dict.fromkeys(self._before_storing(name) for name in read if not self._is_stored_form(name, nodes))
        answers = [name for name in made if name in self._outputs]
        inner = [name for name in plain if name not in self._outputs]
        # One tensor in several number types is one tensor.
        return list({self._source(name): name for name in reversed(inner or answers)}.values())

    def _entering(self, nodes: set[int]) -> list[str]:
        read = (name for index in sorted(nodes) for name in self._nodes[index].input)
        sources = (self._source(name) for name in read if name in self._producer or name in self._inputs)
        outside = (name for name in sources if self._producer.get(name, -1) not in nodes)
        return [name for name in dict.fromkeys(outside) if name in self.floats and name not in self._constants]

    def _is_stored_form(self, name: str, nodes: set[int]) -> bool:
        """Whether the tensor is, in another form, one that enters from outside."""
        source = self._source(name)
        return source != name and self._producer.get(source, -1) not in nodes

    def _source(self, name: str) -> str:
        return list(self._forms(name))[-1]

    def _before_storing(self, name: str) -> str:
        """The tensor before it was quantized or smoothed; a cast alone is the module's own."""
        forms = list(self._forms(name))
        stored = [index for index, form in enumerate(forms[:-1]) if self.kind(form) != "Cast"]
        return forms[stored[-1] + 1] if stored else name

    def _forms(self, name: str) -> Iterator[str]:
        """The tensor, and what it was before each change of how it is stored."""
        yield name
        while (index := self._producer.get(name)) is not None:
            node = self._nodes[index]
            made = (each for each in node.input if each in self._producer or each in self._inputs)
            above = next((each for each in made if each not in self._constants), None)
            smoothing = node.op_type == "Mul" and any(each.endswith(_SMOOTHING) for each in node.input)
            if above is None or not (smoothing or node.op_type in _PRECISION):
                return
            name = above
            yield name

    def _constant_tensors(self) -> set[str]:
        """Weights, and what is made of nothing else, as a weight that is cast or dequantized."""
        found = set(self._weights)
        for node in self._nodes:
            if all(name in found for name in node.input if name) and node.op_type not in _RANDOM:
                found |= set(node.output)
        return found

    def _tensor_types(self) -> dict[str, int]:
        graph = self.proto.graph
        known = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
        known |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        for node in self._nodes:
            dtype = _dtype(node, known)
            for name in node.output:
                # Value infos are as the exporter wrote them; an operator that only ever makes integers knows better.
                known[name] = known.get(name) or dtype
        return known


def _scopes(node: onnx.NodeProto, *, complete: bool) -> tuple[str, ...]:
    text = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "")
    if not text:
        return _scopes_in_name(node.name)
    try:
        scopes = [str(scope) for scope in ast.literal_eval(text)]
    except (SyntaxError, ValueError, TypeError):
        return ()
    # The exporter's own list ends with the operator's name.
    return tuple(scope for scope in (scopes if complete else scopes[:-1]) if scope and scope != _EMPTY)


def _scopes_in_name(name: str) -> tuple[str, ...]:
    """The older exporter calls a node of `encoder.layer.0.output.dense` `/encoder/layer.0/output/dense/MatMul`."""
    if not name.startswith("/"):
        return ()
    parts = name.split("/")[1:-1]
    return tuple(".".join(parts[: end + 1]) for end in range(len(parts)))


def _dtype(node: onnx.NodeProto, known: Mapping[str, int]) -> int:
    """The type of the first output; of what is not known otherwise, that of the first input whose type is known."""
    if node.op_type in _INTEGERS:
        return int(onnx.TensorProto.INT64)
    if node.op_type in _BOOLEANS:
        return int(onnx.TensorProto.BOOL)
    for attribute in node.attribute:
        if attribute.name == "to":
            return int(attribute.i)
        if attribute.name == "value" and attribute.HasField("t"):
            return int(attribute.t.data_type)
    if node.op_type == "DequantizeLinear":
        return known.get(node.input[1], 0)
    if node.op_type == "MatMulIntegerToFloat":
        return known.get(node.input[2], 0)
    if node.op_type.startswith("Int8Linear"):
        return int(onnx.TensorProto.UINT8 if node.op_type.endswith("Codes") else onnx.TensorProto.FLOAT)
    # What is chosen or gathered comes before what it is chosen by, save for a condition.
    types = (known.get(name, 0) for name in node.input[node.op_type == "Where" :])
    return next((dtype for dtype in types if dtype), 0)
