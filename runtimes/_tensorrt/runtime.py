"""The TensorRT runtimes: one code path, and the choice of the library that compiles."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from runtimes._tensorrt.compile import Limits, compile_engines, probe
from runtimes._tensorrt.cuda import missing
from runtimes._tensorrt.decoder import EngineDecoder
from runtimes._tensorrt.devices import devices
from runtimes._tensorrt.job import BuiltEngine, Job, Profile
from runtimes._tensorrt.lowering import lower_graph
from runtimes._tensorrt.program import EngineProgram
from runtimes._tensorrt.session import EngineSession
from toolkit.errors import MissingDependencyError, StageError, UnsupportedError
from toolkit.types import (
    DEFAULT_OPTIONS,
    Decoder,
    DecoderSpec,
    Dim,
    Engine,
    LoweredGraph,
    ModelSpec,
    QuantizedGraph,
    Readiness,
    Samples,
    Session,
    TargetOptions,
)

__all__ = ["ARCHITECTURES", "TensorRT", "profiles_of"]

ARCHITECTURES = ("sm80", "sm86", "sm89", "sm120")
"""What is compiled for where the library needs no device: A100, RTX 30, RTX 40, RTX 50."""

Library = Literal["tensorrt", "tensorrt_rtx"]

_RTX: Library = "tensorrt_rtx"
_FIRST_VERSION = 11
_CHUNK = 512
"""The longest chunk of a prompt behind a past: what generation feeds at once."""
_INSTALL_RTX = "pip install 'tensorrt-rtx-cu13>=1.7'"
_INSTALL_TENSORRT = "pip install 'tensorrt-cu13>=11' --extra-index-url https://pypi.nvidia.com"
_STAND_IN = (
    "compiled by TensorRT-RTX in TensorRT's place: that its parser takes the graph does not prove that TensorRT 11's "
    "does, and the engine files run on the TensorRT-RTX runtime"
)


@dataclass(frozen=True, slots=True)
class _Builder:
    """The library that compiles here; `library` is None, and `reason` says why, where none does."""

    library: Library | None
    version: str
    reason: str


class TensorRT:
    """A TensorRT runtime. `name` is the runtime's; `libraries` are tried in order."""

    def __init__(self, name: str, libraries: tuple[Library, ...], limits: Limits | None = None) -> None:
        self._name, self._libraries, self._limits = name, libraries, limits

    def readiness(self) -> Readiness:
        """Builds where a library starts (TensorRT-RTX needs no GPU), runs where the driver shows a device."""
        builder, (found, no_device) = self._builder, devices()
        why = no_device or missing()
        device = f"{found[0].name} ({found[0].architecture})" if found else ""
        version = f"{builder.library} {builder.version}" if builder.library else ""
        reasons = [builder.reason, f"engines do not run: {why}" if why else ""]
        runs = builder.library is not None and not why
        return Readiness(builder.library is not None, runs, version, device, "; ".join(filter(None, reasons)))

    def lower(
        self,
        graph: QuantizedGraph,
        folder: Path,
        samples: Samples | None = None,
        options: TargetOptions = DEFAULT_OPTIONS,
    ) -> LoweredGraph:
        """Write what TensorRT's parser takes into `folder`.

        Raises UnsupportedError that names the nodes it would refuse or misread.
        """
        return lower_graph(graph, folder, self._name, samples, options)

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Compile one engine file an architecture beside the graph, in a process of its own.

        Raises StageError where the library refuses or crashes, or the int8 engine holds no int8 kernel.
        """
        builder, profiles = self._builder, profiles_of(graph.spec)
        if builder.library is None:
            command = _trtexec(graph.path, profiles)
            reason = f"{builder.reason}. On a machine with TensorRT: {command}"
            return Engine(graph, "graph-only", "none", reason=reason, details={"command": command})
        architectures = options.architectures or _architectures(builder.library)
        job = Job(builder.library, str(graph.path), str(graph.path.parent), architectures, profiles)
        built = compile_engines(job, self._limits or Limits(options.seconds, options.memory))
        _demand_int8(graph, built)
        return self._described(graph, builder, built)

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the engine file of this machine's device.

        Raises UnsupportedError where there is no device or no file for it, MissingDependencyError without the
        library, StageError where the file does not load.
        """
        return EngineSession(self._open(folder, engine))

    def _open(self, folder: Path, engine: Mapping[str, Any]) -> EngineProgram:
        found, why = devices()
        if not engine.get("files"):
            raise UnsupportedError(f"there is no {self._name} engine, only its graph: {engine.get('reason', '')}")
        if not found:
            raise UnsupportedError(f"a {self._name} engine needs an NVIDIA GPU: {why}")
        names = {Path(file).stem.removeprefix("engine-"): file for file in engine["files"]}
        if found[0].architecture not in names:
            raise UnsupportedError(
                f"no engine for {found[0].name} ({found[0].architecture})",
                hint=f"The bundle has: {', '.join(names)}. Export again on this machine.",
            )
        library = engine.get("details", {}).get("library", _RTX)
        return EngineProgram(folder / names[found[0].architecture], library, found[0])

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """The engine with its cache on the device; raises as `session` does."""
        return EngineDecoder(self._open(folder, engine), spec, limit=limit, rows=rows)

    @cached_property
    def _builder(self) -> _Builder:
        reasons: list[str] = []
        for library in self._libraries:
            version, reason = _try(library)
            if not reason:
                return _Builder(library, version, "; ".join([*reasons, *self._caveat(library)]))
            reasons.append(reason)
        return _Builder(None, "", "; ".join(reasons))

    def _caveat(self, library: Library) -> list[str]:
        return [_STAND_IN] if library != self._libraries[0] else []

    def _described(self, graph: LoweredGraph, builder: _Builder, built: list[BuiltEngine]) -> Engine:
        details = {
            "library": builder.library,
            "version": builder.version,
            "stands_in_for": self._libraries[0] if builder.library != self._libraries[0] else "",
            "engines": {engine.architecture: asdict(engine) for engine in built},
        }
        files = tuple(Path(engine.file) for engine in built)
        label = f"{builder.library} {builder.version}"
        unrun = self._unrun(graph.path.parent, files, details)
        reason = "; ".join(filter(None, [f"not run here: {unrun}" if unrun else "", builder.reason]))
        return Engine(graph, "built" if unrun else "executed", label, files, reason, details)

    def _unrun(self, folder: Path, files: tuple[Path, ...], details: Mapping[str, Any]) -> str:
        """Why the engine cannot be opened on this machine, or nothing."""
        try:
            self.session(folder, {"files": [str(file) for file in files], "details": details}).close()
        except UnsupportedError as error:
            return str(error)
        except MissingDependencyError as error:
            return f"{error} ({error.hint})"
        return ""


