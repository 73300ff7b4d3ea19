"""The CUDA provider's options that are sound for whoever runs a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from runtimes._onnxruntime.gpu import CUDA
from runtimes._onnxruntime.provider_options import ProviderOptions, within

__all__ = ["CudaOptions"]


@dataclass(frozen=True, slots=True)
class CudaOptions(ProviderOptions):
    """By ONNX Runtime's own names, each accepted by the CUDA provider of onnxruntime-gpu 1.31.1.

    `gpu_mem_limit` is in bytes, None for no limit. TF32 is off, so that fp32 means fp32: it would round a product's
    operands to 10 bits.
    """

    PROVIDER: ClassVar[str] = CUDA
    REFUSED: ClassVar[Mapping[str, str]] = {
        "enable_cuda_graph": (
            "A captured graph replays the addresses of its first run, and a session here is fed new arrays each time."
        ),
        "user_compute_stream": "It is an address of this process; open the graph with onnxruntime itself for that.",
        "has_user_compute_stream": "It goes with user_compute_stream, which is not offered.",
    }

    device_id: int = within(0, 0)
    gpu_mem_limit: int | None = within(None, 1)
    use_tf32: bool = False
    arena_extend_strategy: Literal["kNextPowerOfTwo", "kSameAsRequested"] = "kSameAsRequested"
    cudnn_conv_algo_search: Literal["EXHAUSTIVE", "HEURISTIC", "DEFAULT"] = "HEURISTIC"
    cudnn_conv_use_max_workspace: bool = True
    prefer_nhwc: bool = False
    fuse_conv_bias: bool = False
