"""What a saved Core ML package holds: its ML Program, read from its own bytes without coremltools' graph builder.

The format is that of `MIL.proto` and `Model.proto`; weights lie in `weights/weight.bin`, found by offset.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import relative_path
from toolkit.errors import StageError, UnsupportedError

# It warns at each import that there is no Core ML framework outside macOS; `readiness` tells that.
logging.getLogger("coremltools").setLevel(logging.ERROR)

from coremltools import proto  # noqa: E402
from coremltools.libmilstoragepython import _BlobStorageReader  # noqa: E402

__all__ = ["Constant", "Declared", "Feature", "Operation", "Program", "read_program"]

_MODEL = Path("Data", "com.apple.CoreML")
_SPEC = "model.mlmodel"
_INSIDE = "@model_path/"
_MAIN = "main"
_AGAIN = "Fetch the bundle again, or export it anew."

_BITS = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
_BLOB_NAMES = {"float16": "fp16", "float32": "float"}
_FEATURE_DTYPES = {"FLOAT16": "float16", "FLOAT32": "float32", "DOUBLE": "float64", "INT32": "int32", "INT8": "int8"}


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value written into the program: `dtype` as MIL names it, where int4 lies in int8 and uint4 in uint8."""

    dtype: str
    value: NDArray[Any] | str | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Declared:
    """A tensor as the program declares it: dtype as MIL names it, None for sizes that are known only when it runs."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True)
class Feature:
    """An input or output as Core ML shows it to apps: for each axis the smallest and the largest size, None: any."""

    name: str
    dtype: str
    ranges: tuple[tuple[int, int | None], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operator: each parameter is bound to names of earlier values or to constants."""

    kind: str
    inputs: Mapping[str, tuple[str | Constant, ...]]
    outputs: tuple[Declared, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """The function `main`: what is fed, what is kept between calls, what is answered, and the operators in order."""

    inputs: tuple[Feature, ...]
    states: tuple[Declared, ...]
    outputs: tuple[Feature, ...]
    answers: tuple[str, ...]
    operations: tuple[Operation, ...]


def read_program(package: Path) -> Program:
    """The program of a saved `.mlpackage`.

    Raises StageError where it cannot be read, UnsupportedError for another kind of Core ML model.
    """
    root = package / _MODEL
    model = proto.Model_pb2.Model()
    try:
        model.ParseFromString((root / _SPEC).read_bytes())
    except Exception as error:  # protobuf's DecodeError is no subclass of any built-in one
        raise StageError("session", f"cannot read {root / _SPEC}: {error}", hint=_AGAIN) from error
    if model.WhichOneof("Type") != "mlProgram" or _MAIN not in model.mlProgram.functions:
        raise UnsupportedError(f"{package} holds no ML Program", hint="Packages made by this toolkit do.")
    return _Reader(root).program(model)


class _Reader:
    """Turns messages into values; each file of weights is opened once."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._blobs: dict[str, Any] = {}

    def program(self, model: Any) -> Program:
        function = model.mlProgram.functions[_MAIN]
        block = function.block_specializations[function.opset]
        states = [item for item in function.inputs if item.type.WhichOneof("type") == "stateType"]
        return Program(
            inputs=tuple(_feature(item) for item in model.description.input),
            states=tuple(_declared(item.name, item.type.stateType.wrappedType) for item in states),
            outputs=tuple(_feature(item) for item in model.description.output),
            answers=tuple(block.outputs),
            operations=tuple(self._operation(item) for item in block.operations),
        )

    def _operation(self, message: Any) -> Operation:
        if message.blocks:
            raise UnsupportedError(
                f"operator '{message.type}' with blocks of its own", hint="Nothing here reads those."
            )
        inputs = {
            name: tuple(self._binding(each) for each in argument.arguments) for name, argument in message.inputs.items()
        }
        if message.type == "const":
            inputs["val"] = (self._constant(message.attributes["val"]),)
        return Operation(message.type, inputs, tuple(_declared(item.name, item.type) for item in message.outputs))

    def _binding(self, message: Any) -> str | Constant:
        return str(message.name) if message.WhichOneof("binding") == "name" else self._constant(message.value)

    def _constant(self, message: Any) -> Constant:
        declared = _declared("", message.type)
        if message.WhichOneof("value") == "blobFileValue":
            return Constant(declared.dtype, self._from_file(message.blobFileValue, declared))
        return _immediate(message.immediateValue.tensor, declared)

    def _from_file(self, message: Any, declared: Declared) -> NDArray[Any]:
        name = _BLOB_NAMES.get(declared.dtype, declared.dtype)
        try:
            read = getattr(self._blob(message.fileName), f"read_{name}_data")
            flat = np.asarray(read(message.offset))
            flat = flat.view(np.float16) if declared.dtype == "float16" else flat
            return flat.reshape(_fixed(declared))
        except (AttributeError, RuntimeError, ValueError) as error:
            message = f"a {declared.dtype} weight {list(declared.shape)} of {message.fileName}: {error}"
            raise StageError("session", message, hint=_AGAIN) from error

    def _blob(self, name: str) -> Any:
        if name not in self._blobs:
            path = self._root / relative_path(name.removeprefix(_INSIDE))
            self._blobs[name] = _BlobStorageReader(str(path))
        return self._blobs[name]


def _feature(message: Any) -> Feature:
    array = message.type.multiArrayType
    dtype = _FEATURE_DTYPES.get(proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name(array.dataType), "")
    if not dtype:
        raise UnsupportedError(f"'{message.name}' is no array of a known type", hint="Give tensors, not images.")
    ranges = [
        (size.lowerBound, size.upperBound if size.upperBound > 0 else None) for size in array.shapeRange.sizeRanges
    ]
    return Feature(message.name, dtype, tuple(ranges or [(size, size) for size in array.shape]))


def _declared(name: str, message: Any) -> Declared:
    if message.WhichOneof("type") != "tensorType":
        raise UnsupportedError(f"'{name}' is a {message.WhichOneof('type')}", hint="Only tensors are read.")
    tensor = message.tensorType
    sizes = [
        int(each.constant.size) if each.WhichOneof("dimension") == "constant" else None for each in tensor.dimensions
    ]
    return Declared(name, proto.MIL_pb2.DataType.Name(tensor.dataType).lower(), tuple(sizes))


def _immediate(message: Any, declared: Declared) -> Constant:
    kind = message.WhichOneof("value")
    values = getattr(message, kind).values
    if kind == "strings":
        return Constant("string", str(values[0]) if not declared.shape else tuple(map(str, values)))
    if kind != "bytes":
        return Constant(declared.dtype, np.array(list(values), _numpy(declared.dtype)).reshape(_fixed(declared)))
    if declared.dtype in _BITS:
        return Constant(declared.dtype, _unpacked(values, declared))
    return Constant(declared.dtype, np.frombuffer(values, _numpy(declared.dtype)).reshape(_fixed(declared)))


def _unpacked(packed: bytes, declared: Declared) -> NDArray[Any]:
    """Elements of less than a byte, the first in the lowest bits."""
    bits, shape = _BITS[declared.dtype], _fixed(declared)
    count = int(np.prod(shape, dtype=np.int64))
    ones = np.unpackbits(np.frombuffer(packed, np.uint8), count=count * bits, bitorder="little")
    values: NDArray[Any] = (ones.reshape(-1, bits) << np.arange(bits, dtype=np.uint8)).sum(axis=1, dtype=np.int16)
    if not declared.dtype.startswith("u"):
        values -= (values >> (bits - 1)) << bits
    return values.astype(_numpy(declared.dtype)).reshape(shape)


def _numpy(dtype: str) -> np.dtype[Any]:
    return np.dtype({**dict.fromkeys(_BITS, "uint8"), "int4": "int8"}.get(dtype, dtype))


def _fixed(declared: Declared) -> Sequence[int]:
    if None in declared.shape:
        raise ValueError(f"a constant of unknown shape {declared.shape}")
    return [int(size) for size in declared.shape if size is not None]
