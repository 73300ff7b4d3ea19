"""Who races: the peers, in the order of the table, and bundles of this toolkit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peers.environments import OWN

__all__ = ["PEERS", "REFERENCE", "TARGETS", "Contender", "own"]

TARGETS = ("ort-cpu-fp32", "ort-cpu-int8", "ort-cpu-int8 ranges=per-token,smoothing=0.6", "openvino-int8")
"""Each with what changes of its recipe, behind a space."""
_INDUCTOR = {"compile": True}


@dataclass(frozen=True, slots=True)
class Contender:
    """A row of the table.

    `artefact` is what `peers.artefacts` makes for a peer, or the label of a bundle of ours; `kind` and `options` are
    what `encoder_contenders.py` loads it by.
    """

    label: str
    environment: str
    kind: str
    artefact: str
    options: Mapping[str, Any] = field(default_factory=dict)


REFERENCE = "pytorch"
PEERS: Mapping[str, Contender] = {
    REFERENCE: Contender("PyTorch eager fp32", "inductor", "torch", "model", {"attention": "eager"}),
    "sdpa": Contender("PyTorch eager fp32, `sdpa` attention", "inductor", "torch", "model"),
    "compile-fp32": Contender("torch.compile fp32", "inductor", "torch", "model", _INDUCTOR),
    "compile-bf16": Contender("torch.compile bf16", "inductor", "torch", "model", _INDUCTOR | {"dtype": "bfloat16"}),
    "torchao": Contender("torchao int8 dynamic, compiled", "inductor", "torch", "model", _INDUCTOR | {"torchao": True}),
    "ort-fp32": Contender("ONNX Runtime fp32 (optimum-onnx)", "optimum", "onnxruntime", "optimum-fp32"),
    "ort-dynamic": Contender("optimum-onnx int8 dynamic", "optimum", "onnxruntime", "optimum-dynamic"),
    "ort-static": Contender("optimum-onnx int8 static", "optimum", "onnxruntime", "optimum-static"),
    "openvino-fp32": Contender("OpenVINO fp32", "openvino", "openvino", "optimum-fp32", {"precision": "f32"}),
    "openvino-bf16": Contender("OpenVINO bf16", "openvino", "openvino", "optimum-fp32", {"precision": "bf16"}),
    "nncf": Contender("OpenVINO + NNCF int8", "openvino", "openvino", "nncf-int8"),
    "nncf-static": Contender(
        "OpenVINO + NNCF int8, fixed shapes", "openvino", "openvino", "nncf-int8", {"static": True}
    ),
}


def own(label: str) -> Contender:
    """The row of a target of ours, or of bundles that the user gave a label."""
    target, _, recipe = label.partition(" ")
    name = f"**ours: {target}**, `{recipe}`" if "=" in recipe else f"**ours: {label}**"
    return Contender(name, OWN, "bundle", label)
