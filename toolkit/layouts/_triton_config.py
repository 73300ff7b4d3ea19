"""Triton's `ModelConfig` (model_config.proto) as the text that its `config.pbtxt` holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from toolkit.errors import UnsupportedError
from toolkit.types import Dim, TensorSpec

__all__ = ["Word", "batch_limit", "entries", "tensors", "text_of"]

_TYPES = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
    "bfloat16": "BF16", "string": "STRING",
}  # fmt: skip


class Word(str):
    """A value that stands without quotes, as the name of an enum's member."""

    __slots__ = ()


def text_of(fields: Mapping[str, Any]) -> str:
    """A message in protobuf's text format: a mapping is a message, a sequence a repeated field; None is left out."""
    return "".join(f"{line}\n" for line in _lines(fields))


def entries(pairs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A protobuf map: its entries as messages of `key` and `value`."""
    return [{"key": key, "value": value} for key, value in pairs.items()]


def batch_limit(specs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> int:
    """The most rows that Triton may put into one run, 0 where the tensors have no batch axis that is its own.

    Triton batches along the first axis of every input and output alike, and feeds single rows too.
    """
    firsts = {spec.shape[0] if spec.shape else None for spec in specs}
    first = next(iter(firsts))
    if len(firsts) != 1 or not isinstance(first, str) or first not in dims or dims[first].min > 1:
        return 0
    inner = {dim for spec in specs for dim in spec.shape[1:]}
    return 0 if first in inner else dims[first].max


def tensors(specs: Sequence[TensorSpec], *, batched: bool) -> list[dict[str, Any]]:
    """Inputs or outputs: dims less the batch axis where Triton batches, -1 where a size is not fixed.

    Raises UnsupportedError for a dtype that Triton does not have.
    """
    return [_tensor(spec, spec.shape[1:] if batched else spec.shape) for spec in specs]


def _tensor(spec: TensorSpec, shape: Sequence[int | str]) -> dict[str, Any]:
    if spec.dtype not in _TYPES:
        raise UnsupportedError(
            f"'{spec.name}' is {spec.dtype}, which Triton does not have", hint=f"It has: {', '.join(_TYPES)}."
        )
    held = {"name": spec.name, "data_type": Word(f"TYPE_{_TYPES[spec.dtype]}")}
    if not shape:
        # Triton takes no empty dims: a scalar is declared as one number and reshaped.
        return {**held, "dims": [1], "reshape": {"shape": []}}
    return {**held, "dims": [dim if isinstance(dim, int) and dim > 0 else -1 for dim in shape]}


def _lines(fields: Mapping[str, Any]) -> Iterator[str]:
    for name, value in fields.items():
        if isinstance(value, Mapping):
            yield f"{name} {{"
            yield from (f"  {line}" for line in _lines(value))
            yield "}"
        elif isinstance(value, Sequence) and not isinstance(value, str):
            for item in value:
                yield from _lines({name: item})
        elif value is not None:
            yield f"{name}: {_scalar(value)}"


def _scalar(value: str | int) -> str:
    quoted = isinstance(value, str) and not isinstance(value, Word)
    # JSON's escapes are among those of protobuf's text format.
    return json.dumps(value, ensure_ascii=False) if quoted else str(value)
