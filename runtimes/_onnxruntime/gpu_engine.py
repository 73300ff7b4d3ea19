"""Engines of the GPU providers: opened with the options that the manifest records, refused where they cannot run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from runtimes._onnxruntime.engine import BUILDER, executed_engine, files_of
from runtimes._onnxruntime.gpu import blocker, device_name
from runtimes._onnxruntime.provider_options import ProviderOptions
from runtimes._onnxruntime.session import OrtSession
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import Engine, LoweredGraph, Readiness

__all__ = ["OPTIONS_ENTRY", "build_on_gpu", "readiness_of", "recorded", "refuse_without"]

OPTIONS_ENTRY = "provider_options"
"""Where an engine's details hold the options, by provider."""

Options = TypeVar("Options", bound=ProviderOptions)


def readiness_of(provider: str, device: int) -> Readiness:
    """Whether a session starts on the provider here, and what the driver calls its device of that number."""
    reason = blocker(provider)
    return Readiness(not reason, not reason, BUILDER, "" if reason else device_name(device), reason)


def build_on_gpu(
    graph: LoweredGraph, provider: str, details: Mapping[str, Any], open_session: Callable[[], OrtSession]
) -> Engine:
    """Open and run the graph; where the provider cannot start the engine is `graph-only` and carries the reason.

    Raises StageError where there is a GPU and the graph does not run on it.
    """
    reason = blocker(provider)
    if reason:
        return Engine(graph, "graph-only", BUILDER, files_of(graph), reason=reason, details=details)
    session = open_session()
    try:
        return executed_engine(graph, session, {**details, "placement": session.placement})
    finally:
        session.close()


def recorded(kind: type[Options], engine: Mapping[str, Any], default: Options) -> Options:
    """The provider's options that the engine's entry holds; `default` for an entry without.

    Raises UsageError for one that is no option, as a manifest changed by hand may hold.
    """
    entry = engine.get("details", {}).get(OPTIONS_ENTRY, {})
    if kind.PROVIDER not in entry:
        return default
    if not isinstance(entry[kind.PROVIDER], Mapping):
        raise UsageError(
            f"the options of {kind.PROVIDER} in the engine's entry are no mapping",
            hint="The bundle's manifest is damaged; export it again.",
        )
    return kind.from_mapping(entry[kind.PROVIDER])


def refuse_without(provider: str, runtime: str) -> None:
    """Raise UnsupportedError with the reason where the provider cannot start here."""
    reason = blocker(provider)
    if reason:
        raise UnsupportedError(f"{runtime} cannot run here: {reason}", hint="`ort-cpu` runs everywhere.")
