"""Whether this processor's fast u8 x s8 kernels saturate, found out by multiplying."""

from __future__ import annotations

from collections.abc import Set
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

__all__ = ["int8_products_saturate", "quantizes_activations"]

_DEPTH = 64
_ROUNDED = frozenset(
    {"DynamicQuantizeLinear", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QuantizeLinear"}
)

_OWN = "Int8Linear"
"""How our own operators begin; without the kernels their functions hold such products."""


@cache
def int8_products_saturate() -> bool:
    """True where ONNX Runtime's u8 x s8 product clips at 16 bits: x86 processors without VNNI.

    Those sum pairs of products with an instruction that saturates at 32767, so 255·127 + 255·127 comes out wrong.
    ONNX Runtime's `session.x64quantprecision` then turns the weights into u8 at load: exact, and slower.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(_probe().SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = np.full((2, _DEPTH), 255, np.uint8)
    (product,) = session.run(None, {"a": rows})
    return bool((product != 255 * 127 * _DEPTH).any())


def quantizes_activations(called: Set[tuple[str, str]]) -> bool:
    """Whether a graph with these operators, of domain and type, has integer products.

    One whose weights alone are integers must do without the option above: ONNX Runtime 1.32 fails at load ("Attempt to
    replace the existing tensor") where two nodes read such a weight.
    """
    return any(op_type in _ROUNDED or op_type.startswith(_OWN) for _, op_type in called)


def _probe() -> onnx.ModelProto:
    weights = helper.make_tensor("b", TensorProto.INT8, [_DEPTH, 16], [127] * (_DEPTH * 16))
    graph = helper.make_graph(
        [helper.make_node("MatMulInteger", ["a", "b"], ["y"])],
        "saturation",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, [2, _DEPTH])],
        [helper.make_tensor_value_info("y", TensorProto.INT32, [2, 16])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
