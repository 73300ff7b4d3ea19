"""What ONNX Runtime's weakly typed TensorRT network makes of a scheme: the flags it needs, and what it cannot keep."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import QuantizedGraph

__all__ = ["flags_of", "refuse_mixed"]

_FLAGS: Mapping[str, Mapping[str, str]] = {
    "fp32": {},
    "fp16": {"trt_fp16_enable": "True", "trt_layer_norm_fp32_fallback": "True"},
    "bf16": {"trt_bf16_enable": "True", "trt_layer_norm_fp32_fallback": "True"},
    "int8": {"trt_int8_enable": "True"},
}
"""The builder refuses fp16, bf16 or int8 tensors without their flag; with it, it may use that precision where it likes.
bf16 has the range of fp32, so nothing overflows where the builder uses it beyond the scheme.

int8 has no half beside it: without a calibration table only what stands between Q and DQ can run in int8.
"""
_BY_RECIPE = "kept in fp32: recipe"
_KEPT = {"fp16": ("kept in fp32: range", "kept in fp32: constant", _BY_RECIPE), "bf16": (_BY_RECIPE,)}
_HALF_LAYERS = "Linears named fp16"


def flags_of(scheme: str) -> Mapping[str, str]:
    """The provider's precision flags for a scheme. Raises UsageError for one that the runtime does not take."""
    if scheme not in _FLAGS:
        raise UsageError(
            f"the engine's entry names no scheme of ort-trt, but '{scheme}'",
            hint="The bundle's manifest is damaged; export it again.",
        )
    return _FLAGS[scheme]


def refuse_mixed(graph: QuantizedGraph) -> None:
    """Raise UnsupportedError where the graph holds precisions that the builder need not obey, or refuses.

    That are nodes that the scheme kept in fp32 because they overflow in half, or the recipe because it says so; and
    layers in float16 beside int8, for which no flag is given.
    Normalisations may be kept: TensorRT's own computes in fp32, and of decomposed ones a flag keeps the statistics so.
    """
    if graph.scheme not in {"fp16", "bf16"} and any(step.what == _HALF_LAYERS for step in graph.steps):
        raise UnsupportedError(
            f"ONNX Runtime's TensorRT network takes no float16 weights beside {graph.scheme}",
            hint="Give these layers fp32 in the recipe, or export for trt, which takes them.",
        )
    kept = [step for step in graph.steps if step.what in _KEPT.get(graph.scheme, ())]
    if kept:
        count = sum(step.count for step in kept)
        nodes = f"{count} node{'' if count == 1 else 's'}"
        raise UnsupportedError(
            f"{nodes} must stay in fp32 ({kept[0].reason}), and ONNX Runtime's TensorRT network is weakly typed: "
            "it may run them in half",
            hint=f"`trt-{graph.scheme}` and `ort-cuda-{graph.scheme}` keep them in fp32; or export for ort-trt-fp32.",
        )
