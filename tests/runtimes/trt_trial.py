"""What TensorRT-RTX does with many small graphs: one process that loads the library once, and a fork a graph.

`python trt_trial.py FOLDER` compiles every `NAME.onnx` or `NAME@ARCH.onnx` there and writes `NAME.log` and, where an
engine comes out, `NAME.plan`; `results.json` has each exit code, negative for a crash. `attempt` does so from a test.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

SECONDS = 60
DYNAMIC = 6
"""What every dynamic dimension is compiled for."""
_KERNEL = re.compile(r"^Name: (?P<name>[^,]*), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants:", re.M)


@dataclass(frozen=True, slots=True)
class Trial:
    """Exit code, what the library said (its kernel plan too), and the engine's bytes."""

    code: int
    log: str
    engine: bytes = b""

    @property
    def kernels(self) -> list[tuple[str, str]]:
        """Type and inputs of each kernel of the engine."""
        return [(kernel["kind"], kernel["inputs"]) for kernel in _KERNEL.finditer(self.log)]

    @property
    def int8_gemms(self) -> int:
        return sum(kind == "gemm" and "Datatype: Int8" in inputs for kind, inputs in self.kernels)

    @property
    def fused_attentions(self) -> int:
        return sum("mha" in kernel["name"] for kernel in _KERNEL.finditer(self.log))


def attempt(graphs: Mapping[str, ir.Model], folder: Path) -> dict[str, Trial]:
    """Compile every graph for SM89, or for the architecture behind the `@` of its name."""
    for name, model in graphs.items():
        ir.save(model, folder / f"{name}.onnx")
    subprocess.run([sys.executable, __file__, str(folder)], check=True, timeout=10 * SECONDS)
    codes = json.loads((folder / "results.json").read_text())
    return {name: _trial(folder, name, codes[name]) for name in graphs}


def _trial(folder: Path, name: str, code: int) -> Trial:
    plan = folder / f"{name}.plan"
    log = (folder / f"{name}.log").read_text(errors="replace")
    return Trial(code, log, plan.read_bytes() if plan.exists() else b"")


def main(folder: Path) -> None:
    import tensorrt_rtx as trt

    codes = {path.stem: _forked(trt, path) for path in sorted(folder.glob("*.onnx"))}
    (folder / "results.json").write_text(json.dumps(codes))


def _forked(trt: Any, path: Path) -> int:
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        log = os.open(path.with_suffix(".log"), os.O_CREAT | os.O_WRONLY)
        os.dup2(log, 1)
        os.dup2(log, 2)
        built = _build(trt, path)
        sys.stdout.flush()
        os._exit(0 if built else 1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _build(trt: Any, path: Path) -> bool:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity not in (trt.ILogger.INFO, trt.ILogger.VERBOSE) or message.startswith("Layers:"):
                sys.stdout.write(message.replace("Layers:\n", "") + "\n")
                sys.stdout.flush()

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        return False
    _allow_fallback(trt, network)
    plan = builder.build_serialized_network(network, _config(trt, builder, network, path))
    if plan is not None:
        path.with_suffix(".plan").write_bytes(memoryview(plan))
    return plan is not None


def _config(trt: Any, builder: Any, network: Any, path: Path) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    architecture = path.stem.rpartition("@")[2] if "@" in path.stem else "sm89"
    config.set_compute_capability(getattr(trt.ComputeCapability, architecture.upper()), 0)
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = [DYNAMIC if size < 0 else size for size in tensor.shape]
        if -1 in tuple(tensor.shape):
            profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return config


def _allow_fallback(trt: Any, network: Any) -> None:
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


if __name__ == "__main__":
    main(Path(sys.argv[1]))
