"""A graph with our Linears as the stock operators that they stand for, each named as the PyTorch module it was."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.float_function import FLOAT_LINEAR
from runtimes._onnxruntime.kernels.int8_function import INT8_LINEAR

__all__ = ["SCOPES", "part_key", "with_linears_expanded"]

SCOPES = "pkg.torch.onnx.name_scopes"
_OWN = (FLOAT_LINEAR, INT8_LINEAR)
_PRODUCTS = frozenset({"Gemm", "MatMulIntegerToFloat"})


def part_key(part: str) -> str:
    """Where an operator's metadata keeps the scopes of a part: `linear0` to `linear2`, `activation`,
    `residual`, `result` for what rounds y."""
    return f"toolkit.scopes.{part}"


def with_linears_expanded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers up to rounding, with a tensor for every Linear and activation that the operators keep inside."""
    functions = {function.name: function for function in proto.functions if function.domain == DOMAIN}
    if not any(map(_is_own, proto.graph.node)):
        return proto
    nodes = [made for node in proto.graph.node for made in _expanded(node, functions)]
    expanded = onnx.ModelProto()
    expanded.CopyFrom(proto)
    del expanded.graph.node[:]
    expanded.graph.node.extend(nodes)
    return expanded


def _expanded(node: onnx.NodeProto, functions: dict[str, onnx.FunctionProto]) -> Iterator[onnx.NodeProto]:
    if not _is_own(node):
        yield node
        return
    function = functions[node.op_type]
    names = dict(zip((*function.input, *function.output), (*node.input, *node.output), strict=True))
    scopes = {entry.key: entry.value for entry in node.metadata_props}
    linears = 0
    for inner in function.node:
        made = onnx.NodeProto()
        made.CopyFrom(inner)
        made.name = f"{node.name}/{inner.output[0]}"
        made.input[:] = [names.get(name, f"{node.name}/{name}" if name else "") for name in inner.input]
        made.output[:] = [names.get(name, f"{node.name}/{name}") for name in inner.output]
        part = _part(inner, linears)
        linears += inner.op_type in _PRODUCTS
        if own := scopes.get(part_key(part)):
            made.metadata_props.add(key=SCOPES, value=own)
        yield made


def _is_own(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type.startswith(_OWN))


def _part(inner: onnx.NodeProto, linears: int) -> str:
    if inner.op_type in _PRODUCTS:
        return f"linear{linears}"
    if inner.op_type == "QuantizeLinear" or any(name.endswith("_multiplier") for name in inner.input):
        return "result" if linears else "linear0"
    return "residual" if inner.op_type == "Sum" else "activation"
