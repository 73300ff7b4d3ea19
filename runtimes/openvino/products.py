"""In which number types products are asked for by a graph, and in which OpenVINO really runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from toolkit.errors import StageError

__all__ = ["Kernels", "demand", "kernels_of", "quantized_products"]

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_LAYERS = ("FullyConnected", "MatMul", "Convolution")
_SHORT = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}


@dataclass(frozen=True, slots=True)
class Kernels:
    """The compiled model's products with a weight, by what they multiply, as `int8` or `fp32 x int8`.

    `attentions` counts kernels that compute a softmax together with the products around it.
    """

    products: Mapping[str, int]
    attentions: int

    @property
    def said(self) -> str:
        """`25 of 26 products int8, 1 of 26 products fp32`."""
        whole = sum(self.products.values())
        return ", ".join(f"{count} of {whole} products {form}" for form, count in self.products.items()) or "no product"


def quantized_products(path: Path) -> list[str]:
    """The names of those products of the graph file whose operands are both dequantized, one of them a constant."""
    found = []
    for node in ir.traversal.RecursiveGraphIterator(ir.load(path).graph):
        if node.op_type in _PRODUCTS and all(_dequantized(value) for value in node.inputs[:2]):
            weight = node.inputs[1].producer().inputs[0]
            found += [str(node.name)] if ir.convenience.get_const_tensor(weight) is not None else []
    return found


def kernels_of(compiled: Any) -> Kernels:
    """Read the graph that the device executes, in which each node tells its layer and the types of its inputs."""
    products: Counter[str] = Counter()
    attentions = 0
    for node in compiled.get_runtime_model().get_ordered_ops():
        layer = _told(node, "layerType")
        attentions += layer == "ScaledDotProductAttention"
        attentions += layer == "Subgraph" and "Softmax" in _told(node, "originalLayersNames")
        if layer in _LAYERS and _constant(node.input_value(1)):
            products[_form(node)] += 1
    return Kernels(dict(products.most_common()), attentions)


def demand(wanted: list[str], kernels: Kernels) -> None:
    """Raise StageError unless as many products run in int8 as the graph quantized."""
    int8 = kernels.products.get("int8", 0)
    if int8 < len(wanted):
        raise StageError(
            "build",
            f"OpenVINO runs {int8} products in int8, of {len(wanted)} that are quantized ({kernels.said})",
            hint="`toolkit inspect` shows the graph; leave out what has no int8 kernel with --recipe exclude=PATTERN.",
        )


def _dequantized(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and node.op_type == "DequantizeLinear"


def _constant(output: Any) -> bool:
    """Whether the value is a weight; a view of one (OpenVINO transposes weights while compiling) counts too."""
    node = output.get_node()
    while _told(node, "layerType") in ("Transpose", "Reorder", "Reshape"):
        node = node.input_value(0).get_node()
    return _told(node, "layerType") == "Const"


def _told(node: Any, what: str) -> str:
    """A fact that the device tells of a node it executes."""
    return str(node.get_rt_info()[what].astype(str))


def _form(node: Any) -> str:
    left, right = (_short(node.input_value(index)) for index in range(2))
    return left if left == right else f"{left} x {right}"


def _short(output: Any) -> str:
    name = str(output.get_element_type().get_type_name())
    return _SHORT.get(name, name)
