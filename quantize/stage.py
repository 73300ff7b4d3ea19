"""The quantize stage: load the exported graph, apply one scheme, write the result."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx_ir as ir

from toolkit import plugins
from toolkit.errors import StageError
from toolkit.hashing import data_path
from toolkit.types import Calibration, ExportedGraph, PackedWeight, QuantConfig, QuantizedGraph, Step

__all__ = ["apply_scheme", "save"]

_FILE = "model.onnx"


def apply_scheme(
    graph: ExportedGraph,
    scheme_name: str,
    calibration: Calibration | None,
    folder: Path,
    packed: Mapping[str, PackedWeight],
    recipe: QuantConfig | None = None,
) -> QuantizedGraph:
    """What `quantize.quantize` does; the arguments and errors are described there."""
    scheme = plugins.scheme(scheme_name)
    recipe = recipe or scheme.recipe(graph.spec)
    if _changes_nothing(recipe):
        step = Step("quantize", f"{scheme_name}: kept as exported", 0, "the scheme changes no node")
        return QuantizedGraph(graph.path, graph.spec, (*graph.steps, step), scheme_name)
    from quantize.embeddings import quantize_embeddings
    from quantize.mixed import apply_by_layer

    model = _load(graph.path)
    before = _fingerprint(model)
    steps = apply_by_layer(model, graph.spec, scheme_name, calibration, packed, recipe)
    if recipe.embeddings == "int8" and graph.spec.kind != "decoder":
        steps += quantize_embeddings(model, recipe)
    if _fingerprint(model) == before:
        raise _nothing_changed(graph, scheme_name, recipe, steps)
    path = folder / _FILE
    save(model, path)
    return QuantizedGraph(path, graph.spec, (*graph.steps, *steps), scheme_name)


def save(model: ir.Model, path: Path) -> None:
    """Write the model, weights in `<name>.data`, one tensor at a time; both files appear only when complete.

    Raises StageError where the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".quantize-", dir=path.parent) as scratch:
            partial = Path(scratch) / path.name
            ir.save(model, partial, external_data=data_path(partial).name)
            _publish(data_path(partial), data_path(path))
            _publish(partial, path)
    except OSError as error:
        raise StageError(
            "quantize",
            f"cannot write {path}: {error}",
            hint="Check free space and permissions, or give another folder.",
        ) from error


def _publish(partial: Path, final: Path) -> None:
    # A file of an earlier run must not stay beside a graph that has none of its own.
    if partial.exists():
        partial.replace(final)
    else:
        final.unlink(missing_ok=True)


def _load(path: Path) -> ir.Model:
    return _or_stage_error(lambda: ir.load(path), f"cannot read {path}", "Export the model again.")


def _or_stage_error(action: Callable[[], ir.Model], message: str, hint: str) -> ir.Model:
    try:
        return action()
    except Exception as error:  # protobuf and onnx_ir share no base class for a bad file
        raise StageError("quantize", f"{message}: {error}", hint=hint) from error


def _changes_nothing(config: QuantConfig) -> bool:
    return config.weights is None and config.activations is None


def _fingerprint(model: ir.Model) -> list[tuple[str, str, tuple[str, ...]]]:
    return [
        (node.domain, node.op_type, tuple(f"{value.name}:{value.dtype}" for value in node.inputs if value))
        for node in model.graph.all_nodes()
        if node.op_type != "Constant"
    ]


def _nothing_changed(graph: ExportedGraph, scheme_name: str, config: QuantConfig, steps: list[Step]) -> StageError:
    reasons = "; ".join(f"{step.what} ({step.reason})" for step in steps if step.reason)
    excluded = f" Exclude patterns: {', '.join(config.exclude)}." if config.exclude else ""
    return StageError(
        "quantize",
        f"scheme '{scheme_name}' changed no node of {graph.path.name}" + (f": {reasons}" if reasons else ""),
        hint=f"The graph holds nothing that the scheme takes: use fp32, or see `toolkit inspect`.{excluded}",
    )
