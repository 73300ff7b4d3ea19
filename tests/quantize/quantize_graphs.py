"""Tiny canonical graphs built node by node, for tests of the quantize stage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray

from exporters.fused_attention.function import attach_function
from toolkit.types import Calibration, Dim, ExportedGraph, ModelSpec, TensorSpec

WIDTH, HEADS, TOKENS = 32, 4, 16
OFF = {"is_causal": 0, "softcap": 0.0, "left_window_size": -1, "right_window_size": -1}

SPEC = ModelSpec(
    name="tiny",
    family="test",
    kind="vision",
    task="raw",
    source="test:tiny",
    architecture="Tiny",
    inputs=(TensorSpec("image", "float32", ("batch", 3, 16, 16)),),
    outputs=(TensorSpec("logits", "float32", ("batch", 10)),),
    dims={"batch": Dim(1, 2, 8)},
)


class Builder:
    """Adds nodes and weights to a graph under construction; each method answers the new value."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[ir.Node] = []
        self.weights: dict[str, ir.Value] = {}

    def weight(self, name: str, array: NDArray[Any]) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
        self.weights[name] = value
        return value

    def random(self, name: str, *shape: int, scale: float = 0.15) -> ir.Value:
        return self.weight(name, (self.rng.normal(size=shape) * scale).astype(np.float32))

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        module: str = "",
        domain: str = "",
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        node = ir.node(op_type, inputs=list(inputs), attributes=attributes, domain=domain)
        node.name = f"node_{len(self.nodes)}"
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", module])
        node.outputs[0].name = f"{op_type.lower()}_{len(self.nodes)}"
        node.outputs[0].dtype = dtype
        self.nodes.append(node)
        return node.outputs[0]

    def linear(self, x: ir.Value, module: str, fan_in: int, fan_out: int) -> ir.Value:
        product = self.op("MatMul", x, self.random(f"{module}.weight", fan_in, fan_out), module=module)
        return self.op("Add", product, self.random(f"{module}.bias", fan_out), module=module)

    def layer_norm(self, x: ir.Value, module: str) -> ir.Value:
        gain = self.weight(f"{module}.weight", np.ones(WIDTH, np.float32))
        bias = self.weight(f"{module}.bias", np.zeros(WIDTH, np.float32))
        return self.op("LayerNormalization", x, gain, bias, module=module, axis=-1, epsilon=1e-12)

    def heads(self, x: ir.Value) -> ir.Value:
        name = "to_heads"
        shape = self.weights.get(name) or self.weight(name, np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3])

    def attention(self, x: ir.Value, module: str, mask: ir.Value | None = None) -> ir.Value:
        q, k, v = (self.heads(self.linear(x, f"{module}.{name}_proj", WIDTH, WIDTH)) for name in "qkv")
        inputs = [q, k, v] if mask is None else [q, k, v, mask]
        scale = (WIDTH // HEADS) ** -0.5
        y = self.op("FusedAttention", *inputs, module=module, domain="toolkit", scale=scale, **OFF)
        shape = self.weights.get("to_width") or self.weight("to_width", np.array([0, 0, WIDTH], np.int64))
        merged = self.op("Reshape", self.op("Transpose", y, perm=[0, 2, 1, 3]), shape)
        return self.linear(merged, f"{module}.out_proj", WIDTH, WIDTH)

    def model(self, inputs: list[ir.Value], outputs: dict[str, ir.Value], **shapes: list[int | str]) -> ir.Model:
        for name, value in outputs.items():
            value.name, value.shape = name, ir.Shape(shapes[name]) if name in shapes else None
        graph = ir.Graph(
            inputs,
            list(outputs.values()),
            nodes=self.nodes,
            initializers=list(self.weights.values()),
            opset_imports={"": 23, "toolkit": 1},
            name="tiny",
        )
        model = ir.Model(graph, ir_version=10)
        attach_function(model)
        return model


def graph_input(name: str, shape: list[int | str], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape))


def vision_model(gain: float = 1.0) -> ir.Model:
    """Patch Conv, one pre-norm block, mean pooling and a Gemm classifier; `gain` multiplies the MLP's weight."""
    b = Builder()
    image = graph_input("image", ["batch", 3, 16, 16])
    patches = b.op("Conv", image, b.random("patch.weight", WIDTH, 3, 4, 4), module="patch", strides=[4, 4])
    flat = b.op("Reshape", patches, b.weight("flat", np.array([0, WIDTH, TOKENS], np.int64)))
    x = b.op("Transpose", flat, perm=[0, 2, 1])
    x = b.op("Add", b.attention(b.layer_norm(x, "block.norm1"), "block.attention"), x)
    hidden = b.op("Gelu", b.linear(b.layer_norm(x, "block.norm2"), "block.fc1", WIDTH, 64), module="block.act")
    up = b.op("Mul", hidden, b.weight("gain", np.float32(gain)), module="block.gain")
    x = b.op("Add", b.linear(up, "block.fc2", 64, WIDTH), x, module="block")
    x = b.layer_norm(x, "norm")
    pooled = b.op("ReduceMean", x, b.weight("axes", np.array([1], np.int64)), module="pool", keepdims=0)
    head = b.random("classifier.weight", 10, WIDTH)
    logits = b.op("Gemm", pooled, head, b.random("classifier.bias", 10), module="classifier", transB=1)
    return b.model([image], {"logits": logits}, logits=["batch", 10])


def float_mask_model() -> ir.Model:
    """One attention whose float mask is finfo.min where a key is padding and -inf in the rows that `closed` names."""
    b = Builder(1)
    x = graph_input("x", ["batch", TOKENS, WIDTH])
    keep = graph_input("keep", ["batch", 1, 1, TOKENS], ir.DataType.BOOL)
    closed = graph_input("closed", ["batch", 1, TOKENS, 1], ir.DataType.BOOL)
    zero, lowest = b.weight("zero", np.float32(0)), b.weight("lowest", np.finfo(np.float32).min)
    infinite = b.weight("infinite", np.float32(-np.inf))
    padding = b.op("Where", keep, zero, lowest, module="mask")
    mask = b.op("Where", closed, infinite, padding, module="mask")
    return b.model([x, keep, closed], {"y": b.attention(x, "attention", mask)}, y=["batch", TOKENS, WIDTH])


def save_exported(model: ir.Model, folder: Path, spec: ModelSpec = SPEC) -> ExportedGraph:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "exported.onnx"
    ir.save(model, path, external_data="exported.onnx.data")
    return ExportedGraph(path, spec)


def images(count: int, scale: float = 1.0, seed: int = 5) -> Calibration:
    def batches() -> Iterator[dict[str, NDArray[Any]]]:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            yield {"image": (rng.normal(size=(2, 3, 16, 16)) * scale).astype(np.float32)}

    return Calibration(batches, count, "random images")


def run(model: ir.Model | Path, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    source = str(model) if isinstance(model, Path) else ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def sqnr(reference: NDArray[Any], candidate: NDArray[Any]) -> float:
    noise = np.square(reference.astype(np.float64) - candidate).sum()
    return float(10 * np.log10(np.square(reference.astype(np.float64)).sum() / noise))


def by_type(model: ir.Model, op_type: str) -> list[ir.Node]:
    return [node for node in model.graph if node.op_type == op_type]
