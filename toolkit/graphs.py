"""The model and its graphs by what a plan says: what the line, comparisons and searches make alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters import DEFAULT_OPSET
from model_zoo import packed_weights
from toolkit import plugins

if TYPE_CHECKING:
    from torch.nn import Module

    from toolkit.plan import Plan
    from toolkit.progress import Row
    from toolkit.target import Target
    from toolkit.types import ExportedGraph, ModelSpec, QuantizedGraph, Samples, Tensors

__all__ = ["export_module", "load_module", "quantize_graph", "sample_of"]


def load_module(plan: Plan, row: Row) -> Any:
    """The fp32 PyTorch model, loaded anew; the row says what it is."""
    spec = plan.spec
    module = plugins.family(spec.family).load(spec)
    row.said = f"{spec.architecture}, {spec.weights} weights from {spec.source}"
    return module


def export_module(
    module: Module,
    plan: Plan,
    golden: tuple[Tensors, ...],
    folder: Path,
    traced: Callable[[], object] = lambda: None,
) -> ExportedGraph:
    """The module as its canonical graph in `folder`, by what the plan says. Raises as the export stage does.

    `traced` is called when only writing is left to do.
    """
    from exporters.torch_export import export

    request = plan.request
    return export(
        module,
        plan.spec,
        sample_of(golden, plan.spec),
        folder,
        opset=request.opset or DEFAULT_OPSET,
        allow_unfused=request.allow_unfused,
        traced=traced,
    )


def quantize_graph(
    exported: ExportedGraph, plan: Plan, target: Target, folder: Path, samples: Samples
) -> QuantizedGraph:
    """The graph in the target's precision, by the plan's recipe; `samples` are read where the recipe measures."""
    from quantize import quantize

    recipe = plan.recipe(target)
    calibration = samples() if recipe.measured_by else None
    return quantize(exported, target.scheme, calibration, folder, packed_weights(plan.spec), recipe)


def sample_of(golden: tuple[Tensors, ...], spec: ModelSpec) -> Tensors:
    """torch.export takes a size of 0 or 1 for a constant: rather a batch where no dynamic size is, as one with a past.

    A batch of one row serves as well: the export doubles it.
    """
    axes = [
        (tensor.name, axis)
        for tensor in spec.inputs
        for axis, size in enumerate(tensor.shape)
        if isinstance(size, str) and size != "batch"
    ]
    return next((batch for batch in golden if all(batch[name].shape[axis] > 1 for name, axis in axes)), golden[0])
