"""How far bundles are from eager fp32 PyTorch on held-out data: `python benchmarks/int8_drift.py BUNDLE...`.

One row for each output: relative L2, SQNR and cosine over all of its numbers together, padded positions left out.
What is measured is what `toolkit check` measures: the engine where it runs here, the graph of one that was compiled for
a device that is not here. `--on-cpu` measures the graph of any, on ONNX Runtime's CPU provider.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from held_out import held_out
from numpy.typing import NDArray

from exporters.reference import TorchSession
from toolkit import plugins
from toolkit.bundle.read import open_bundle
from toolkit.drift import metrics
from toolkit.drift.measure import observe
from toolkit.drift.padding import at_attended
from toolkit.errors import ToolkitError
from toolkit.sessions import EngineOrGraph
from toolkit.types import ModelSpec, Session, Tensors

__all__ = ["drift"]

_COLUMNS = ("bundle", "output", "relative L2", "SQNR dB", "cosine", "ran on", "data", "sha256")


def drift(
    spec: ModelSpec, batches: Sequence[Tensors], reference: Sequence[Tensors], candidate: Sequence[Tensors]
) -> dict[str, metrics.Moments]:
    """What each output's error amounts to over all batches. Raises UsageError where it cannot be compared."""
    left, right = (at_attended(answers, batches, spec) for answers in (reference, candidate))
    return {item.name: metrics.moments(_flat(left, item.name), _flat(right, item.name)) for item in spec.outputs}


def _flat(answers: Sequence[Tensors], name: str) -> NDArray[Any]:
    return np.concatenate([answer[name].reshape(-1) for answer in answers])


def main() -> int:
    """Print the table; 1 if any bundle could not be measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=4, help="batch size")
    parser.add_argument("--on-cpu", action="store_true", help="measure the engines' graphs instead")
    options = parser.parse_args()
    print(f"| {' | '.join(_COLUMNS)} |\n|{'---|' * len(_COLUMNS)}", flush=True)
    return max([_measure(folder, options.rows, on_cpu=options.on_cpu) for folder in options.bundles])


def _measure(folder: Path, rows: int, *, on_cpu: bool) -> int:
    try:
        bundle = open_bundle(folder)
        spec = bundle.manifest.spec()
        data = held_out(spec, rows)
        batches = list(data.batches())
        reference = _answers(TorchSession(plugins.family(spec.family).load(spec)), batches)
        session = EngineOrGraph(bundle, on_cpu=on_cpu).open()
        moved = drift(spec, batches, reference, _answers(session, batches))
    except ToolkitError as error:
        print(f"{folder}: {error} {error.hint}", file=sys.stderr)
        return 1
    for name, sums in moved.items():
        cells = (f"{sums.relative_l2:.4f}", f"{sums.sqnr_db:.1f}", f"{sums.cosine:.5f}", session.ran_on)
        print(f"| {' | '.join((bundle.folder.name, name, *cells, data.source, data.sha256[:8]))} |", flush=True)
    return 0


def _answers(session: Session, batches: Sequence[Tensors]) -> list[dict[str, NDArray[Any]]]:
    try:
        return observe(session, batches)
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
