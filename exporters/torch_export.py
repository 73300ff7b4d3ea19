"""PyTorch module → canonical ONNX: captured once, held to the fusion contract, written with external weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
import torch.fx.config as tracing
from torch import nn
from torch.export import ExportedProgram

from exporters import DEFAULT_OPSET, UNFUSED, resizing
from exporters.canonical import canonicalise
from exporters.contract import Fusion, check_contract, check_deterministic, find_attention
from exporters.decompositions import decomposed_where_needed
from exporters.fused_attention.function import attach_function
from exporters.fused_attention.interface import NAME, register
from exporters.fused_attention.translation import TRANSLATIONS
from exporters.pooling import pool_by_mean
from toolkit.errors import StageError
from toolkit.types import ExportedGraph, ModelSpec, Step, Tensors

__all__ = ["export", "fused"]

_OWN = {**TRANSLATIONS, **resizing.TRANSLATIONS}


def export(
    module: nn.Module,
    spec: ModelSpec,
    sample: Tensors,
    folder: Path,
    *,
    opset: int = DEFAULT_OPSET,
    allow_unfused: bool = False,
    traced: Callable[[], object] = lambda: None,
) -> ExportedGraph:
    """Write `folder/model.onnx` (weights in `model.onnx.data`) whose every attention is one FusedAttention node.

    `module` takes `spec.inputs` by keyword and returns a dict of tensors; `sample` holds one example of each input.
    The dimensions that `spec` names become dynamic. `traced` is called when PyTorch has done its part and the graph is
    only written: until then nothing may run beside it. Raises StageError where the model cannot be captured, a
    dynamic dimension turns out fixed, random numbers are drawn, or an attention module is not fused (unless
    `allow_unfused`).
    """
    with fused(module), torch.no_grad(), _quiet(), _without_stack_traces():
        program = _capture(module, spec, sample)
        check_deterministic(program)
        fusion = find_attention(program)
        check_contract(fusion, allow_unfused=allow_unfused, expect_attention=spec.kind != "module")
        pool_by_mean(program)
        with decomposed_where_needed(program, own=_OWN):
            model = _translate(program, spec, opset)
    # The program holds the traced copy of every constant; the weights below are the module's own memory.
    del program
    traced()
    count = canonicalise(model, spec)
    _check_count(fusion, count)
    attach_function(model)
    path = folder / "model.onnx"
    folder.mkdir(parents=True, exist_ok=True)
    ir.save(model, path, external_data=f"{path.name}.data")
    # onnxscript's rewriter keeps the last graph that it matched, and would keep the folded weights with it.
    for value in model.graph.initializers.values():
        value.const_value = None
    return ExportedGraph(path=path, spec=spec, steps=_log(fusion, opset))


@contextmanager
def fused(module: nn.Module) -> Iterator[None]:
    """Let every Transformers model inside `module` compute attention through the toolkit's operator, then undo it."""
    register()
    models: list[Any] = [part for part in module.modules() if hasattr(part, "set_attn_implementation")]
    before = [part.config._attn_implementation for part in models]
    try:
        for part in models:
            part.set_attn_implementation(NAME)
        yield
    except ValueError as error:
        raise StageError(
            "export",
            f"{type(module).__name__} does not let its attention be replaced: {error}",
            hint="Its family needs a module swap (see docs/adding-a-family.md).",
        ) from error
    finally:
        for part, implementation in zip(models, before, strict=True):
            part.set_attn_implementation(implementation)


class _Positional(nn.Module):
    """The exporter wants positional inputs in a fixed order; models want keywords."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.module = model
        self._names = names

    def forward(self, *tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs: dict[str, torch.Tensor] = self.module(**dict(zip(self._names, tensors, strict=True)))
        return outputs


def _capture(module: nn.Module, spec: ModelSpec, sample: Tensors) -> ExportedProgram:
    tensors = tuple(_example(sample[tensor.name], tensor.shape) for tensor in spec.inputs)
    dynamic = tuple(
        {axis: torch.export.Dim.DYNAMIC for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in spec.inputs
    )
    wrapper = _Positional(module, tuple(tensor.name for tensor in spec.inputs)).eval()
    try:
        return torch.export.export(wrapper, tensors, dynamic_shapes=(dynamic,))
    except (KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # torch.export raises what its tracer or the model raise: there is no common base
        raise StageError(
            "export",
            f"torch.export could not capture {spec.architecture}: {_first_line(error)}",
            hint="A step that depends on the data, or a dimension that is not really dynamic, is the usual cause; "
            "run with --verbose for torch's whole message.",
        ) from error


def _example(array: Any, shape: tuple[int | str, ...]) -> torch.Tensor:
    """torch.export takes a size of 0 or 1 for a constant, so dynamic dimensions need at least 2."""
    tensor = torch.from_numpy(array)
    for axis, size in enumerate(shape):
        if isinstance(size, str) and tensor.shape[axis] < 2:
            tensor = torch.cat([tensor, tensor], dim=axis)
    return tensor


def _translate(program: ExportedProgram, spec: ModelSpec, opset: int) -> ir.Model:
    try:
        exported = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            opset_version=opset,
            custom_translation_table=dict(_OWN),
            input_names=[tensor.name for tensor in spec.inputs],
            output_names=[tensor.name for tensor in spec.outputs],
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise StageError(
            "export",
            f"torch.onnx could not translate {spec.architecture}: {_first_line(error)}",
            hint="The message names the operator; run with --verbose for torch's whole message.",
        ) from error
    if exported is None:
        raise StageError("export", f"torch.onnx answered no graph for {spec.architecture}")
    return exported.model


def _check_count(fusion: Fusion, count: int) -> None:
    if count != len(fusion.fused):
        raise StageError(
            "export",
            f"{len(fusion.fused)} attention modules were fused in PyTorch, but the ONNX graph has {count} fused nodes",
            hint="This is a bug in the export; please report the model and the library versions.",
        )


def _log(fusion: Fusion, opset: int) -> tuple[Step, ...]:
    steps = [Step("export", "attention modules fused", len(fusion.fused), f"opset {opset}, by construction")]
    if fusion.missed:
        steps.append(Step("export", UNFUSED, len(fusion.missed), ", ".join(fusion.missed)))
    return tuple(steps)


def _first_line(error: BaseException) -> str:
    lines: list[str] = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of torchvision and of its own deprecations; neither is the user's."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="torch")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _without_stack_traces() -> Iterator[None]:
    """A tenth of the tracing would go into noting at each node which lines made it; canonical graphs do not say it."""
    before = getattr(tracing, "do_not_emit_stack_traces", False)  # PyTorch before 2.13 may not have it
    tracing.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        tracing.do_not_emit_stack_traces = before