def profiles_of(spec: ModelSpec) -> tuple[dict[str, Profile], ...]:
    """The smallest, usual and largest shape of every input with a dynamic dimension, once for each way of use.

    A language model has three: prefill, with an empty cache; several tokens after a past, as chunks of a prompt and
    speculative decoding have; and decoding, one token after a past, the only one with TensorRT's single-query kernel.
    Raises StageError for a dimension without a range.
    """
    if spec.decoder is None:
        return (_profile(spec, spec.dims),)
    return tuple(_profile(spec, dims) for dims in _uses(spec.dims))


def _uses(dims: Mapping[str, Dim]) -> tuple[dict[str, Dim], ...]:
    sequence, total = dims["sequence"], dims["total_sequence"]
    longest = min(sequence.max, total.max)
    prompt = Dim(min(sequence.min, longest), min(sequence.opt, longest), longest)
    most = max(1, min(sequence.max, _CHUNK, total.max // 2))
    chunk = Dim(1, min(sequence.opt, most), most)
    behind = total.max - most
    long = Dim(1, min(max(total.opt - 1, 1), total.max - 1), total.max - 1)
    uses = [
        (prompt, Dim(0, 0, 0)),
        (chunk, Dim(1, min(chunk.opt, behind), behind)),
        (Dim(1, 1, 1), long),
    ]
    return tuple({**dims, **_lengths(new, past)} for new, past in uses if past.max or new is prompt)


def _lengths(new: Dim, past: Dim) -> dict[str, Dim]:
    """TensorRT checks the graph at each corner, so the whole must be the sum of its parts there."""
    whole = Dim(new.min + past.min, new.opt + past.opt, new.max + past.max)
    return {"sequence": new, "past_sequence": past, "total_sequence": whole}


def _profile(spec: ModelSpec, dims: Mapping[str, Dim]) -> dict[str, Profile]:
    dynamic = [tensor for tensor in spec.inputs if any(isinstance(dim, str) for dim in tensor.shape)]
    missing = {dim for tensor in dynamic for dim in tensor.shape if isinstance(dim, str) and dim not in dims}
    if missing:
        names = ", ".join(sorted(missing))
        raise StageError("build", f"no range for: {names}", hint="Give one as --dim batch=1:8:64.")

    def shape(sizes: tuple[int | str, ...], which: str) -> tuple[int, ...]:
        return tuple(int(getattr(dims[size], which)) if isinstance(size, str) else size for size in sizes)

    return {
        tensor.name: (shape(tensor.shape, "min"), shape(tensor.shape, "opt"), shape(tensor.shape, "max"))
        for tensor in dynamic
    }


def _try(library: Library) -> tuple[str, str]:
    """The version of a library that compiles here, or the reason why it does not."""
    if importlib.util.find_spec(library) is None:
        command = _INSTALL_RTX if library == _RTX else _INSTALL_TENSORRT
        return "", f"{library} is not installed ({command})"
    if library != _RTX and not devices()[0]:
        return "", f"{library} compiles on a GPU only: {devices()[1]}"
    version, reason = probe(library)
    if not reason and library != _RTX and int(version.partition(".")[0]) < _FIRST_VERSION:
        return "", f"{library} {version} is older than {_FIRST_VERSION} ({_INSTALL_TENSORRT})"
    return version, reason


def _architectures(library: Library) -> tuple[str, ...]:
    present = tuple(device.architecture for device in devices()[0][:1])
    if library != _RTX:
        return present
    return ARCHITECTURES + tuple(architecture for architecture in present if architecture not in ARCHITECTURES)


def _demand_int8(graph: LoweredGraph, built: list[BuiltEngine]) -> None:
    """A graph of int8 Linears whose engine computes none of them in int8 is a failure nobody would notice."""
    empty = [engine.architecture for engine in built if engine.int8_products == 0]
    # A language model is int8 in its weights only: its products run in half precision.
    if graph.scheme == "int8" and graph.spec.decoder is None and empty:
        raise StageError(
            "build",
            f"no matrix product runs in int8 on {', '.join(empty)}",
            hint="Export with the scheme fp16, or report the model: its Q/DQ nodes are not what TensorRT fuses.",
        )


def _trtexec(path: Path, profiles: tuple[Mapping[str, Profile], ...]) -> str:
    parts = [f"trtexec --onnx={path.name} --saveEngine=engine.plan"]
    for number, shapes_of in enumerate(profiles):
        parts += [f"--profile={number}"] if len(profiles) > 1 else []
        for index, flag in enumerate(("minShapes", "optShapes", "maxShapes")):
            shapes = ",".join(f"{name}:{'x'.join(map(str, profile[index]))}" for name, profile in shapes_of.items())
            parts += [f"--{flag}={shapes}"] if shapes else []
    return " ".join(parts)
