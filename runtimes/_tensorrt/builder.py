"""Compile an ONNX graph with TensorRT or TensorRT-RTX into one engine file a GPU architecture, `engine-<arch>.plan`.

In a bundle this file is called `build_engine.py` and reads `engine.lock.json` beside it:

    python build_engine.py                       for the architectures that the bundle was exported for
    python build_engine.py --arch sm89           for one
    python build_engine.py --output FOLDER       elsewhere: `toolkit check` wants the files of a bundle unchanged

It needs Python 3.10 and `tensorrt` 10.14 or later on a GPU, or `tensorrt_rtx` on any machine; nothing else, so it
imports nothing else. TensorRT can crash the process it runs in: every architecture is compiled in a process of its own.
Exit codes: 0 built, 2 wrong arguments or recipe, 3 no library, 4 not supported here, 5 refused by the library.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["CONFIG", "FAILED", "LIBRARIES", "LOCK_FILE", "REFUSED", "main"]

LOCK_FILE = "engine.lock.json"
LIBRARIES = ("tensorrt", "tensorrt_rtx")
CONFIG: Mapping[str, Any] = {
    "strongly_typed": True,
    "decomposable_attention": True,
    # TensorRT's default rounds the operands of products in fp32 to 10 bits: not what drift was measured on.
    "tf32": False,
    # The log lists an engine's kernels only at this verbosity; the engine stays as large.
    "profiling_verbosity": "DETAILED",
}
"""How every network is made; a recipe may say otherwise."""

_FIRST_VERSION = (10, 14)
"""The first TensorRT whose parser takes the `Attention` operator (onnx-tensorrt, changelog)."""
_SINCE_10_15 = ("RMSNormalization", "RotaryEmbedding", "TensorScatter")
REFUSED = 5
"""The exit code where the library took neither the graph nor the shapes."""
_BAD_RECIPE, _NO_LIBRARY, _UNSUPPORTED = 2, 3, 4
INDEX = "--extra-index-url https://pypi.nvidia.com"
INSTALL = {
    "tensorrt": f"pip install 'tensorrt-cu13>={'.'.join(map(str, _FIRST_VERSION))}' {INDEX}",
    "tensorrt_rtx": "pip install 'tensorrt-rtx-cu13>=1.7'",
}
"""How each library is installed."""
FAILED = "FAILED: "
"""What the last line of the standard error begins with where nothing was built."""
_PLAN = "Layers:"
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR_MINOR = (75, 76)
"""The driver's attributes of a device's compute capability."""


class BuildError(Exception):
    """Nothing was built; the message says why, `code` is what the process exits with."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.code = code


def main(arguments: list[str]) -> int:
    """Compile what a recipe says, or probe a library; answers the exit code."""
    options = _parse_arguments(arguments)
    try:
        if options.probe:
            _probe(options.probe)
        else:
            _run(options)
    except BuildError as error:
        _say(f"{FAILED}{error}", sys.stderr)
        return error.code
    return 0


