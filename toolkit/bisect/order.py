"""Which layers to suspect first: what rounding each one's weight alone does to the model's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from quantize.arithmetic import channel_absmax, symmetric_scale
from quantize.calibration import fetch, open_session, weights_folder
from quantize.linears import Linear, find_linears
from quantize.nodes import lift_constants, map_tensor, module_path
from toolkit.types import Tensors

__all__ = ["by_weights", "quantized_modules"]

Array = NDArray[Any]
_QUANTIZERS = frozenset({"DequantizeLinear", "QuantizeLinear"})
_ON_THE_WAY = frozenset({"Cast", "Reshape", "Transpose"})


def quantized_modules(path: Path) -> list[str]:
    """The modules that read a weight stored in fewer bits, in the order of the graph."""
    found: dict[str, None] = {}
    graph = ir.load(path).graph
    for node in graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None and node.inputs[0].is_initializer():
            found |= dict.fromkeys(_readers(node))
    order = {module_path(node): index for index, node in reversed(list(enumerate(graph)))}
    return sorted(found, key=lambda module: order[module])


def by_weights(path: Path, modules: Sequence[str], batch: Tensors, levels: int) -> list[str]:
    """The modules, worst first: the outputs' noise-to-signal ratio with one Linear's weight rounded, fp32 otherwise.

    Rounding is to the nearest of `levels` steps on either side of 0 a channel, which is not all that a scheme does:
    this is where to look first, no more. One session serves all, its weights being inputs. Modules of which the graph
    shows no Linear come last. Raises StageError where the graph cannot run.
    """
    model = ir.load(path)
    lift_constants(model)
    linears = [linear for linear in find_linears(model.graph) if linear.module in modules]
    weights = {str(linear.weight.name): map_tensor(_tensor(linear), np.array) for linear in linears}
    session = _session(model, weights)
    names = [value.name for value in session.get_outputs()]
    feeds = {value.name: batch[value.name] for value in session.get_inputs() if value.name not in weights}
    reference = fetch(session, names, {**feeds, **weights}, 0)
    noise = dict.fromkeys(modules, -1.0)
    for linear in linears:
        name = str(linear.weight.name)
        rounded = {**weights, name: _rounded(weights[name], linear.axis, levels)}
        moved = _noise(reference, fetch(session, names, {**feeds, **rounded}, 0))
        noise[linear.module] = max(noise[linear.module], moved)
    return sorted(modules, key=lambda module: -noise[module])


def _readers(node: ir.Node) -> list[str]:
    found: list[str] = []
    for use in node.outputs[0].uses():
        if use.node.op_type in _ON_THE_WAY:
            found += _readers(use.node)
        elif use.node.op_type not in _QUANTIZERS:
            found.append(module_path(use.node))
    return found


def _tensor(linear: Linear) -> ir.TensorProtocol:
    if linear.weight.const_value is None:
        raise ValueError(f"{linear.weight.name} is not a constant")
    return linear.weight.const_value


def _session(model: ir.Model, weights: Mapping[str, Array]) -> ort.InferenceSession:
    proto = ir.to_proto(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in weights]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in weights.items()
    )
    return open_session(proto, weights_folder(model))


def _rounded(weight: Array, axis: int, levels: int) -> Array:
    shape = [-1 if index == axis else 1 for index in range(weight.ndim)]
    scale = symmetric_scale(channel_absmax(weight, axis), levels).reshape(shape)
    return np.asarray(np.rint(weight / scale) * scale, np.float32)


def _noise(reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> float:
    """The largest noise-to-signal power ratio of all outputs."""
    ratios = [
        float(np.square(candidate[name] - array, dtype=np.float64).sum() / np.square(array, dtype=np.float64).sum())
        for name, array in reference.items()
        if array.any()
    ]
    return max(ratios, default=0.0)
