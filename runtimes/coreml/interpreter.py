"""Runs a saved ML Program on any machine, in torch, operator by operator.

It proves what is in the package: the graph, the weights and how they are quantized. It does not prove Apple's kernels:
each operator is exact to float32 in itself, and only its result is rounded to float16, overflowing to infinity as
float16 does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtimes.coreml import moving
from runtimes.coreml.operators import OPERATORS
from runtimes.coreml.program import Constant, Declared, Operation, Program
from toolkit.errors import StageError, UnsupportedError

__all__ = ["Interpreter", "held"]

_LISTS = frozenset({"values"})
"""Parameters that take several values."""
_STATES = frozenset({"read_state", "write_state"})
_MOVING = frozenset(function.__name__ for function in moving.FUNCTIONS) - {"pad"}
"""What only moves float16 numbers needs no rounding."""
_CASTS = {"fp16": "float16", "fp32": "float32"}
_TORCH = {
    "bool": torch.bool, "float16": torch.float32, "float32": torch.float32, "int8": torch.int8, "int4": torch.int8,
    "int16": torch.int16, "int32": torch.int32, "uint16": torch.int32, "uint8": torch.uint8, "uint6": torch.uint8,
    "uint4": torch.uint8, "uint3": torch.uint8, "uint2": torch.uint8, "uint1": torch.uint8, "uint32": torch.int64,
    "int64": torch.int64,
}  # fmt: skip
"""What values of each type are held in; float16 in float32, since its arithmetic is done there."""

Value = Tensor | str | tuple[str, ...]


class Interpreter:
    """A program whose weights were made whole once; `run` may be called with other inputs each time.

    Raises UnsupportedError that names every operator which is not understood.
    """

    def __init__(self, program: Program) -> None:
        _refuse_unknown(program)
        self._program = program
        self._constants: dict[str, Value] = {}
        self._operations: list[Operation] = []
        for operation in program.operations:
            if operation.kind == "const" or operation.kind.startswith("constexpr_"):
                self._constants |= self._done(operation, {}, {})
            else:
                self._operations.append(operation)
        self._dead = _last_readers(self._operations, program.answers)

    def new_states(self) -> dict[str, Tensor]:
        """The states as a model begins with them: zeros. `run` replaces what the program writes."""
        return {item.name: torch.zeros(_sizes(item), dtype=_TORCH[item.dtype]) for item in self._program.states}

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, NDArray[Any]], states: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
        """All outputs by name, in the dtypes that the package declares; `states` is changed in place.

        Raises StageError where an operator does not take what it was given.
        """
        values: dict[str, Value] = {
            item.name: held(np.asarray(inputs[item.name]), item.dtype) for item in self._program.inputs
        }
        for operation, dead in zip(self._operations, self._dead, strict=True):
            values |= self._done(operation, values, states)
            for name in dead:
                del values[name]
        found = {**self._constants, **values}
        answers = {name: found[name] for name in self._program.answers}
        return {item.name: _answer(answers[item.name], item.dtype) for item in self._program.outputs}

    def _done(self, operation: Operation, values: Mapping[str, Value], states: dict[str, Tensor]) -> dict[str, Value]:
        """What the operator answers, by name, rounded to what is declared."""
        if operation.kind in _STATES:
            return self._state(operation, values, states)
        given = {name: self._argument(name, bound, values) for name, bound in operation.inputs.items() if bound}
        if operation.kind == "const":
            return {operation.outputs[0].name: given["val"]}
        try:
            answer = _cast(**given) if operation.kind == "cast" else OPERATORS[operation.kind](**given)
            results = [answer] if isinstance(answer, Tensor) else list(answer)
            pairs, moved = zip(operation.outputs, results, strict=True), operation.kind in _MOVING
            return {item.name: _rounded(result, item, moved=moved) for item, result in pairs}
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise _failed(operation, error) from error

    def _state(self, operation: Operation, values: Mapping[str, Value], states: dict[str, Tensor]) -> dict[str, Value]:
        (name,) = operation.inputs["input"]
        if operation.kind == "write_state":
            written = self._argument("data", operation.inputs["data"], values)
            states[str(name)] = _tensor(written)
            return {}
        return {operation.outputs[0].name: states[str(name)]}

    def _argument(self, name: str, bound: tuple[str | Constant, ...], values: Mapping[str, Value]) -> Any:
        found = [self._value(each, values) for each in bound]
        return found if name in _LISTS else found[0]

    def _value(self, bound: str | Constant, values: Mapping[str, Value]) -> Value:
        if isinstance(bound, Constant):
            return bound.value if isinstance(bound.value, str | tuple) else held(bound.value, bound.dtype)
        return self._constants[bound] if bound in self._constants else values[bound]


def held(array: NDArray[Any], dtype: str) -> Tensor:
    """The array as values of that MIL type are held; float16 keeps only its own numbers."""
    return torch.tensor(array.astype(dtype, copy=False) if dtype == "float16" else array).to(_TORCH[dtype])


def _refuse_unknown(program: Program) -> None:
    known = {*OPERATORS, *_STATES, "const", "cast"}
    unknown = sorted({operation.kind for operation in program.operations} - known)
    if unknown:
        raise UnsupportedError(
            f"the MIL interpreter does not know the operator{'s' * (len(unknown) > 1)} {', '.join(unknown)}",
            hint="Run the package's selftest.swift on a device instead.",
        )


def _last_readers(operations: list[Operation], answers: tuple[str, ...]) -> list[list[str]]:
    """For each operator the values that nothing behind it reads, so that memory holds no more than is needed."""
    made = {item.name for operation in operations for item in operation.outputs}
    seen = set(answers)
    dead: list[list[str]] = []
    for operation in reversed(operations):
        read = {each for bound in operation.inputs.values() for each in bound if isinstance(each, str)}
        own = {item.name for item in operation.outputs}
        dead.append(sorted(((read | own) & made) - seen))
        seen |= read | own
    return dead[::-1]


def _cast(x: Tensor, dtype: str) -> Tensor:
    """Towards zero where a float becomes an integer; any number but 0 is true."""
    wanted = _TORCH[_CASTS.get(dtype, dtype)]
    return x.trunc().to(wanted) if x.is_floating_point() and not wanted.is_floating_point else x.to(wanted)


def _rounded(value: Tensor, declared: Declared, *, moved: bool) -> Tensor:
    shape = zip(declared.shape, value.shape, strict=False)
    if len(declared.shape) != value.ndim or any(size not in (None, real) for size, real in shape):
        raise ValueError(f"the result is {list(value.shape)}, and {list(declared.shape)} is declared")
    if declared.dtype == "float16" and not moved:
        return value.to(torch.float16).to(torch.float32)
    return value.to(_TORCH[declared.dtype])


def _answer(value: Value, dtype: str) -> NDArray[Any]:
    return _tensor(value).numpy().astype(dtype)


def _tensor(value: Value) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{value!r} where a tensor is needed")
    return value


def _sizes(declared: Declared) -> list[int]:
    if None in declared.shape:
        raise UnsupportedError(f"the state '{declared.name}' has no fixed shape", hint="Export the model again.")
    return [int(size) for size in declared.shape if size is not None]


def _failed(operation: Operation, error: Exception) -> StageError:
    names = ", ".join(item.name for item in operation.outputs)
    return StageError(
        "session",
        f"operator '{operation.kind}' ({names}): {error}",
        hint="Inputs of other sizes than the package takes, or a package that was not made by this toolkit.",
    )
