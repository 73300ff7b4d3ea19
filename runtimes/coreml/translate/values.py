"""What stands for the graph's values in the program, and how an operator's translator reads its node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from quantize.nodes import constant, module_path
from runtimes.coreml.names import coreml_name
from runtimes.coreml.translate.mil import Var, dtype_name, held, mb
from runtimes.coreml.translate.stored import Stored, stored_of
from toolkit.errors import StageError, UnsupportedError

__all__ = ["Node", "Scope", "Translate"]


class Scope:
    """Variables of the program by the graph's values; weights are made when they are first read.

    `states` are the caches by the name of the graph input that each one was; `joined` are additions of a bias that the
    product before them has taken along.
    """

    def __init__(self) -> None:
        self.states: dict[str, Var] = {}
        self.joined: set[ir.Node] = set()
        self._vars: dict[ir.Value, Var] = {}
        self._weights: dict[tuple[object, ...], Var] = {}
        self._names: set[str] = set()
        self._dims: dict[str, tuple[Var, int]] = {}
        self._sizes: dict[str, Var] = {}

    def bind(self, value: ir.Value, var: Var) -> None:
        """Let `var` stand for the value from now on."""
        self._vars[value] = var

    def var(self, value: ir.Value) -> Var:
        """The variable that stands for a value: what was bound, or a constant. Raises StageError for neither."""
        if value not in self._vars:
            stored = stored_of(value)
            if stored is None:
                raise StageError("build", f"nothing computes '{value.name}'", hint="This is a bug; report the model.")
            self._vars[value] = self.weight(stored, dtype_name(value.dtype, f"'{value.name}'"))
        return self._vars[value]

    def weight(self, stored: Stored, dtype: str) -> Var:
        """The one variable of a weight in this number type, however many read it."""
        key = (*stored.key, dtype)
        if key not in self._weights:
            self._weights[key] = stored.make(dtype, self.unused_name(stored.name))
        return self._weights[key]

    def measure(self, dim: str, var: Var, axis: int) -> None:
        """Say which axis of an input has the size of a named dimension."""
        self._dims.setdefault(dim, (var, axis))

    def size(self, dim: str) -> Var | None:
        """The size of a named dimension, int32 [1]; None where no input has it. It is read once for all."""
        if dim not in self._sizes and dim in self._dims:
            var, axis = self._dims[dim]
            whole = mb.shape(x=var, name=self.unused_name(f"{dim}_shape"))
            name = self.unused_name(f"{dim}_size")
            self._sizes[dim] = mb.slice_by_index(x=whole, begin=[axis], end=[axis + 1], name=name)
        return self._sizes.get(dim)

    def unused_name(self, wanted: str) -> str:
        """`wanted` as Core ML has it, or the first of `wanted_2`, `wanted_3`, … that no operator of the program has."""
        plain = coreml_name(wanted)
        name, count = plain, 1
        while name in self._names:
            count += 1
            name = f"{plain}_{count}"
        self._names.add(name)
        return name


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A node of the lowered graph as its translator sees it."""

    node: ir.Node
    scope: Scope

    @property
    def name(self) -> str:
        """What the node's result is called."""
        return str(self.node.outputs[0].name)

    @property
    def dtype(self) -> str:
        """The number type of the node's result."""
        return dtype_name(self.node.outputs[0].dtype, f"'{self.name}'")

    def value(self, index: int) -> ir.Value | None:
        """The graph's value at that input, None where it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def given(self, index: int) -> ir.Value:
        """The graph's value at an input that must be there."""
        value = self.value(index)
        if value is None:
            raise self.refusal(f"it lacks input {index}")
        return value

    def input(self, index: int) -> Var:
        """The variable of an input that must be there."""
        return self.scope.var(self.given(index))

    def optional(self, index: int) -> Var | None:
        """The variable of an input, None where it is left out."""
        value = self.value(index)
        return None if value is None else self.scope.var(value)

    def inputs(self) -> list[Var]:
        """The variables of all inputs."""
        return [self.input(index) for index in range(len(self.node.inputs))]

    def array(self, index: int) -> NDArray[Any] | None:
        """The numbers of a constant input; None for what is computed or left out."""
        tensor = constant(self.value(index))
        return None if tensor is None else np.asarray(tensor.numpy())

    def ints(self, index: int, attribute: str = "") -> list[int] | None:
        """Integers that are a constant input or, in older operators, an attribute."""
        array = self.array(index)
        if array is not None:
            return [int(number) for number in array.reshape(-1)]
        found = self.node.attributes.get(attribute)
        return None if found is None else list(found.as_ints())

    def integer(self, attribute: str, default: int) -> int:
        """An integer attribute."""
        return int(self.node.attributes.get_int(attribute, default))

    def decimal(self, attribute: str, default: float) -> float:
        """A number attribute."""
        return float(self.node.attributes.get_float(attribute, default))

    def text(self, attribute: str, default: str) -> str:
        """A text attribute."""
        return str(self.node.attributes.get_string(attribute, default))

    def emit(self, operator: str, **inputs: Any) -> Var:
        """Append an operator of the program; inputs that are None are left out."""
        return getattr(mb, operator)(
            **{name: value for name, value in inputs.items() if value is not None},
            name=self.scope.unused_name(self.name),
        )

    def number(self, value: float | NDArray[Any], dtype: str) -> Any:
        """A constant beside a tensor of that number type."""
        return held(np.asarray(value), dtype)

    def refusal(self, why: str) -> UnsupportedError:
        """The error that says which node of which module has no form in an ML Program, and why."""
        return UnsupportedError(
            f"{self.node.op_type} '{self.node.name}' of {module_path(self.node)} has no form in an ML Program: {why}",
            hint="Export for another runtime, as ort-mobile-fp16, or report the model.",
        )


Translate = Callable[[Node], Var | Sequence[Var]]
"""Appends what an operator is in an ML Program and answers its outputs."""
