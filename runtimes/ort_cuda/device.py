"""Whether ONNX Runtime can use a CUDA GPU here, found out step by step, each with its own reason."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from importlib import metadata

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from runtimes._onnxruntime.failures import MEANINGS

__all__ = ["CUDA", "both_builds_installed", "cuda_blocker", "cuda_devices"]

CUDA = "CUDAExecutionProvider"

_FAILURES: tuple[type[Exception], ...] = (*MEANINGS, RuntimeError, ValueError)
_INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


@cache
def cuda_blocker() -> str:
    """Why no CUDA session can be made here, with what to do about it; empty where one can."""
    checks: tuple[Callable[[], str], ...] = (both_builds_installed, _no_cuda_build, _no_device, _no_session)
    return next((reason for check in checks if (reason := check())), "")


def both_builds_installed() -> str:
    """A reason where the CPU and the GPU package are both installed: their files overwrite each other."""
    versions = {name: _installed(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    if not all(versions.values()):
        return ""
    found = " and ".join(f"{name} {version}" for name, version in versions.items())
    return f"{found} are both installed and break each other; run: {_INSTALL}"


def cuda_devices() -> int | str:
    """The number of GPUs that the CUDA driver counts, or why it counts none."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError as error:
        return f"no NVIDIA driver: {error}"
    count = ctypes.c_int(0)
    for name, arguments in (("cuInit", (0,)), ("cuDeviceGetCount", (ctypes.byref(count),))):
        code = getattr(driver, name)(*arguments)
        if code:
            return f"the NVIDIA driver is installed but {name} failed with CUDA error {code}"
    return count.value or "the NVIDIA driver counts no GPU"


def _no_cuda_build() -> str:
    if CUDA in ort.get_available_providers():
        return ""
    return f"onnxruntime {ort.__version__} is a build without CUDA; on a machine with a GPU run: {_INSTALL}"


def _no_device() -> str:
    found = cuda_devices()
    return found if isinstance(found, str) else ""


def _no_session() -> str:
    """A session of one matrix product, with no fallback: the whole chain of libraries has to load for it."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = ort.InferenceSession(_probe().SerializeToString(), options, providers=[CUDA])
    except _FAILURES as error:
        return f"{CUDA} does not start: {' '.join(str(error).split())}"
    actual = session.get_providers()[0]
    return "" if actual == CUDA else f"{CUDA} fell back to {actual}: a CUDA or cuDNN library does not load"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _probe() -> onnx.ModelProto:
    square = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "probe", square[:2], square[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
