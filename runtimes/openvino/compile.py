"""Building: the intermediate representation written beside the graph, compiled for this processor, and run once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.openvino.library import CPU, as_stage_error, core, library, readiness, version
from runtimes.openvino.lowering import ATTENTION
from runtimes.openvino.products import demand, kernels_of, quantized_products
from runtimes.openvino.session import ENGINE_FILE, OpenVinoSession
from toolkit.types import Engine, LoweredGraph, ModelSpec, Tensors

__all__ = ["build_engine"]

_WEIGHTS_FILE = "model.bin"


def build_engine(graph: LoweredGraph) -> Engine:
    """Status `executed`, or `graph-only` with the reason where the library is not here.

    Raises StageError where OpenVINO refuses the graph or a quantized product does not run in int8.
    """
    ready = readiness()
    if not ready.build:
        return Engine(graph, "graph-only", "none", reason=ready.reason)
    folder = graph.path.parent
    _save(graph.path, folder / ENGINE_FILE)
    session = OpenVinoSession(folder / ENGINE_FILE, graph.spec.inputs)
    try:
        kernels = kernels_of(session.compiled)
        demand(quantized_products(graph.path), kernels)
        session.run(_zeros(graph.spec))
    finally:
        session.close()
    files = (Path(ENGINE_FILE), Path(_WEIGHTS_FILE))
    attentions = sum(step.count for step in graph.steps if step.what == ATTENTION)
    details = {
        "ran_on": session.ran_on,
        "products": dict(kernels.products),
        "fused_attentions": kernels.attentions,
        "attentions": attentions,
        "inputs": [asdict(item) for item in graph.spec.inputs],
        "bytes": sum((folder / name).stat().st_size for name in files),
    }
    fused = f", {kernels.attentions} of {attentions} attentions fused" if attentions else ""
    return Engine(graph, "executed", version(), files, details=details, said=f"for {CPU}: {kernels.said}{fused}")


def _save(source: Path, target: Path) -> None:
    with as_stage_error("build", f"cannot read {source.name}"):
        model: Any = core().read_model(source)
        library().save_model(model, target, compress_to_fp16=False)


def _zeros(spec: ModelSpec) -> Tensors:
    """Zeros at the smallest sizes; a language model's mask is as long as its past and its new tokens together."""
    sizes = {name: dim.min for name, dim in spec.dims.items()}
    if spec.decoder is not None:
        sizes["total_sequence"] = sizes["past_sequence"] + sizes["sequence"]
    return {
        item.name: np.zeros([sizes[dim] if isinstance(dim, str) else dim for dim in item.shape], item.dtype)
        for item in spec.inputs
    }
