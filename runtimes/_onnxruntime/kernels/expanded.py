"""A graph with our Linears as the stock operators that they stand for, each named as the PyTorch module it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx
import onnx_ir as ir

from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.float_function import FLOAT_LINEAR
from runtimes._onnxruntime.kernels.function import PART, ROUNDING
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
    """What each Linear does of its own; the rounding of x, once for each of them, so that it alone enters them."""
    if not _is_own(node):
        yield node
        return
    function = functions[node.op_type]
    scopes = {entry.key: entry.value for entry in node.metadata_props}
    linears = sum(inner.op_type in _PRODUCTS for inner in function.node)
    names = [_names(node, function, linear) for linear in range(linears)]
    for inner in function.node:
        part = _part(inner)
        of = range(linears) if part == ROUNDING else [int(part[-1]) if part.startswith("linear") else 0]
        for linear in of:
            made = onnx.NodeProto()
            made.CopyFrom(inner)
            del made.metadata_props[:]
            made.input[:] = [names[linear][name] if name else "" for name in inner.input]
            made.output[:] = [names[linear][name] for name in inner.output]
            made.name = f"{made.output[0]}/node"
            if own := scopes.get(_key(f"linear{linear}" if part == ROUNDING else part)):
                made.metadata_props.add(key=SCOPES, value=own)
            yield made


def _names(node: onnx.NodeProto, function: onnx.FunctionProto, linear: int) -> dict[str, str]:
    """What the function's values are called outside, as one of its Linears sees them."""
    names = dict(zip((*function.input, *function.output), (*node.input, *node.output), strict=True))
    for inner in function.node:
        own = f".{linear}" if linear and _part(inner) == ROUNDING else ""
        names |= {name: f"{node.name}/{name}{own}" for name in inner.output if name not in names}
    return names


def _key(part: str) -> str:
    return f"toolkit.scopes.{part}"


def _is_own(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type.startswith(_OWN))


def _part(inner: onnx.NodeProto) -> str:
    """As the function notes it; else by what kind of node it is."""
    noted = next((entry.value for entry in inner.metadata_props if entry.key == PART), "")
    if noted or inner.op_type in _PRODUCTS:
        return noted or "linear0"
    if inner.op_type == "QuantizeLinear" or any(name.endswith("_multiplier") for name in inner.input):
        return "result"
    return "residual" if inner.op_type == "Sum" else "activation"
