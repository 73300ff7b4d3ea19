"""The builder's process: `python -m runtimes._tensorrt.builder job.json report.json`, or `--probe MODULE`.

TensorRT can crash the process it runs in, so nobody imports it beside their own work. Progress goes to the standard
output, TensorRT's warnings and errors to the standard error, the answer into `report.json` when all is done.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runtimes._tensorrt.job import BuiltEngine, Job, write_atomically

__all__ = ["build_all", "main"]

_KERNEL = re.compile(r"^Name: (?P<name>[^,]*), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants:", re.M)
_PLAN = "Layers:"
_PRODUCTS = ("gemm", "correlation", "runtime_fusion")


class BuildFailedError(Exception):
    """TensorRT refused; the message holds what it said."""


def main(arguments: list[str]) -> int:
    """Run one job file or probe a library; answers the exit code."""
    if arguments[0] == "--probe":
        return _probe(arguments[1])
    job_path, report_path = map(Path, arguments)
    try:
        built = build_all(Job.from_json(job_path.read_text(encoding="utf-8")))
    except (BuildFailedError, OSError) as error:
        _say(f"FAILED {error}", sys.stderr)
        return 1
    write_atomically(report_path, json.dumps([asdict(engine) for engine in built]).encode())
    return 0


def build_all(job: Job) -> list[BuiltEngine]:
    """Parse once, then compile for every architecture in turn. Raises BuildFailedError with TensorRT's own words."""
    parsed = _parse(job)
    attentions = _allow_fallback(parsed)
    return [_build(parsed, job, architecture, attentions) for architecture in job.architectures]


def _probe(module: str) -> int:
    try:
        trt: Any = importlib.import_module(module)
        if not trt.Builder(_make_log(trt)):
            raise BuildFailedError("the builder does not start")
    except Exception as error:  # whatever the library raises is the reason
        _say(str(error) or type(error).__name__, sys.stderr)
        return 1
    _say(trt.__version__)
    return 0


def _make_log(trt: Any) -> Any:
    """A TensorRT logger: warnings and errors to the standard error, the last engine's kernel plan kept in `plan`."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.plan = ""
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.errors.append(message)
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING):
                _say(message, sys.stderr)
            elif message.startswith(_PLAN):
                self.plan = message

    return Log()


@dataclass(frozen=True, slots=True)
class _Parsed:
    """The network in TensorRT's hands. The parser owns the weights that the network points at."""

    trt: Any
    log: Any
    builder: Any
    network: Any
    parser: Any


def _parse(job: Job) -> _Parsed:
    _say("parsing")
    trt: Any = importlib.import_module(job.library)
    log = _make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job.graph):
        raise BuildFailedError("; ".join(_parser_errors(parser)) or "the parser refused the graph")
    return _Parsed(trt, log, builder, network, parser)


def _parser_errors(parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        yield f"{error.node_operator()} '{error.node_name()}': {error.desc()}"


def _allow_fallback(parsed: _Parsed) -> int:
    """Let an attention be split where no fused kernel exists, as in fp32; a no-op elsewhere. Answers their number."""
    count = 0
    for index in range(parsed.network.num_layers):
        layer = parsed.network.get_layer(index)
        if layer.type == parsed.trt.LayerType.ATTENTION_INPUT:
            # The binding hands out the base class only.
            layer.__class__ = parsed.trt.IAttentionInputLayer
            layer.attention.decomposable = True
            count += 1
    return count


def _build(parsed: _Parsed, job: Job, architecture: str, attentions: int) -> BuiltEngine:
    _say(f"compiling for {architecture}")
    start = time.perf_counter()
    plan = _compile(parsed, job, architecture)
    path = Path(job.folder) / f"engine-{architecture}.plan"
    write_atomically(path, memoryview(plan))
    seconds = round(time.perf_counter() - start, 2)
    _say(f"{architecture}: {plan.nbytes} bytes in {seconds} s")
    return BuiltEngine(architecture, path.name, plan.nbytes, seconds, attentions, *_read_plan(parsed.log.plan))


def _compile(parsed: _Parsed, job: Job, architecture: str) -> Any:
    log = parsed.log
    log.plan, log.errors = "", []
    plan = parsed.builder.build_serialized_network(parsed.network, _configure(parsed, job, architecture))
    if plan is None:
        raise BuildFailedError(f"{architecture}: {'; '.join(log.errors) or 'no engine and no reason given'}")
    return plan


def _configure(parsed: _Parsed, job: Job, architecture: str) -> Any:
    config = parsed.builder.create_builder_config()
    # The log lists an engine's kernels only at this verbosity; the engine stays as large.
    config.profiling_verbosity = parsed.trt.ProfilingVerbosity.DETAILED
    if hasattr(config, "num_compute_capabilities"):
        config.num_compute_capabilities = 1
        config.set_compute_capability(_capability(parsed.trt, architecture), 0)
    for shapes_of in filter(None, job.profiles):
        profile = parsed.builder.create_optimization_profile()
        for name, shapes in shapes_of.items():
            profile.set_shape(name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise BuildFailedError(f"the shapes {dict(shapes_of)} do not fit the graph's inputs")
    return config


def _capability(trt: Any, architecture: str) -> Any:
    name = architecture.upper()
    if not hasattr(trt.ComputeCapability, name):
        raise BuildFailedError(f"{trt.__name__} {trt.__version__} does not compile for {name}")
    return getattr(trt.ComputeCapability, name)


def _read_plan(plan: str) -> tuple[int | None, int | None, int | None, int | None]:
    """Fused attentions, int8 products, all kernels and int8 attentions, in the builder's list of what the engine runs.

    A fused attention is a kernel of the plan's kind `kgen`, so it is not among the products.
    """
    kernels = list(_KERNEL.finditer(plan))
    if not kernels:
        return None, None, None, None
    fused = [kernel for kernel in kernels if "mha" in kernel["name"]]
    products = [kernel for kernel in kernels if kernel["kind"] in _PRODUCTS]
    int8 = [sum("Datatype: Int8" in kernel["inputs"] for kernel in each) for each in (products, fused)]
    return len(fused), int8[0], len(kernels), int8[1]


def _say(text: str, stream: Any = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
