"""Running the graphs before and after the model on their samples again, as every self-test does."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.bundle.manifest import ProcessingEntry
from toolkit.bundle.processing import GRAPHS, SAMPLES, Place
from toolkit.bundle.read import Bundle
from toolkit.bundle.testdata import read_sets
from toolkit.errors import DriftError, StageError
from toolkit.processing import EXTENSIONS, extensions_library
from toolkit.types import Tensors

__all__ = ["Replayed", "raise_if_moved", "replay"]

_MODULES = {EXTENSIONS: "onnxruntime_extensions"}


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a graph's samples: `equal`, `differs`, `inexact` (differs, as the manifest says) or `skipped`."""

    place: Place
    samples: int
    verdict: Literal["equal", "differs", "inexact", "skipped"]
    reason: str = ""

    def __str__(self) -> str:
        said = f"{self.place} {self.samples} sample{'' if self.samples == 1 else 's'} {self.verdict}"
        told = f"{self.place} skipped" if self.verdict == "skipped" else said
        return f"{told}: {self.reason}" if self.reason else told


def replay(bundle: Bundle) -> list[Replayed]:
    """Run what the bundle has of such graphs on ONNX Runtime's CPU provider, and compare as `docs/selftest.md` says.

    Integers and texts must be equal, floats within the entry's `bound`. A graph whose libraries are not installed is
    skipped. Raises StageError where a graph does not open or run.
    """
    entries = {"preprocess": bundle.manifest.preprocess, "postprocess": bundle.manifest.postprocess}
    return [_replayed(bundle, place, entry) for place in GRAPHS if (entry := entries[place]) and entry.graph]


def raise_if_moved(replayed: Sequence[Replayed]) -> None:
    """Raise DriftError that names each graph which no longer gives what it gave."""
    moved = [str(one) for one in replayed if one.verdict == "differs"]
    if moved:
        raise DriftError("; ".join(moved), hint="Another ONNX Runtime computes otherwise; export the bundle with it.")


def _replayed(bundle: Bundle, place: Place, entry: ProcessingEntry) -> Replayed:
    given, expected = read_sets(bundle.folder, SAMPLES[place])
    if not given:
        raise StageError(place, "the bundle holds no samples to check it on", hint="Export it again.")
    lacking = [name for name in ("onnxruntime", *entry.needs) if not _is_here(name)]
    if lacking:
        return Replayed(place, len(given), "skipped", f"{', '.join(lacking)} not installed")
    try:
        differing = list(_differing(bundle, entry, given, expected))
    except Exception as error:
        raise StageError(place, f"{entry.graph} does not run: {error}") from error
    if not differing:
        return Replayed(place, len(given), "equal")
    return Replayed(place, len(given), "differs" if entry.exact else "inexact", "; ".join(differing))


def _is_here(library: str) -> bool:
    return importlib.util.find_spec(_MODULES.get(library, library)) is not None


def _differing(
    bundle: Bundle, entry: ProcessingEntry, given: Sequence[Tensors], expected: Sequence[Tensors]
) -> Iterator[str]:
    session = _session(bundle, entry)
    for number, (inputs, outputs) in enumerate(zip(given, expected, strict=True)):
        lost = [spec.name for spec in entry.outputs if spec.name not in outputs]
        yield from (f"'{name}' of sample {number} is not there" for name in lost)
        made = session.run(list(outputs), dict(inputs))
        for name, answer in zip(outputs, made, strict=True):
            if reason := _difference(np.asarray(answer), outputs[name], entry.bound):
                yield f"'{name}' of sample {number} {reason}"


def _session(bundle: Bundle, entry: ProcessingEntry) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    if EXTENSIONS in entry.needs:
        options.register_custom_ops_library(extensions_library())
    return ort.InferenceSession(bundle.path(str(entry.graph)), options, providers=["CPUExecutionProvider"])


def _difference(made: NDArray[Any], expected: NDArray[Any], bound: float) -> str:
    if made.shape != expected.shape:
        return f"is {list(made.shape)}, it was {list(expected.shape)}"
    if expected.dtype.kind != "f":
        odd = int((made != expected).sum())
        return f"differs in {odd} of {expected.size} values" if odd else ""
    off = float(np.abs(made.astype(np.float64) - expected).max(initial=0.0))
    return "" if off <= bound else f"differs by {off:.3g}, the bound is {bound:.3g}"
