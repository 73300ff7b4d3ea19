"""What an ONNX file holds, read without its weights: inputs, operators, fused and quantized nodes, sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from toolkit.errors import UsageError
from toolkit.types import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DataFile", "Inspection", "inspect_graph", "load_graph"]

_MICROSOFT = "com.microsoft"
_ATTENTION = {
    ("toolkit", "FusedAttention"),
    ("", "Attention"),
    *((_MICROSOFT, name) for name in ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PagedAttention")),
    *(("toolkit.cpu", f"Attention{form}") for form in ("", "Masked", "Packed", "PackedMasked")),
}
_INTEGER_LINEARS = {
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    *(
        "BlockLinear",
        "BlockLinearOffset",
        "DynamicQuantizeMatMul",
        "MatMulBnb4",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QAttention",
        "QGemm",
    ),
}
_OWN_INT8, _OWN_FLOAT = "Int8Linear", "FloatLinear"
_LINEARS = {"MatMul", "Gemm", "Conv", "FusedMatMul", "FusedGemm", "FusedConv"}
_PASSES_WEIGHT = {"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of external weights: the bytes on disk, and whether it holds all that the graph points at."""

    name: str
    bytes: int
    state: Literal["complete", "truncated", "missing"]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a graph holds. Counts include subgraphs and leave out the bodies of functions.

    `opsets` is domain to version, `operators` domain to operator to count; the ONNX domain is `ai.onnx`.
    `functions` is the number of nodes in each function's body. `attention` counts fused attention nodes.
    `linears` counts MatMul, Gemm and Conv with a constant weight and their integer forms; `quantized` those of
    them whose weight is quantized, by form. `weights` is bytes by dtype. Sizes are in bytes.
    """

    path: Path
    ir_version: int
    producer: str
    opsets: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, dict[str, int]]
    functions: dict[str, int]
    attention: dict[str, int]
    linears: int
    quantized: dict[str, int]
    weights: dict[str, int]
    graph_bytes: int
    data_files: tuple[DataFile, ...]


def inspect_graph(path: Path) -> Inspection:
    """Read the graph file only; raises UsageError where it is missing, truncated or not ONNX."""
    model = load_graph(path)
    nodes = list(model.graph.all_nodes())
    return Inspection(
        path=path,
        ir_version=model.ir_version,
        producer=f"{model.producer_name or ''} {model.producer_version or ''}".strip(),
        opsets={_domain(domain): version for domain, version in sorted(model.opset_imports.items())},
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
        operators=_operators(nodes),
        functions={f"{key[0]}::{key[1]}": len(function) for key, function in sorted(model.functions.items())},
        attention=_counted(_name(node) for node in nodes if (node.domain, node.op_type) in _ATTENTION),
        linears=sum(_products(node) for node in nodes if _is_linear(node)),
        quantized=_counted(form for node in nodes if (form := _quantized_form(node)) for _ in range(_products(node))),
        weights=_weights(model),
        graph_bytes=path.stat().st_size,
        data_files=_data_files(model, path.parent),
    )


def load_graph(path: Path) -> ir.Model:
    """The `onnx_ir.Model`, its weights left on disk. Raises UsageError for a file that is no whole ONNX model."""
    import onnx_ir as ir
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise UsageError(f"no such file: {path}", hint="Give a bundle's folder or an .onnx file.")
    try:
        model = ir.load(path, format="protobuf")
    except DecodeError as error:
        raise _not_onnx(path) from error
    except (ir.serde.SerdeError, ValueError, TypeError) as error:
        reason = error.__cause__ or error
        raise UsageError(f"{path} is not a valid ONNX graph: {reason}", hint="Export it again.") from error
    if not model.ir_version or not (len(model.graph) or model.graph.outputs):
        raise _not_onnx(path)
    return model


def _not_onnx(path: Path) -> UsageError:
    return UsageError(
        f"{path} is not an ONNX model, or is truncated ({path.stat().st_size} bytes)",
        hint="Give an .onnx file or a bundle's folder; copy or export it again if a download was cut short.",
    )


def _domain(domain: str) -> str:
    return domain or "ai.onnx"


def _name(node: ir.Node) -> str:
    return f"{_domain(node.domain)}::{node.op_type}"


def _counted(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


def _operators(nodes: Iterable[ir.Node]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for node in nodes:
        counts.setdefault(_domain(node.domain), Counter())[node.op_type] += 1
    return {domain: dict(counter.most_common()) for domain, counter in sorted(counts.items())}


def _spec(value: ir.Value) -> TensorSpec:
    dims = value.shape or ()
    shape = tuple(dim if isinstance(dim, int) else str(dim.value or "?") for dim in dims)
    return TensorSpec(value.name or "", _dtype(value.dtype), shape)


def _dtype(dtype: ir.DataType | None) -> str:
    if dtype is None:
        return "unknown"
    try:
        return str(dtype.numpy().name)
    except TypeError:
        return str(dtype.name).lower()


def _is_linear(node: ir.Node) -> bool:
    product = node.op_type in _LINEARS or node.op_type.startswith(_OWN_FLOAT)
    return _is_integer_linear(node) or (product and any(_is_weight(value) for value in node.inputs[:2]))


def _products(node: ir.Node) -> int:
    """How many Linears a node stands for: query, key and value have one operator between them."""
    return 3 if node.op_type.startswith(f"{_OWN_INT8}Qkv") else 1


def _is_integer_linear(node: ir.Node) -> bool:
    return node.op_type in _INTEGER_LINEARS or node.op_type.startswith(_OWN_INT8)


def _is_weight(value: ir.Value | None) -> bool:
    return any(source is not None and _is_constant(source) for source, _ in _upstream(value))


def _is_constant(value: ir.Value) -> bool:
    producer = value.producer()
    return value.is_initializer() or (producer is not None and producer.op_type == "Constant")


def _upstream(value: ir.Value | None) -> Iterator[tuple[ir.Value | None, ir.Node | None]]:
    """The value, then what it was reshaped, cast or dequantized from, each with the node that made it."""
    while value is not None:
        node = value.producer()
        yield value, node
        if node is None or node.op_type not in _PASSES_WEIGHT | {"DequantizeLinear"}:
            return
        value = node.inputs[0]


def _dequantized(value: ir.Value | None) -> bool:
    return any(node is not None and node.op_type == "DequantizeLinear" for _, node in _upstream(value))


def _quantized_form(node: ir.Node) -> str:
    """Empty for a Linear in floating point and for whatever is not a Linear."""
    if _is_integer_linear(node):
        return _name(node)
    if not _is_linear(node):
        return ""
    # A MatMul may have its weight on either side; what is quantized on both sides is integer arithmetic.
    sides = [_dequantized(value) for value in node.inputs[:2]]
    if all(sides):
        return f"{node.op_type} between Q/DQ"
    weights = [_dequantized(value) for value in node.inputs[:2] if _is_weight(value)]
    return f"{node.op_type} weight-only" if any(weights) else ""


def _weights(model: ir.Model) -> dict[str, int]:
    sizes: Counter[str] = Counter()
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                sizes[_dtype(value.const_value.dtype)] += int(value.const_value.nbytes)
    return dict(sizes.most_common())


def _data_files(model: ir.Model, folder: Path) -> tuple[DataFile, ...]:
    ends: dict[str, int] = {}
    for tensor in _external(model):
        end = (tensor.offset or 0) + (tensor.length or int(tensor.nbytes))
        ends[str(tensor.location)] = max(end, ends.get(str(tensor.location), 0))
    return tuple(_data_file(folder, name, end) for name, end in sorted(ends.items()))


def _external(model: ir.Model) -> Iterator[Any]:
    import onnx_ir as ir

    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value


def _data_file(folder: Path, name: str, end: int) -> DataFile:
    path = folder / name
    if not path.is_file():
        return DataFile(name, 0, "missing")
    size = path.stat().st_size
    return DataFile(name, size, "complete" if size >= end else "truncated")
