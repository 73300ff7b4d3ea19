"""Show what a bundle or an ONNX file holds: inputs, operators, fused and quantized nodes, sizes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import example, json_option

if TYPE_CHECKING:
    from toolkit.bundle.manifest import Manifest
    from toolkit.inspection import Inspection
    from toolkit.types import TensorSpec

_ITEM_END = "; "
_SHOWN = 3


@click.command(epilog=example("toolkit inspect bundles/minilm-ort-cpu-int8", "toolkit inspect model.onnx --json"))
@click.argument("path", metavar="BUNDLE|MODEL.ONNX", type=click.Path(path_type=Path))
@json_option
def command(path: Path, as_json: bool) -> None:
    """Show what a bundle or an ONNX file holds: inputs, operators, fused and quantized nodes, sizes.

    Weights are not read, so a model of any size answers at once. Verifying is what `toolkit check` does.
    """
    from toolkit import console
    from toolkit.bundle.read import open_bundle
    from toolkit.inspection import inspect_graph

    bundle = open_bundle(path) if path.is_dir() else None
    graph = inspect_graph(bundle.path(bundle.manifest.graph) if bundle else path)
    if as_json:
        entry = bundle.manifest.model_dump(mode="json") if bundle else None
        console.emit_json({"graph": graph, "bundle": entry})
        return
    if bundle:
        _print_bundle(bundle.manifest)
    _print_graph(graph)


def _print_bundle(manifest: Manifest) -> None:
    from toolkit.compiled import built_engines
    from toolkit.console import byte_size, print_table

    print_table(_bundle_rows(manifest), "bundle", "")
    if engines := built_engines(manifest.engine.details):
        print_table(
            (
                (
                    one.architecture, one.file, byte_size(one.bytes), f"{one.seconds:.1f}", one.fused_words,
                    one.gemm_words,
                )
                for one in engines
            ),
            "architecture", "file", ">size", ">seconds", "attentions fused", "GEMMs",
        )  # fmt: skip
    print_table(
        (
            (
                name, worst.ran_on, _number(worst.sqnr_db, 1), _number(worst.cosine, 6),
                "pass" if worst.passed else "FAIL",
            )
            for name, worst in manifest.drift.worst.items()
        ),
        "drift", "ran on", ">SQNR dB", ">cosine", "gate",
    )  # fmt: skip
    print_table(
        ((step.stage, step.what, step.count, _shortened(step.reason)) for step in manifest.steps),
        "stage", "step", ">count", "reason",
    )  # fmt: skip


def _bundle_rows(manifest: Manifest) -> Iterable[tuple[str, str]]:
    from toolkit.bundle.write import RECIPE

    model, engine = manifest.model, manifest.engine
    revision = f" at {model.revision}" if model.revision else ""
    yield "model", f"{model.name} ({model.architecture}, {model.weights} weights of {model.source}{revision})"
    yield "task", model.task
    yield "target", f"{manifest.target.runtime}-{manifest.target.scheme}"
    yield "engine", f"{engine.status} by {engine.builder}" + (f": {engine.reason}" if engine.reason else "")
    yield from _option_rows(engine.details.get("provider_options"))
    yield from _processing_rows(manifest)
    for name, dim in manifest.dims.items():
        yield f"dim {name}", f"{dim.min} to {dim.max}, tuned for {dim.opt}"
    if manifest.allow_unfused:
        yield "not fused", ", ".join(manifest.allow_unfused)
    if RECIPE in manifest.files:
        yield "recipe", f"{RECIPE}: toolkit export --recipe with it makes the bundle again"
    yield "made by", f"toolkit {manifest.toolkit}, {manifest.created:%Y-%m-%d %H:%M} UTC: {manifest.command}"


def _processing_rows(manifest: Manifest) -> Iterable[tuple[str, str]]:
    """What stands before and after the model; bundles from before there was any say nothing."""
    for name, entry in (("before it", manifest.preprocess), ("after it", manifest.postprocess)):
        if entry is None:
            continue
        if entry.graph is None:
            yield name, f"no graph: {entry.reason}"
            continue
        within = f"within {entry.bound:.2g}" if entry.bound else "equal"
        held = within if entry.exact else f"not exact: {entry.reason}"
        needs = f", needs {', '.join(entry.needs)}" if entry.needs else ""
        yield name, f"{entry.graph}: {held} on {entry.compared}{needs}"


def _option_rows(recorded: object) -> Iterable[tuple[str, str]]:
    """What the engine's execution providers are opened with, where it names any; a manifest may hold anything."""
    for provider, options in recorded.items() if isinstance(recorded, dict) else ():
        if isinstance(options, dict):
            yield f"options of {provider}", ", ".join(f"{name}={value}" for name, value in options.items())


def _shortened(reason: str) -> str:
    """A reason's first items: a large model's list of nodes runs to pages, and all of it is in the manifest."""
    items = reason.split(_ITEM_END)
    left = len(items) - _SHOWN
    return _ITEM_END.join([*items[:_SHOWN], f"… and {left} more"]) if left > 0 else reason


def _print_graph(graph: Inspection) -> None:
    from toolkit.console import print_table

    print_table(_graph_rows(graph), "graph", "")
    print_table(_tensor_rows(graph), "", "name", "dtype", "shape")
    print_table(_operator_rows(graph), "domain", ">nodes", "operators")


def _graph_rows(graph: Inspection) -> Iterable[tuple[str, str]]:
    from toolkit.console import byte_size

    opsets = ", ".join(f"{domain} {version}" for domain, version in graph.opsets.items())
    yield "file", f"{graph.path} ({byte_size(graph.graph_bytes)}), IR {graph.ir_version}"
    if graph.producer:
        yield "written by", graph.producer
    for data in graph.data_files:
        state = "" if data.state == "complete" else f", {data.state.upper()}"
        yield "weights in", f"{data.name} ({byte_size(data.bytes)}{state})"
    yield "opsets", opsets
    yield "fused attention", _counts(graph.attention)
    yield (
        "quantized",
        f"{sum(graph.quantized.values())} of {graph.linears} Linears: {_counts(graph.quantized)}",
    )
    yield (
        "weights",
        ", ".join(f"{dtype} {byte_size(size)}" for dtype, size in graph.weights.items()) or "none",
    )
    if graph.functions:
        yield "functions", ", ".join(f"{name} ({count} nodes)" for name, count in graph.functions.items())


def _tensor_rows(graph: Inspection) -> Iterable[tuple[str, ...]]:
    def row(kind: str, spec: TensorSpec) -> tuple[str, ...]:
        return kind, spec.name, spec.dtype, f"[{', '.join(map(str, spec.shape))}]"

    yield from (row("input", spec) for spec in graph.inputs)
    yield from (row("output", spec) for spec in graph.outputs)


def _operator_rows(graph: Inspection) -> Iterable[tuple[Any, ...]]:
    for domain, counts in graph.operators.items():
        yield domain, sum(counts.values()), ", ".join(f"{name} {count}" for name, count in counts.items())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"


def _number(value: float | None, places: int) -> str:
    return "-" if value is None else f"{value:.{places}f}"
