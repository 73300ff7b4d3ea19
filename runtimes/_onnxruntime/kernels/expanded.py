"""A graph with our Linears as the stock operators that they stand for, each named as the PyTorch module it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.float_function import FLOAT_LINEAR
from runtimes._onnxruntime.kernels.int8_function import INT8_LINEAR

__all__ = ["SCOPES", "scopes_by_part", "with_linears_expanded"]

SCOPES = "pkg.torch.onnx.name_scopes"
_OWN = (FLOAT_LINEAR, INT8_LINEAR)
_PRODUCTS = frozenset({"Gemm", "MatMulIntegerToFloat"})


def scopes_by_part(parts: Mapping[str, ir.Node]) -> dict[str, str]:
    """An operator's metadata on which PyTorch modules its parts are from, for `with_linears_expanded`.

    Parts are `linear0` to `linear2`, `activation`, `residual`, and `result` for what rounds y.
    """
    found = {_key(part): node.metadata_props.get(SCOPES, "") for part, node in parts.items()}
    return {key: scopes for key, scopes in found.items() if scopes}


def with_linears_expanded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same numbers up to rounding, with a tensor for every Linear and activation that the operators keep inside."""
    if not any(map(_is_own, proto.graph.node)):
        return proto
    functions = {function.name: function for function in proto.functions if function.domain == DOMAIN}
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
        if own := scopes.get(_key(part)):
            made.metadata_props.add(key=SCOPES, value=own)
        yield made


def _key(part: str) -> str:
    return f"toolkit.scopes.{part}"


def _is_own(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type.startswith(_OWN))


def _part(inner: onnx.NodeProto, linears: int) -> str:
    if inner.op_type in _PRODUCTS:
        return f"linear{linears}"
    if inner.op_type == "QuantizeLinear" or any(name.endswith("_multiplier") for name in inner.input):
        return "result" if linears else "linear0"
    return "residual" if inner.op_type == "Sum" else "activation"
