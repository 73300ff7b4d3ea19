"""Types of tensors: what TensorRT has, where it has them, and on which architectures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from runtimes._tensorrt.preflight.finding import Finding

__all__ = ["architecture_findings", "dtype_findings", "uint8"]

_TYPES = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE,
        ir.DataType.INT64, ir.DataType.INT32, ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.BOOL, ir.DataType.INT4,
        ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E8M0, ir.DataType.FLOAT4E2M1,
    }
)  # fmt: skip
_SIGNED = {
    ir.DataType.UINT4: "write int4 weights with zero point 0",
    ir.DataType.INT16: "cast to int32",
    ir.DataType.UINT16: "cast to int32",
    ir.DataType.UINT32: "cast to int64",
    ir.DataType.UINT64: "cast to int64",
}
_ARCHITECTURE = {
    ir.DataType.BFLOAT16: 80,
    ir.DataType.INT4: 80,
    ir.DataType.FLOAT8E4M3FN: 89,
    ir.DataType.FLOAT4E2M1: 120,
}


def dtype_findings(model: ir.Model) -> Iterator[tuple[str, Finding]]:
    """Each tensor of a type that TensorRT does not have, with what it is called."""
    ends = {*model.graph.inputs, *model.graph.outputs}
    for value in _values(model):
        name = f"input or output '{value.name}'" if value in ends else f"tensor '{value.name}'"
        if value.dtype is None or value.dtype == ir.DataType.UNDEFINED:
            continue
        if value.dtype not in _TYPES:
            fix = _SIGNED.get(value.dtype, "use a type that TensorRT has")
            yield name, Finding(f"{value.dtype.name} is not a type of TensorRT's", fix)
        elif value.dtype == ir.DataType.DOUBLE and value in ends:
            yield name, Finding("DOUBLE is not a type of TensorRT's: it is read as FLOAT", "give the model float32")
        elif value.dtype == ir.DataType.DOUBLE:
            yield name, Finding("DOUBLE is computed as FLOAT", "give the module float32", fatal=False)


def architecture_findings(model: ir.Model, architectures: Sequence[str]) -> Iterator[tuple[str, Finding]]:
    """The first tensor of each type that one of the architectures, as `sm80`, does not have."""
    numbers = sorted(int(name.removeprefix("sm")) for name in architectures)
    seen = set()
    for value in _values(model):
        least = _ARCHITECTURE.get(value.dtype) if value.dtype is not None else None
        if least is None or value.dtype in seen or not numbers or numbers[0] >= least:
            continue
        seen.add(value.dtype)
        problem = f"{value.dtype.name} needs SM{least} or later, not SM{numbers[0]}"
        yield f"tensor '{value.name}'", Finding(problem, f"compile with --arch sm{least}, or choose another scheme")


def uint8(node: ir.Node) -> Iterator[Finding]:
    """Bytes come in through a Cast and leave through one; nothing is computed with them."""
    if node.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant"):
        return
    fix = "cast bytes to int32 as they come in, and back as they leave"
    if any(output.dtype == ir.DataType.UINT8 and not output.is_graph_output() for output in node.outputs):
        yield Finding("UINT8 is refused between nodes", fix)
    elif node.op_type not in ("Cast", "Identity") and any(_is_fed_bytes(value) for value in node.inputs):
        yield Finding("UINT8 is taken by Cast only", fix)


def _is_fed_bytes(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.UINT8 and value.is_graph_input()


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from (value for value in graph.initializers.values() if not value.is_graph_input())
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs
