"""Graphs of a few nodes that say which PyTorch module each node came from, as canonical graphs do."""

from __future__ import annotations

import base64
import json

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SCOPES = "pkg.torch.onnx.name_scopes"
WIDTH = 16


def node(op_type, inputs, outputs, scope, domain="", **attributes):
    """A node of the module at `scope`, and of all modules around it."""
    made = helper.make_node(op_type, inputs, outputs, name=f"{outputs[0]}_node", domain=domain, **attributes)
    if scope:
        parts = scope.split(".")
        scopes = [".".join(parts[: end + 1]) for end in range(len(parts))]
        made.metadata_props.add(key=SCOPES, value=repr(scopes))
    return made


def array(shape, seed, scale=0.3):
    """Float32 numbers of a fixed seed."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def save(path, nodes, weights, *, inputs=("x",), outputs=("y",), metadata=None, opset=20):
    """Write the graph; inputs and outputs are float32 [batch, tokens, WIDTH]."""
    shape = ["batch", "tokens", WIDTH]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    for key, value in (metadata or {}).items():
        graph.metadata_props.add(key=key, value=value)
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10, producer_name="toolkit")
    onnx.save(model, path)
    return path


def block(prefix, source, weights, *, seed):
    """A pre-norm MLP block on `source`: LayerNorm, Linear with bias, Gelu, Linear with bias, sum."""
    names = {"g": (WIDTH,), "b": (WIDTH,), "w1": (WIDTH, WIDTH), "b1": (WIDTH,), "w2": (WIDTH, WIDTH), "b2": (WIDTH,)}
    own = {f"{prefix}.{name}": array(shape, seed + index) for index, (name, shape) in enumerate(names.items())}
    own[f"{prefix}.g"] = 1 + own[f"{prefix}.g"]
    weights.update(own)

    def at(name):
        return f"{prefix}.{name}"

    return [
        node("LayerNormalization", [source, at("g"), at("b")], [at("norm_out")], at("norm"), axis=-1),
        node("MatMul", [at("norm_out"), at("w1")], [at("product1")], at("fc1")),
        node("Add", [at("product1"), at("b1")], [at("fc1_out")], at("fc1")),
        node("Gelu", [at("fc1_out")], [at("act_out")], at("act")),
        node("MatMul", [at("act_out"), at("w2")], [at("product2")], at("fc2")),
        node("Add", [at("product2"), at("b2")], [at("fc2_out")], at("fc2")),
        node("Add", [at("fc2_out"), source], [at("out")], prefix),
    ]


def two_blocks(path, *, change=None, metadata=None):
    """A graph of two such blocks with fp32 weights; `change` may alter them by name before they are written."""
    weights: dict[str, np.ndarray] = {}
    nodes = [*block("layers.0", "x", weights, seed=1), *block("layers.1", "layers.0.out", weights, seed=11)]
    nodes.append(node("Identity", ["layers.1.out"], ["y"], ""))
    if change:
        change(weights)
    return save(path, nodes, weights, metadata=metadata)


def divided(side, path, divisor):
    """The metadata by which the quantize stage says that a module's tensor is divided."""
    text = base64.b64encode(divisor.astype("<f4").tobytes()).decode()
    return {"toolkit.divided": json.dumps({side: {path: text}})}
