"""One int8 transformer block, small enough to read, and what the TensorRT tests build from it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from exporters.fused_attention import attach_function
from toolkit.types import Dim, LoweredGraph, ModelSpec, QuantizedGraph, TensorSpec

Tested = TypeVar("Tested")

HIDDEN, HEADS, SIZE = 32, 2, 16
SPEC = ModelSpec(
    name="block",
    family="tiny",
    kind="module",
    task="raw",
    source="tiny",
    architecture="Block",
    inputs=(
        TensorSpec("x", "float32", ("batch", "sequence", HIDDEN)),
        TensorSpec("mask", "bool", ("batch", 1, 1, "sequence")),
    ),
    outputs=(TensorSpec("y", "float32", ("batch", "sequence", HIDDEN)),),
    dims={"batch": Dim(1, 2, 4), "sequence": Dim(1, 16, 32)},
)
FEEDS: dict[str, NDArray[Any]] = {
    "x": np.random.default_rng(0).standard_normal((2, 6, HIDDEN)).astype(np.float32),
    "mask": (np.arange(6) < np.array([[6], [4]]))[:, None, None, :],
}


class Block:
    """Writes LayerNorm, queries, keys and values, attention, projection and residual; Linears in int8 where asked."""

    def __init__(self, *, int8: bool, gain: float = 1.0, weight_scale: float = 0.2) -> None:
        self.random, self.int8, self.weight_scale = np.random.default_rng(1), int8, weight_scale
        self.tape, self.initializers = ir.tape.Tape(), []
        shape: list[int | str] = ["batch", "sequence", HIDDEN]
        self.x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
        self.mask = ir.Value(
            name="mask", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape(["batch", 1, 1, "sequence"])
        )
        normal = self.op("LayerNormalization", self.x, self.array(np.full(HIDDEN, gain, np.float32)), axis=-1)
        q, k, v = (self.heads(self.linear(normal)) for _ in range(3))
        mixed = self.op("Transpose", self.attend(q, k, v), perm=[0, 2, 1, 3])
        flat = self.op("Reshape", mixed, self.array(np.array([0, 0, HIDDEN])))
        self.y = self.op("Add", self.linear(flat), self.op("Mul", normal, self.array(np.float32(0.5))))
        self.y.name, self.y.shape = "y", ir.Shape(shape)

    def model(self) -> ir.Model:
        graph = ir.Graph(
            [self.x, self.mask],
            [self.y],
            nodes=self.tape.nodes,
            initializers=self.initializers,
            opset_imports={"": 23, "toolkit": 1},
            name="block",
        )
        model = ir.Model(graph, ir_version=10)
        attach_function(model)
        return model

    def op(
        self, op_type: str, *inputs: ir.Value, dtype: ir.DataType = ir.DataType.FLOAT, **attributes: Any
    ) -> ir.Value:
        output = self.tape.op(op_type, list(inputs), attributes)
        output.type = ir.TensorType(dtype)
        output.name = f"{op_type}_{len(self.tape.nodes)}"
        return output

    def array(self, array: NDArray[Any] | np.generic) -> ir.Value:
        name = f"constant_{len(self.initializers)}"
        tensor = ir.tensor(np.asarray(array), name=name)
        value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape))
        self.initializers.append(value)
        return value

    def linear(self, x: ir.Value) -> ir.Value:
        weight = self.random.standard_normal((HIDDEN, HIDDEN)).astype(np.float32) * self.weight_scale
        bias = self.array(self.random.standard_normal(HIDDEN).astype(np.float32))
        if not self.int8:
            return self.op("Add", self.op("MatMul", x, self.array(weight)), bias)
        scale, zero = self.array(np.float32(0.05)), self.array(np.int8(0))
        inside = self.op("QuantizeLinear", x, scale, zero, dtype=ir.DataType.INT8)
        x = self.op("DequantizeLinear", inside, scale, zero)
        scales = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
        stored = self.array(np.rint(weight / scales).astype(np.int8))
        read = self.op("DequantizeLinear", stored, self.array(scales), self.array(np.zeros(HIDDEN, np.int8)), axis=1)
        return self.op("Add", self.op("MatMul", x, read), bias)

    def heads(self, x: ir.Value) -> ir.Value:
        apart = self.op("Reshape", x, self.array(np.array([0, 0, HEADS, SIZE])))
        turned = self.op("Transpose", apart, perm=[0, 2, 1, 3])
        turned.shape = ir.Shape(["batch", HEADS, "sequence", SIZE])
        return turned

    def attend(self, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        neutral = {"is_causal": 0, "softcap": 0.0, "left_window_size": -1, "right_window_size": -1}
        output = self.tape.op("FusedAttention", [q, k, v, self.mask], {"scale": 0.25, **neutral}, domain="toolkit")
        output.name, output.type, output.shape = "attended", ir.TensorType(ir.DataType.FLOAT), q.shape
        return output


def quantized(folder: Path, scheme: str) -> QuantizedGraph:
    """The block, written as the quantize stage would write it."""
    path = folder / "source.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(Block(int8=scheme == "int8").model(), path)
    return QuantizedGraph(path, SPEC, (), scheme)


def as_lowered(path: Path, spec: ModelSpec = SPEC, scheme: str = "fp32") -> LoweredGraph:
    """A file that is taken to be lowered, whatever it holds."""
    return LoweredGraph(path, spec, (), scheme, "trt")


def rtx(tested: Tested) -> Tested:
    """Marks a test, or a class of them, that compiles with TensorRT-RTX."""
    absent = importlib.util.find_spec("tensorrt_rtx") is None
    skip = pytest.mark.skipif(absent, reason="tensorrt_rtx is not installed (pip install 'tensorrt-rtx-cu13>=1.7')")
    return pytest.mark.requires_rtx(skip(tested))
