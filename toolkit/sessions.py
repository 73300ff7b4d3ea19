"""Opening what a bundle holds: its engine on its own runtime, or the graph it was built from on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from toolkit import plugins
from toolkit.errors import UnsupportedError

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle
    from toolkit.types import Session

__all__ = ["ON_CPU", "open_engine", "open_graph"]

ON_CPU = "With --on-cpu the very graph it was built from runs on ONNX Runtime's CPU provider."


def open_engine(bundle: Bundle, *, otherwise: str = ON_CPU) -> Session:
    """The engine on the bundle's runtime.

    Where it cannot run, raises UnsupportedError with the runtime's reason and with `otherwise` in the hint.
    """
    runtime, entry = bundle.manifest.target.runtime, bundle.manifest.engine_mapping()
    try:
        return plugins.runtime(runtime).session(bundle.folder, entry)
    except UnsupportedError as error:
        message = f"the {runtime} engine of {bundle.folder} cannot run here: {error}"
        raise UnsupportedError(message, hint=" ".join(filter(None, [otherwise, error.hint]))) from error


def open_graph(bundle: Bundle) -> Session:
    """The graph that the engine was built from, on ONNX Runtime's CPU provider."""
    from runtimes import portable_session

    return portable_session(bundle.path(bundle.manifest.graph))
