"""Opening what a bundle holds: its engine on its own runtime, or the graph it was built from on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toolkit import plugins
from toolkit.compiled import Interprets
from toolkit.errors import MissingDependencyError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle
    from toolkit.types import Decoder, DecoderSpec, Session

__all__ = [
    "ON_CPU",
    "EngineOrGraph",
    "context_of",
    "decoder_spec",
    "longest_chunk",
    "open_decoder",
    "open_engine",
    "open_graph",
]

ON_CPU = "With --on-cpu the very graph it was built from runs on ONNX Runtime's CPU provider."
_CPU_RUNTIME = "ort-cpu"
"""Its engine is a graph on that provider, in whose own arithmetic it is measured."""


def open_engine(bundle: Bundle, *, otherwise: str = ON_CPU) -> Session:
    """The engine on the bundle's runtime.

    Where it cannot run, raises UnsupportedError with the runtime's reason and with `otherwise` in the hint.
    """
    runtime, entry = bundle.manifest.target.runtime, bundle.manifest.engine_mapping()
    with _explained(bundle, otherwise):
        return plugins.runtime(runtime).session(bundle.folder, entry)


def open_graph(bundle: Bundle) -> Session:
    """The graph that the engine was built from, on ONNX Runtime's CPU provider, rounded as the engine rounds it."""
    from runtimes import portable_session

    rounded = bundle.manifest.target.runtime != _CPU_RUNTIME
    return portable_session(bundle.path(bundle.manifest.graph), rounded=rounded, spec=bundle.manifest.spec())


class EngineOrGraph:
    """Opens what a bundle is verified by: its engine where it runs here or can be read back, else the graph behind it.

    An engine that was executed when it was exported is not replaced in silence: where it cannot run, opening raises
    as `open_engine` does, unless `on_cpu` asks for the graph. Once opened, `executes` and `interprets` say which it
    was, and `reason` why an engine that was only built did not run.
    """

    def __init__(self, bundle: Bundle, *, on_cpu: bool) -> None:
        self._bundle, self._on_cpu = bundle, on_cpu
        self.executes, self.interprets, self.reason = False, False, ""

    def open(self) -> Session:
        """The session; the caller closes it."""
        status = self._bundle.manifest.engine.status
        if self._on_cpu or status == "graph-only":
            return open_graph(self._bundle)
        try:
            session = open_engine(self._bundle)
        except (UnsupportedError, MissingDependencyError) as error:
            if status == "executed":
                raise
            # Without what `open_engine` puts before the runtime's own words.
            self.reason = str(error.__cause__ if isinstance(error.__cause__, UnsupportedError) else error)
            return self._read_back() or open_graph(self._bundle)
        self.executes = True
        return session

    def _read_back(self) -> Session | None:
        """The engine as its runtime reads it back, where that can."""
        runtime = plugins.runtime(self._bundle.manifest.target.runtime)
        if self._bundle.manifest.engine.status != "built" or not isinstance(runtime, Interprets):
            return None
        try:
            session = runtime.interpret(self._bundle.folder, self._bundle.manifest.engine_mapping())
        except MissingDependencyError as error:
            self.reason = f"{self.reason}; {error}"
            return None
        self.interprets = True
        return session


def open_decoder(bundle: Bundle, *, limit: int, rows: int, on_cpu: bool = False, otherwise: str = ON_CPU) -> Decoder:
    """The language model on the bundle's runtime, with a cache for `rows` rows of `limit` positions.

    With `on_cpu` the graph it was built from, on ONNX Runtime's CPU provider. Raises UsageError for a bundle of
    another kind or more rows than it was exported for, and where it cannot run as `open_engine` does.
    """
    spec, entry = decoder_spec(bundle), bundle.manifest.engine_mapping()
    batch = bundle.manifest.dims.get("batch")
    if batch is not None and not batch.min <= rows <= batch.max:
        raise UsageError(
            f"{rows} prompts at once; {bundle.folder} was exported for {batch.min} to {batch.max}",
            hint=f"Give them in several runs, or export again with --dim batch={batch.min}:{batch.opt}:{rows}.",
        )
    runtime = _CPU_RUNTIME if on_cpu else bundle.manifest.target.runtime
    with _explained(bundle, otherwise):
        return plugins.runtime(runtime).decoder(bundle.folder, entry, spec, limit=limit, rows=rows)


def decoder_spec(bundle: Bundle) -> DecoderSpec:
    """What generation needs to know of the model. Raises UsageError for a bundle of another kind."""
    spec = bundle.manifest.spec()
    if spec.decoder is None:
        raise UsageError(
            f"{bundle.folder} holds no language model, its kind is {spec.kind}",
            hint="Give a bundle whose kind is decoder; `toolkit inspect BUNDLE` tells.",
        )
    return spec.decoder


def context_of(bundle: Bundle) -> int:
    """The most positions of a row: what the model was made for, or the bundle was exported for if that is less."""
    exported = bundle.manifest.dims.get("total_sequence")
    own = decoder_spec(bundle).context
    return min(own, exported.max) if exported else own


def longest_chunk(bundle: Bundle) -> int:
    """How many positions of a prompt the bundle's engine takes at a time."""
    exported = bundle.manifest.dims.get("sequence")
    return exported.max if exported else context_of(bundle)


@contextmanager
def _explained(bundle: Bundle, otherwise: str) -> Iterator[None]:
    try:
        yield
    except UnsupportedError as error:
        message = f"the {bundle.manifest.target.runtime} engine of {bundle.folder} cannot run here: {error}"
        raise UnsupportedError(message, hint=" ".join(filter(None, [otherwise, error.hint]))) from error