def _parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=str(__doc__), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path(__file__).resolve().with_name(LOCK_FILE))
    parser.add_argument("--library", choices=LIBRARIES, help="the first of the recipe's that starts here")
    parser.add_argument("--arch", default="", help="as sm80,sm89; with tensorrt only the GPU of this machine")
    parser.add_argument("--output", type=Path, help="folder of the engine files, else that of the recipe")
    parser.add_argument("--report", type=Path, help="file for a JSON report of the one engine built")
    parser.add_argument("--probe", metavar="MODULE", help="say what a library can do here, and stop")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace) -> None:
    recipe = _read_recipe(options.recipe)
    tool = _start([options.library] if options.library else recipe.get("libraries", LIBRARIES))
    wanted = tuple(filter(None, options.arch.split(","))) or _default_architectures(tool, recipe)
    if len(wanted) > 1:
        _run_each(options, tool, wanted)
        return
    folder = options.output or options.recipe.parent
    report = _build(tool, recipe, options.recipe.parent / recipe["graph"], wanted[0], folder)
    _say(_compared(report, recipe))
    if options.report:
        _write_whole(options.report, json.dumps(report).encode())


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recipe["graph"], recipe["profiles"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(f"{path} is no recipe: {error!r}", _BAD_RECIPE) from error
    return recipe


def _run_each(options: argparse.Namespace, tool: _Tool, architectures: tuple[str, ...]) -> None:
    common = ["--recipe", str(options.recipe), "--library", tool.name]
    common += ["--output", str(options.output)] if options.output else []
    codes = {}
    for architecture in architectures:
        command = [sys.executable, str(Path(__file__).resolve()), *common, "--arch", architecture]
        codes[architecture] = subprocess.run(command, check=False).returncode
    if failed := [f"{architecture} (code {code})" for architecture, code in codes.items() if code]:
        # A process that crashed has a negative code.
        worst = max(code if code >= 0 else REFUSED for code in codes.values())
        raise BuildError(f"no engine for {', '.join(failed)}", worst)


def _default_architectures(tool: _Tool, recipe: Mapping[str, Any]) -> tuple[str, ...]:
    if not tool.offered:
        return (_device_architecture(),)
    return tuple(recipe.get("architectures") or ()) or tool.offered


def _device_architecture() -> str:
    """That of the driver's first device, which CUDA takes; `nvidia-smi` may count in another order."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise BuildError(f"no NVIDIA driver is installed ({_DRIVER} does not load)", _UNSUPPORTED) from error
    device, numbers = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        raise BuildError("the NVIDIA driver shows no device", _UNSUPPORTED)
    for number, which in zip(numbers, _MAJOR_MINOR, strict=True):
        driver.cuDeviceGetAttribute(ctypes.byref(number), which, device)
    return f"sm{numbers[0].value}{numbers[1].value}"


@dataclass(frozen=True)
class _Tool:
    """A library that starts. `offered` are the architectures it compiles for without one; none: its own GPU only."""

    name: str
    trt: Any
    log: Any
    builder: Any
    offered: tuple[str, ...]

    @property
    def version(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.trt.__version__.split(".")[:2])


def _start(libraries: list[str] | tuple[str, ...]) -> _Tool:
    """The first library that starts here. Raises BuildError with each one's reason."""
    problems: list[BuildError] = []
    for name in libraries:
        try:
            return _start_one(name)
        except BuildError as error:
            problems.append(error)
    raise BuildError("; ".join(map(str, problems)), max(problem.code for problem in problems))


def _start_one(name: str) -> _Tool:
    try:
        trt: Any = importlib.import_module(name)
    except ImportError as error:
        command = INSTALL.get(name, "")
        raise BuildError(f"{name} is not installed{command and f' ({command})'}: {error}", _NO_LIBRARY) from error
    log = _make_log(trt)
    try:
        builder = trt.Builder(log)
        config = builder.create_builder_config()
    except Exception as error:  # whatever the library raises is the reason, as without a GPU
        raise BuildError(f"{name} does not start: {'; '.join([*log.errors, str(error)])}", _UNSUPPORTED) from error
    members = trt.ComputeCapability.__members__ if hasattr(config, "num_compute_capabilities") else ()
    tool = _Tool(name, trt, log, builder, tuple(member.lower() for member in members if member[:2] == "SM"))
    if name == "tensorrt" and tool.version < _FIRST_VERSION:
        first = ".".join(map(str, _FIRST_VERSION))
        raise BuildError(f"{name} {trt.__version__} does not take Attention; {first} is the first", _UNSUPPORTED)
    return tool


def _probe(module: str) -> None:
    tool = _start_one(module)
    _say(json.dumps({"version": tool.trt.__version__, "offered": tool.offered}))


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


def _build(tool: _Tool, recipe: Mapping[str, Any], graph: Path, architecture: str, folder: Path) -> dict[str, Any]:
    start = time.perf_counter()
    config = {**CONFIG, **recipe.get("config", {})}
    _require_offered(tool, architecture)
    _say(f"parsing {graph.name}")
    # The parser owns the weights that the network points at.
    network, _parser = _parse(tool, graph, config)
    attentions = _allow_fallback(tool, network, config)
    _say(f"compiling for {architecture}")
    plan = tool.builder.build_serialized_network(network, _configure(tool, recipe, architecture, config))
    if plan is None:
        raise BuildError(f"{architecture}: {'; '.join(tool.log.errors) or 'no engine and no reason given'}")
    path = folder / f"engine-{architecture}.plan"
    folder.mkdir(parents=True, exist_ok=True)
    _write_whole(path, memoryview(plan))
    return {
        "architecture": architecture,
        "file": path.name,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "bytes": plan.nbytes,
        "seconds": round(time.perf_counter() - start, 2),
        "attentions": attentions,
        "plan": tool.log.plan,
        "library": tool.name,
        "version": tool.trt.__version__,
    }


def _require_offered(tool: _Tool, architecture: str) -> None:
    """A library that cannot be told an architecture compiles for its own GPU, whatever the file would be called."""
    offered = tool.offered or (_device_architecture(),)
    if architecture not in offered:
        what = f"{tool.name} {tool.trt.__version__} does not compile for {architecture}, only for {', '.join(offered)}"
        raise BuildError(what, _UNSUPPORTED)


def _parse(tool: _Tool, graph: Path, config: Mapping[str, Any]) -> tuple[Any, Any]:
    flags = tool.trt.NetworkDefinitionCreationFlag
    # TensorRT 10 needs to be asked for it; from 11 on, and in TensorRT-RTX, no network is typed otherwise.
    network = tool.builder.create_network(1 << int(flags.STRONGLY_TYPED) if config["strongly_typed"] else 0)
    parser = tool.trt.OnnxParser(network, tool.log)
    if not parser.parse_from_file(str(graph)):
        raise BuildError("; ".join(_parser_errors(tool, parser)) or f"the parser refused {graph}")
    return network, parser


def _parser_errors(tool: _Tool, parser: Any) -> Iterator[str]:
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        late = tool.name == "tensorrt" and tool.version < (10, 15) and error.node_operator() in _SINCE_10_15
        said = f"{error.node_operator()} '{error.node_name()}': {error.desc()}"
        yield f"{said} (tensorrt 10.15 is the first that takes it)" if late else said


def _allow_fallback(tool: _Tool, network: Any, config: Mapping[str, Any]) -> int:
    """Let an attention be split where no fused kernel exists, as in fp32; a no-op elsewhere. Answers their number."""
    count = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == tool.trt.LayerType.ATTENTION_INPUT:
            # The binding hands out the base class only.
            layer.__class__ = tool.trt.IAttentionInputLayer
            layer.attention.decomposable = config["decomposable_attention"]
            count += 1
    return count


def _configure(tool: _Tool, recipe: Mapping[str, Any], architecture: str, settings: Mapping[str, Any]) -> Any:
    config = tool.builder.create_builder_config()
    config.profiling_verbosity = getattr(tool.trt.ProfilingVerbosity, settings["profiling_verbosity"])
    if not settings["tf32"]:
        config.clear_flag(tool.trt.BuilderFlag.TF32)
    if tool.offered:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(tool.trt.ComputeCapability, architecture.upper()), 0)
    for shapes_of in filter(None, recipe["profiles"]):
        profile = tool.builder.create_optimization_profile()
        for name, shapes in shapes_of.items():
            profile.set_shape(name, *map(tuple, shapes))
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"the shapes {dict(shapes_of)} do not fit the graph's inputs")
    return config


def _compared(report: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """What was built, and whether it is what the recipe's lock holds for the same library and version."""
    said = "{file}: {bytes} bytes in {seconds} s by {library} {version}, sha256 {sha256}".format_map(report)
    locked = recipe.get("engines", {}).get(report["architecture"])
    if locked is None or any(recipe.get(key) != report[key] for key in ("library", "version")):
        return said
    return f"{said}, {'the same' if locked['sha256'] == report['sha256'] else 'NOT the same'} as in the lock"


def _write_whole(path: Path, content: bytes | memoryview) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise BuildError(f"cannot write {path}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _say(text: str, stream: Any = None) -> None:
    print(text, file=stream or sys.stdout, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
