"""Every call of CUDA's and TensorRT's Python interfaces that the session makes exists, with that many arguments.

The source is read, so that a call added later is checked as well.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtimes._tensorrt import cuda, errorlog, program
from runtimes._tensorrt.cuda import Cuda
from runtimes._tensorrt.devices import devices
from toolkit.errors import MissingDependencyError, StageError

HAS_CUDA = not cuda.missing()
needs_cuda = pytest.mark.skipif(not HAS_CUDA, reason=f"cuda.bindings is not installed ({cuda.INSTALL})")
ABSENT = {name for name in ("tensorrt_rtx", "tensorrt") if importlib.util.find_spec(name) is None}
LIBRARIES = [
    pytest.param(name, marks=pytest.mark.skipif(name in ABSENT, reason=f"{name} is not installed"))
    for name in ("tensorrt_rtx", "tensorrt")
]
CLASSES = {"_context": "IExecutionContext", "_engine": "ICudaEngine", "_runtime": "Runtime"}
RTX_ONLY = {"CudaGraphStrategy.WHOLE_GRAPH_CAPTURE", "ICudaEngine.create_runtime_config"}


def tree(module: Any) -> ast.Module:
    return ast.parse(Path(module.__file__).read_text(encoding="utf-8"))


def cuda_calls() -> dict[str, set[int]]:
    """How many arguments each CUDA function is called with, through whatever helper."""
    calls: dict[str, set[int]] = {}
    for node in ast.walk(tree(cuda)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            first = node.args[0] if node.args else None
            named = isinstance(first, ast.Constant) and str(first.value).startswith("cuda") and node.func.attr[0] == "_"
            if isinstance(first, ast.Constant) and named and node.func.attr != "_check":
                calls.setdefault(str(first.value), set()).add(len(node.args) - 1)
            if node.func.attr.startswith("cuda"):
                calls.setdefault(node.func.attr, set()).add(len(node.args))
    return calls


def chains(module: Any, root: str) -> Iterator[list[str]]:
    """`trt.ILogger.ERROR` as [ILogger, ERROR], of every longest chain that begins with the name or attribute."""
    attributes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)]
    inner = [node.value for node in attributes]
    for node in attributes:
        if any(node is other for other in inner):
            continue
        parts: list[str] = []
        at: ast.expr = node
        while isinstance(at, ast.Attribute):
            parts.insert(0, at.attr)
            at = at.value
        parts.insert(0, at.id if isinstance(at, ast.Name) else "")
        if root in parts[:2] and parts[-1] != root:
            yield parts[parts.index(root) + 1 :]


def test_the_source_is_really_read() -> None:
    calls = cuda_calls()
    assert calls["cudaMemcpyAsync"] == {5}
    assert calls["cudaMemcpy2DAsync"] == {8}
    assert {"cudaMalloc", "cudaFree", "cudaStreamBeginCapture", "cudaGraphInstantiate", "cudaMemGetInfo"} <= set(calls)
    assert ["execute_async_v3"] in list(chains(program, "_context"))
    assert ["get_aliased_input_tensor"] in list(chains(program, "_engine"))
    assert ["ILogger", "INTERNAL_ERROR"] in list(chains(errorlog, "trt"))
    assert ["TensorLocation", "DEVICE"] in list(chains(program, "_trt"))


@needs_cuda
def test_every_cuda_function_takes_what_it_is_given() -> None:
    import cuda.bindings.runtime as api  # type: ignore[import-not-found,unused-ignore]

    for name, counts in cuda_calls().items():
        taken = len(inspect.signature(getattr(api, name)).parameters)
        assert counts == {taken}, f"{name} takes {taken} arguments, not {counts}"
    assert api.cudaMemcpyKind.cudaMemcpyDefault
    assert api.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal is not None
    assert api.cudaStreamNonBlocking == 1
    assert int(api.cudaStream_t(7)) == 7
    assert api.cudaError_t.cudaErrorMemoryAllocation.name in cuda._HINTS


@needs_cuda
@pytest.mark.skipif(bool(devices()[0]), reason="a device is present")
def test_without_a_driver_cudas_own_name_says_so() -> None:
    with pytest.raises(StageError, match=r"cudaStreamCreateWithFlags answered cuda[A-Za-z]+: ") as caught:
        Cuda()
    assert caught.value.stage == "run"
    assert caught.value.hint


@pytest.mark.skipif(HAS_CUDA, reason="cuda.bindings is installed")
def test_without_cuda_bindings_the_command_is_told() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        Cuda()
    assert caught.value.hint == cuda.INSTALL
    assert cuda.INSTALL in cuda.missing()


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_name_of_tensorrt_exists(library: str) -> None:
    trt = importlib.import_module(library)
    wanted = [[CLASSES[root], *rest] for root in CLASSES for rest in chains(program, root)]
    wanted += [*chains(program, "_trt"), *chains(errorlog, "trt"), *chains(program, "trt")]
    assert len(wanted) > 20
    for parts in wanted:
        at = trt
        for part in parts[:2]:
            if library != "tensorrt_rtx" and ".".join(parts[:2]) in RTX_ONLY:
                break
            assert hasattr(at, part), f"{library} has no {'.'.join(parts)}"
            at = getattr(at, part)


@pytest.mark.parametrize("library", LIBRARIES)
def test_dtypes_have_numpy_names(library: str) -> None:
    trt = importlib.import_module(library)
    names = {"HALF": "float16", "BF16": "bfloat16", "FP8": "float8_e4m3fn", "INT64": "int64", "BOOL": "bool"}
    for tensorrt, numpy in names.items():
        assert program._dtype(trt, getattr(trt.DataType, tensorrt), "x") == numpy


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_log_keeps_the_last_errors(library: str) -> None:
    trt = importlib.import_module(library)
    log = errorlog.make_error_log(trt)
    log.log(trt.ILogger.WARNING, "never mind")
    for number in range(20):
        log.log(trt.ILogger.ERROR, f"error {number}\n")
    log.log(trt.ILogger.INTERNAL_ERROR, "error 19")
    assert log.take() == "; ".join(f"error {number}" for number in range(13, 20))
    assert log.take() == "TensorRT logged no reason"
