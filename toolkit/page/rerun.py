"""A bundle's golden inputs run once more for the page: its drift here and now, and how its error is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import CHECK
from toolkit.bundle.read import Bundle, golden
from toolkit.compare.result import Histogram
from toolkit.drift.measure import measure, observe
from toolkit.drift.padding import at_attended
from toolkit.drift.report import StageDrift
from toolkit.errors import MissingDependencyError, UnsupportedError
from toolkit.sessions import EngineOrGraph, open_graph
from toolkit.types import ModelSpec, Session, Tensors

__all__ = ["ErrorStatistics", "Rerun", "error_statistics", "rerun"]

_BINS = 41
"""Odd, so that one interval is centred on no error."""


@dataclass(frozen=True, slots=True)
class ErrorStatistics:
    """The error of one output, candidate less reference, over all attended values, in the output's own unit."""

    output: str
    count: int
    mean: float
    rms: float
    peak: float
    histogram: Histogram


@dataclass(frozen=True, slots=True)
class Rerun:
    """What was measured for the page; `told` says on what, and `failure` why there is no error to show."""

    told: str
    drift: StageDrift | None = None
    error: ErrorStatistics | None = None
    failure: str = ""


def rerun(bundle: Bundle) -> Rerun:
    """Golden inputs through the engine where it runs here, else through its graph on the CPU, under `check`'s gate.

    The bundle must be whole. Held-out data is not run: its task metric is in the drift report.
    """
    session, told = _open(bundle)
    spec = bundle.manifest.spec()
    inputs, expected = golden(bundle)
    try:
        answers = observe(session, inputs)
    finally:
        session.close()
    drift = measure(
        CHECK, session.ran_on, expected, answers, spec, inputs=inputs, gate=bundle.manifest.check_gate
    )  # fmt: skip
    first = drift.outputs[0]
    if first.failure:
        return Rerun(told, drift, failure=f"'{first.name}' {first.failure}")
    return Rerun(told, drift, error_statistics(first.name, expected, answers, inputs, spec))


def error_statistics(
    output: str, expected: Sequence[Tensors], answers: Sequence[Tensors], inputs: Sequence[Tensors], spec: ModelSpec
) -> ErrorStatistics:
    """The distribution of one output's error in equal intervals around zero; padded positions are left out."""
    everywhere = [{output: np.ones(batch[output].shape, np.float32)} for batch in expected]
    attended = at_attended(everywhere, inputs, spec)
    error = np.concatenate(
        [
            (answer[output].astype(np.float64) - batch[output].astype(np.float64))[mask[output] != 0]
            for batch, answer, mask in zip(expected, answers, attended, strict=True)
        ]
    )
    peak = float(np.abs(error).max(initial=0.0))
    return ErrorStatistics(
        output=output,
        count=error.size,
        mean=float(error.mean()) if error.size else 0.0,
        rms=float(np.sqrt(np.mean(error**2))) if error.size else 0.0,
        peak=peak,
        histogram=_histogram(error, peak),
    )


def _histogram(error: NDArray[Any], peak: float) -> Histogram:
    counts, edges = np.histogram(error, bins=_BINS, range=(-peak, peak) if peak else (-0.5, 0.5))
    return Histogram(edges=tuple(map(float, edges)), counts=tuple(map(int, counts)))


def _open(bundle: Bundle) -> tuple[Session, str]:
    choice = EngineOrGraph(bundle, on_cpu=False)
    try:
        session = choice.open()
    except (UnsupportedError, MissingDependencyError) as error:
        session = open_graph(bundle)
        return session, f"The engine could not run here ({error}); its graph ran on {session.ran_on}"
    if choice.interprets:
        return session, f"The saved engine was read back here and run by the {session.ran_on}"
    if not choice.executes:
        return session, f"Run again here: its graph, on {session.ran_on}"
    first = " for the first time" if bundle.manifest.engine.status == "built" else " again"
    return session, f"The engine ran here{first}, on {session.ran_on}"
