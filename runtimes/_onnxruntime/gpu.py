"""Whether ONNX Runtime can use an NVIDIA GPU here, found out step by step, each with its own reason."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from runtimes._onnxruntime.failures import FAILURES
from runtimes._tensorrt.builder import INDEX
from runtimes._tensorrt.devices import devices

__all__ = ["CUDA", "TENSORRT", "blocker", "both_builds_installed", "device_name"]

CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

_INSTALL = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]'"
_LIBRARIES = "ONNX Runtime's log on standard error names the library that does not load"
_INSTALL_TENSORRT = f"pip install 'tensorrt-cu13>=10.6,<11' {INDEX}"
_TENSORRT_LIBRARIES = ("libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10")
_TENSORRT_WHEEL = "tensorrt_libs"
_BEHIND: Mapping[str, tuple[str, ...]] = {CUDA: (), TENSORRT: (CUDA,)}


@cache
def blocker(provider: str) -> str:
    """Why no session can be made on `provider` here, with what to do about it; empty where one can."""
    checks: tuple[Callable[[], str], ...] = (
        both_builds_installed,
        lambda: _no_build(provider),
        lambda: devices()[1],
        lambda: _no_tensorrt() if provider == TENSORRT else "",
        lambda: _no_session(provider),
    )
    return next((reason for check in checks if (reason := check())), "")


def both_builds_installed() -> str:
    """A reason where the CPU and the GPU package are both installed: their files overwrite each other."""
    versions = {name: _installed(name) for name in ("onnxruntime", "onnxruntime-gpu")}
    if not all(versions.values()):
        return ""
    found = " and ".join(f"{name} {version}" for name, version in versions.items())
    return f"{found} are both installed and break each other; run: {_INSTALL}"


def device_name(index: int) -> str:
    """Name and architecture of a GPU by the driver's number, or how many there are where it is none of them."""
    found = devices()[0]
    if index >= len(found):
        return f"no GPU {index}: the driver shows {len(found)}"
    return f"{found[index].name} ({found[index].architecture}), device {index}"


def _no_build(provider: str) -> str:
    if provider in ort.get_available_providers():
        return ""
    return f"onnxruntime {ort.__version__} is a build without {provider}; on a machine with a GPU run: {_INSTALL}"


def _no_tensorrt() -> str:
    """A reason where TensorRT 10 does not load; its wheel keeps the libraries where no loader looks."""
    for name in _TENSORRT_LIBRARIES:
        reason = _load(name)
        if reason:
            return f"TensorRT 10 is not here ({reason}); run: {_INSTALL_TENSORRT}"
    return ""


def _load(name: str) -> str:
    reason = ""
    for path in (name, *_in_wheel(name)):
        try:
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            reason = reason or str(error)
        else:
            return ""
    return reason


def _in_wheel(name: str) -> Sequence[str]:
    found = importlib.util.find_spec(_TENSORRT_WHEEL)
    folders = found.submodule_search_locations if found and found.submodule_search_locations else ()
    return [str(Path(folder) / name) for folder in folders]


def _no_session(provider: str) -> str:
    """A session of one matrix product, with no fallback: the whole chain of libraries has to load for it."""
    with contextlib.redirect_stdout(io.StringIO()):
        # CUDA and cuDNN of NVIDIA's wheels; what it prints where it finds none is told better by what follows.
        ort.preload_dlls()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    chain = [provider, *_BEHIND[provider]]
    try:
        session = ort.InferenceSession(_probe().SerializeToString(), options, providers=chain, enable_fallback=0)
    except FAILURES as error:
        return f"{provider} does not start: {' '.join(str(error).split())}; {_LIBRARIES}"
    actual = session.get_providers()[0]
    return "" if actual == provider else f"{provider} fell back to {actual}; {_LIBRARIES}"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _probe() -> onnx.ModelProto:
    square = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("a", "b", "y")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "probe", square[:2], square[2:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
