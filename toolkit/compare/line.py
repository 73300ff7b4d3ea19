"""A model's line in a scratch folder, made only as far as it is asked for, with nothing measured on the way."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import plugins
from toolkit.continuation import with_continuations
from toolkit.graphs import export_module, load_module, quantize_graph
from toolkit.memory import Weights
from toolkit.progress import Watch

if TYPE_CHECKING:
    from toolkit.plan import Plan
    from toolkit.target import Target
    from toolkit.types import Calibration, ExportedGraph, LoweredGraph, QuantizedGraph, Tensors

__all__ = ["Line"]


@dataclass
class Line:
    """The stages of one target of a plan. Each runs when it is first asked for; all raise as the stages do."""

    plan: Plan
    target: Target
    folder: Path
    watch: Watch

    def load(self) -> Any:
        """The fp32 PyTorch model, loaded anew at each call: nobody keeps it."""
        with self.watch.stage("load") as row:
            return load_module(self.plan, row)

    @property
    def golden(self) -> tuple[Tensors, ...]:
        """The family's own few inputs; of a language model also steps with a past, which the export found."""
        return self._made[1]

    @property
    def exported(self) -> ExportedGraph:
        """The canonical graph. The model is let go."""
        return self._made[0]

    @cached_property
    def _made(self) -> tuple[ExportedGraph, tuple[Tensors, ...]]:
        from exporters.reference import TorchSession

        module = self.load()
        weights = Weights(module)
        golden = plugins.family(self.plan.spec.family).golden(self.plan.spec)
        if self.plan.spec.decoder is not None:
            golden = with_continuations(TorchSession(module), golden)
        with self.watch.stage("export"):
            graph = export_module(module, self.plan, golden, self.folder / "export")
        del module
        weights.free()
        return graph, golden

    @cached_property
    def quantized(self) -> QuantizedGraph:
        """The graph in the target's precision."""
        exported = self.exported
        with self.watch.stage("quantize", self.target.scheme):
            return quantize_graph(exported, self.plan, self.target, self.folder / "quantize", lambda: self.calibration)

    @cached_property
    def lowered(self) -> LoweredGraph:
        """The graph in the runtime's dialect."""
        quantized, runtime = self.quantized, plugins.runtime(self.target.runtime)
        with self.watch.stage("lower", str(self.target)):
            return runtime.lower(quantized, self.folder / "lower", lambda: self.calibration, self.plan.request.options)

    @cached_property
    def calibration(self) -> Calibration:
        """What activations are measured on."""
        return self.plan.calibrate()
