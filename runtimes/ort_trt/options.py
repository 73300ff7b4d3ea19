"""The TensorRT provider's options, and its profile of shapes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from runtimes._onnxruntime.gpu import TENSORRT
from runtimes._onnxruntime.provider_options import ProviderOptions, within
from runtimes._tensorrt.profiles import profiles_of
from toolkit.types import ModelSpec

__all__ = ["TensorrtOptions", "for_graph", "with_cache", "without_paths"]

_BY_TARGET = "The target says which precisions the builder may use, as ort-trt-fp16."
_DEPRECATED = "It is deprecated since TensorRT 8.6: set trt_builder_optimization_level to 2."


@dataclass(frozen=True, slots=True)
class TensorrtOptions(ProviderOptions):
    """By ONNX Runtime's own names, each accepted by the TensorRT provider of onnxruntime-gpu 1.31.1.

    Sizes are in bytes; `trt_max_workspace_size` None is all of the device. The precision flags follow the scheme.
    Engines and timings are cached where `trt_engine_cache_path` and `trt_timing_cache_path` say, each graph apart.
    """

    PROVIDER: ClassVar[str] = TENSORRT
    BOOLEANS: ClassVar[tuple[str, str]] = ("False", "True")
    REFUSED: ClassVar[Mapping[str, str]] = {
        "trt_fp16_enable": _BY_TARGET,
        "trt_bf16_enable": _BY_TARGET,
        "trt_int8_enable": _BY_TARGET,
        "trt_layer_norm_fp32_fallback": _BY_TARGET,
        "trt_int8_calibration_table_name": "Calibration is over when the graph is written: int8 is in its Q/DQ nodes.",
        "trt_int8_use_native_calibration_table": "Calibration is over when the graph is written.",
        "trt_build_heuristics_enable": _DEPRECATED,
        "trt_cuda_graph_enable": (
            "A captured graph replays the addresses of its first run, and a session here is fed new arrays each time."
        ),
        "trt_dump_ep_context_model": "The bundle's graph is the engine; the compiled one is kept in the engine cache.",
    }

    device_id: int = within(0, 0)
    trt_max_workspace_size: int | None = within(None, 1)
    trt_builder_optimization_level: int = within(3, 0, 5)
    trt_auxiliary_streams: int = within(-1, -1)
    trt_context_memory_sharing_enable: bool = False
    trt_engine_hw_compatible: bool = False
    trt_engine_cache_enable: bool = True
    trt_engine_cache_path: str | None = None
    trt_timing_cache_enable: bool = True
    trt_timing_cache_path: str | None = None
    trt_force_timing_cache: bool = False
    trt_detailed_build_log: bool = False
    trt_profile_min_shapes: str | None = None
    trt_profile_opt_shapes: str | None = None
    trt_profile_max_shapes: str | None = None


def for_graph(options: TensorrtOptions, spec: ModelSpec) -> TensorrtOptions:
    """The options with the profile of the spec's dimensions, as `name:1x2x3,…`; a profile that is given stays.

    Raises StageError for a dynamic dimension without a range.
    """
    if options.trt_profile_min_shapes or options.trt_profile_opt_shapes or options.trt_profile_max_shapes:
        return options
    (shapes_of,) = profiles_of(spec)

    def written(which: int) -> str | None:
        parts = [f"{name}:{'x'.join(map(str, shapes[which]))}" for name, shapes in shapes_of.items()]
        return ",".join(parts) or None

    return replace(
        options,
        trt_profile_min_shapes=written(0),
        trt_profile_opt_shapes=written(1),
        trt_profile_max_shapes=written(2),
    )


def without_paths(options: TensorrtOptions) -> TensorrtOptions:
    """The options less where caches lie: that is a machine's own business, never what a bundle says."""
    return replace(options, trt_engine_cache_path=None, trt_timing_cache_path=None)


def with_cache(options: TensorrtOptions, sha256: str) -> TensorrtOptions:
    """The options with a cache of the user's own for this graph, where none is given.

    ONNX Runtime names cached engines by the graph's structure, not by its weights, so each graph has its own folder.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "toolkit" / "ort-trt" / sha256[:16]
    folder = str(base)
    return replace(
        options,
        trt_engine_cache_path=options.trt_engine_cache_path or (folder if options.trt_engine_cache_enable else None),
        trt_timing_cache_path=options.trt_timing_cache_path or (folder if options.trt_timing_cache_enable else None),
    )
