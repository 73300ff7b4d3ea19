"""Opening what a bundle holds: its engine on its own runtime, or the graph it was built from on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle
    from toolkit.types import Decoder, DecoderSpec, Session

__all__ = ["ON_CPU", "context_of", "decoder_spec", "longest_chunk", "open_decoder", "open_engine", "open_graph"]

ON_CPU = "With --on-cpu the very graph it was built from runs on ONNX Runtime's CPU provider."


def open_engine(bundle: Bundle, *, otherwise: str = ON_CPU) -> Session:
    """The engine on the bundle's runtime.

    Where it cannot run, raises UnsupportedError with the runtime's reason and with `otherwise` in the hint.
    """
    runtime, entry = bundle.manifest.target.runtime, bundle.manifest.engine_mapping()
    with _explained(bundle, otherwise):
        return plugins.runtime(runtime).session(bundle.folder, entry)


def open_graph(bundle: Bundle) -> Session:
    """The graph that the engine was built from, on ONNX Runtime's CPU provider."""
    from runtimes import portable_session

    return portable_session(bundle.path(bundle.manifest.graph))


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
    runtime = "ort-cpu" if on_cpu else bundle.manifest.target.runtime
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
