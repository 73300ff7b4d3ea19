"""The TensorRT runtimes: one code path, and the choice of the library that compiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from runtimes._tensorrt.architectures import refuse, suited
from runtimes._tensorrt.builder import LIBRARIES
from runtimes._tensorrt.compile import Limits, compile_engines
from runtimes._tensorrt.cuda import missing
from runtimes._tensorrt.decoder import open_decoder
from runtimes._tensorrt.devices import devices, driver_version
from runtimes._tensorrt.job import Job
from runtimes._tensorrt.libraries import RTX, Builder, Library, choose
from runtimes._tensorrt.lock import EngineLock, locked, write_lock
from runtimes._tensorrt.lowering import lower_graph
from runtimes._tensorrt.profiles import profiles_of
from runtimes._tensorrt.program import EngineProgram
from runtimes._tensorrt.rebuild import rebuild
from runtimes._tensorrt.script import tool_command, write_script
from runtimes._tensorrt.session import EngineSession
from toolkit.compiled import BuiltEngine, Rebuild, describe_built
from toolkit.errors import MissingDependencyError, StageError, UnsupportedError, UsageError
from toolkit.generation.static_cache import growing
from toolkit.types import (
    DEFAULT_OPTIONS,
    Decoder,
    DecoderSpec,
    Engine,
    LoweredGraph,
    QuantizedGraph,
    Readiness,
    Samples,
    Session,
    TargetOptions,
)

__all__ = ["ARCHITECTURES", "TensorRT", "profiles_of"]

ARCHITECTURES = ("sm80", "sm86", "sm89", "sm120")
"""What is compiled for where the library needs no device: A100, RTX 30, RTX 40, RTX 50."""

_PLAN = ".plan"


class TensorRT:
    """A TensorRT runtime. `name` is the runtime's; `libraries` are tried in order."""

    def __init__(self, name: str, libraries: tuple[Library, ...], limits: Limits | None = None) -> None:
        self._name, self._libraries, self._limits = name, libraries, limits

    def readiness(self) -> Readiness:
        """Builds where a library starts (TensorRT-RTX needs no GPU), runs where it compiles for the driver's device."""
        builder, (found, no_device) = self._builder, devices()
        why = no_device or missing() or _unserved(builder, found[0].architecture)
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
        architectures = self._architectures(graph.scheme, options)
        return lower_graph(graph, folder, self._name, samples, replace(options, architectures=architectures))

    def check_options(self, options: TargetOptions, scheme: str) -> None:
        """Raise UnsupportedError for an architecture that lacks the scheme's number type, or that the library lacks."""
        refuse(scheme, options.architectures)
        builder = self._builder
        odd = [name for name in options.architectures if builder.library and name not in builder.offered]
        if odd:
            raise UnsupportedError(
                f"{self._name}-{scheme}: {builder.library} {builder.version} does not compile for {', '.join(odd)}",
                hint=f"It compiles for: {', '.join(builder.offered)}.",
            )

    def build(self, graph: LoweredGraph, options: TargetOptions = DEFAULT_OPTIONS) -> Engine:
        """Compile one engine file an architecture beside the graph, each in a process of its own.

        The lock and the script that builds elsewhere go beside it too; where no library compiles here, they are all
        that there is. Raises StageError where the library refuses or crashes, or the int8 engine holds no int8 kernel;
        UnsupportedError where an architecture cannot run the scheme.
        """
        builder, profiles, folder = self._builder, profiles_of(graph.spec), graph.path.parent
        architectures = self._architectures(graph.scheme, options)
        built: list[BuiltEngine] = []
        if builder.library:
            job = Job(builder.library, str(graph.path), str(folder), architectures, profiles)
            built = compile_engines(job, self._limits or Limits(options.seconds, options.memory))
            _demand_int8(graph, built)
        lock = EngineLock(
            graph=graph.path.name,
            graph_sha256=graph.sha256,
            libraries=self._libraries,
            library=builder.library or "",
            version=builder.version,
            driver=driver_version(),
            profiles=profiles,
            architectures=architectures,
            engines=locked(built),
        )
        script, lock_file = write_script(folder), write_lock(folder, lock)
        command = tool_command(self._libraries[0], graph.path.name, profiles)
        carried = {"script": str(script), "lock": str(lock_file), "command": command}
        if builder.library:
            return self._described(graph, builder, built, carried)
        reason = f"{builder.reason}. Where TensorRT is: python {script}, or {command}"
        return Engine(graph, "graph-only", "none", (script, lock_file), reason, carried)

    def rebuild(self, folder: Path, options: TargetOptions = DEFAULT_OPTIONS) -> Rebuild:
        """Build the engines of the bundle in `folder` again and compare; see `runtimes._tensorrt.rebuild`."""
        return rebuild(folder, self._limits or Limits(options.seconds, options.memory))

    def session(self, folder: Path, engine: Mapping[str, Any]) -> Session:
        """Open the engine file of this machine's device.

        Raises UnsupportedError where there is no device or no file for it, MissingDependencyError without the
        library, StageError where the file does not load, UsageError where the entry names no such library.
        """
        return growing(EngineSession(self._open(folder, engine)))

    def _open(self, folder: Path, engine: Mapping[str, Any]) -> EngineProgram:
        found, why = devices()
        names = {Path(file).stem.removeprefix("engine-"): file for file in engine["files"] if file.endswith(_PLAN)}
        if not names:
            raise UnsupportedError(f"there is no {self._name} engine, only its graph: {engine.get('reason', '')}")
        if not found:
            raise UnsupportedError(f"a {self._name} engine needs an NVIDIA GPU: {why}")
        if found[0].architecture not in names:
            raise UnsupportedError(
                f"no engine for {found[0].name} ({found[0].architecture})",
                hint=f"The bundle has: {', '.join(names)}. Export again with --arch {found[0].architecture}.",
            )
        library = engine.get("details", {}).get("library", RTX)
        # The manifest may be a stranger's, and this is a module to import.
        if library not in LIBRARIES:
            raise UsageError(
                f"the engine's entry names a library that is not known: '{library}'",
                hint="The bundle's manifest is damaged; export it again.",
            )
        return EngineProgram(folder / names[found[0].architecture], library, found[0])

    def decoder(self, folder: Path, engine: Mapping[str, Any], spec: DecoderSpec, *, limit: int, rows: int) -> Decoder:
        """The engine with its cache on the device; raises as `session` does."""
        return open_decoder(self._open(folder, engine), spec, limit=limit, rows=rows)

    def _architectures(self, scheme: str, options: TargetOptions) -> tuple[str, ...]:
        """What was asked for, or the usual ones that can run the scheme."""
        own = options.architectures or _architectures(self._builder)
        chosen = suited(scheme, own)
        # Whoever asked for one that cannot is told; where nobody asked, only a lone device that is too old is an error.
        if options.architectures or not chosen:
            refuse(scheme, own)
        return chosen

    @cached_property
    def _builder(self) -> Builder:
        return choose(self._libraries)

    def _described(
        self, graph: LoweredGraph, builder: Builder, built: list[BuiltEngine], carried: Mapping[str, str]
    ) -> Engine:
        details = {
            "library": builder.library,
            "version": builder.version,
            "stands_in_for": self._libraries[0] if builder.library != self._libraries[0] else "",
            **carried,
            "engines": {engine.architecture: engine.as_json() for engine in built},
        }
        files = tuple(map(Path, (*(engine.file for engine in built), carried["script"], carried["lock"])))
        label = f"{builder.library} {builder.version}"
        unrun = self._unrun(graph.path.parent, files, details)
        reason = "; ".join(filter(None, [f"not run here: {unrun}" if unrun else "", builder.reason]))
        said = describe_built(built)
        return Engine(graph, "built" if unrun else "executed", label, files, reason, details, said)

    def _unrun(self, folder: Path, files: tuple[Path, ...], details: Mapping[str, Any]) -> str:
        """Why the engine cannot be opened on this machine, or nothing."""
        try:
            self.session(folder, {"files": [str(file) for file in files], "details": details}).close()
        except UnsupportedError as error:
            return str(error)
        except MissingDependencyError as error:
            return f"{error} ({error.hint})"
        return ""


def _unserved(builder: Builder, architecture: str) -> str:
    """Why no engine can be compiled for the device, as for an H100 with TensorRT-RTX, or nothing."""
    if builder.library is None or architecture in builder.offered:
        return ""
    return f"{builder.library} {builder.version} does not compile for {architecture}"


def _architectures(builder: Builder) -> tuple[str, ...]:
    """Those of this machine and, where the library needs no device for it, the usual ones."""
    present = tuple(device.architecture for device in devices()[0][:1])
    if builder.library not in (None, RTX):
        return present
    usual = tuple(name for name in ARCHITECTURES if builder.library is None or name in builder.offered)
    here = tuple(name for name in present if name not in usual and (not builder.offered or name in builder.offered))
    return usual + here


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
