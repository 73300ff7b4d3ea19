"""Verifying a bundle again from its own files, as `toolkit check` does."""

from __future__ import annotations

from collections.abc import Callable

from toolkit import plugins
from toolkit.bundle.manifest import CHECK
from toolkit.bundle.read import Bundle, evaluation, golden, report, verify_hashes
from toolkit.compiled import Rebuild, Rebuilds
from toolkit.drift.measure import judged, measure, observe
from toolkit.drift.report import DriftReport, StageDrift
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.types import Session, TargetOptions

__all__ = ["check", "describe_status", "raise_if_different", "rebuild", "require_unchanged"]


def check(bundle: Bundle, session: Callable[[], Session]) -> DriftReport:
    """Hashes first, then golden inputs and evaluation through the session against the stored reference outputs.

    `session` opens one once the bundle is known to be whole; it is closed again. The report has one stage, `check`,
    under the manifest's gate for it; it may say that it did not pass.
    Raises UsageError when any file of the bundle is not what was written.
    """
    require_unchanged(bundle)
    opened = session()
    try:
        return DriftReport.of(report(bundle).reference, [_measured(bundle, opened)])
    finally:
        opened.close()


def rebuild(bundle: Bundle, options: TargetOptions) -> Rebuild:
    """Hashes first, then each engine built again from the bundle's own graph and compared.

    Raises UsageError when any file of the bundle is not what was written or the engines are of another graph than
    the bundle's, UnsupportedError where nothing was compiled or it cannot be compiled again here.
    """
    require_unchanged(bundle)
    runtime = plugins.runtime(bundle.manifest.target.runtime)
    if not isinstance(runtime, Rebuilds):
        raise _not_again(bundle)
    rebuilt = runtime.rebuild(bundle.folder, options)
    # Drift is measured on the manifest's graph: an engine of another one would be an engine of another model.
    if rebuilt.graph != bundle.manifest.graph:
        raise UsageError(
            f"the engines of {bundle.folder} are of {rebuilt.graph}, its graph is {bundle.manifest.graph}",
            hint="Do not use this bundle; it may be forged.",
        )
    return rebuilt


def raise_if_different(rebuilt: Rebuild) -> None:
    """Raise StageError that names each engine whose bytes are not those of the bundle."""
    differing = [
        f"{entry.file} has {entry.bytes} bytes and SHA-256 {entry.sha256}, the bundle's {entry.locked_bytes} and "
        f"{entry.locked_sha256}"
        for entry in rebuilt.files
        if not entry.same
    ]
    if differing:
        raise StageError(
            "rebuild",
            f"built again by {rebuilt.builder}, it is another engine: {'; '.join(differing)}",
            hint="A builder that times kernels on its GPU may choose others each time; else do not trust this bundle.",
        )


def _measured(bundle: Bundle, session: Session) -> StageDrift:
    spec = bundle.manifest.spec()
    inputs, expected = golden(bundle)
    held_out, held_out_expected = evaluation(bundle) or (None, [])
    return measure(
        CHECK,
        session.ran_on,
        expected,
        observe(session, inputs),
        spec,
        inputs=inputs,
        gate=bundle.manifest.check_gate,
        evaluation=held_out,
        evaluation_reference=held_out_expected,
        evaluation_candidate=judged(session, held_out, spec),
    )


def require_unchanged(bundle: Bundle) -> None:
    """Raise UsageError naming each file that changed, is missing or was added; call it before any session."""
    problems = verify_hashes(bundle)
    if problems:
        raise UsageError(
            f"{bundle.folder} is not as it was written: {'; '.join(problems)}",
            hint="Fetch the bundle again, or write it anew with toolkit export.",
        )


def describe_status(bundle: Bundle, ran_on: str, *, executes: bool, interprets: bool = False) -> str:
    """One sentence on what drift was measured on: the engine itself, run or read back, or the graph it was made of."""
    engine = bundle.manifest.engine
    why = f" ({engine.reason})" if engine.reason else ""
    if engine.status == "executed":
        return f"The engine by {engine.builder} was executed when it was exported; drift is that of {ran_on}."
    if executes:
        return (
            f"The engine was compiled by {engine.builder} where it could not run; it has run here now, and drift is "
            f"that of {ran_on}."
        )
    if interprets:
        return (
            f"The engine was compiled by {engine.builder}; drift is that of its saved files, read back and run by the "
            f"{ran_on}."
        )
    if engine.status == "built":
        return (
            f"The engine was compiled by {engine.builder} but has not run{why}; "
            f"drift is that of the graph it was compiled from, on {ran_on}."
        )
    return f"There is no engine, only its graph{why}; drift is that of the graph, on {ran_on}."


def _not_again(bundle: Bundle) -> UnsupportedError:
    """What is said of a runtime that cannot build its engines again: it made none, or none that can be compared."""
    name, files = bundle.manifest.target.runtime, bundle.manifest.engine.files
    if files and bundle.manifest.graph not in files:
        message = f"the engine of {bundle.folder} cannot be built again and compared: {name} has no way to"
    else:
        message = f"nothing was compiled for {bundle.folder}: {name} runs the graph itself"
    return UnsupportedError(message, hint="toolkit check without --rebuild verifies its files and measures its drift.")
