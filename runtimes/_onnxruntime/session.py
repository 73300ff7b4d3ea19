"""A graph opened with ONNX Runtime, on the provider that was asked for or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray

from runtimes._onnxruntime.failures import as_stage_error
from runtimes._onnxruntime.feeds import check_feeds, spec_of
from runtimes._onnxruntime.kernels.register import register_kernels
from runtimes._onnxruntime.operators import operators, turns_integers
from runtimes._onnxruntime.saturation import int8_products_saturate, quantizes_activations
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.types import Tensors

__all__ = ["CPU", "OrtSession", "physical_cores"]

CPU = "CPUExecutionProvider"

_COMPUTE = frozenset(
    {"Attention", "Conv", "Gelu", "Gemm", "LayerNormalization", "MatMul", "MultiHeadAttention", "Softmax"}
)


class OrtSession:
    """A graph file on one execution provider.

    `threads` is the number of intra-op threads (default: physical cores this process may use); workers spin,
    which is worth a sixth of the speed. Weights are memory-mapped by ONNX Runtime from the file beside the graph.
    Raises UnsupportedError where this build lacks the provider, StageError where the graph is refused or
    the work would land on another provider than `provider`.
    """

    def __init__(
        self,
        path: Path,
        provider: str = CPU,
        *,
        provider_options: Mapping[str, str] | None = None,
        threads: int | None = None,
    ) -> None:
        _check_request(path, provider, threads)
        self._subject = path.name
        options = _options(provider, threads)
        called = operators(path)
        if quantizes_activations(called) and int8_products_saturate():
            options.add_session_config_entry("session.x64quantprecision", "1")
        if quantizes_activations(called) and turns_integers(path):
            # Without it, 1.32 turns int8 into uint8 halfway and then refuses its own graph (onnxruntime#25526).
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        own = register_kernels(options, called) if provider == CPU else ""
        chain = [(provider, dict(provider_options or {}))]
        with as_stage_error("session", f"cannot open {path}"):
            self._session: Any = ort.InferenceSession(str(path), options, providers=chain)
        self._session.disable_fallback()
        _refuse_other_provider(self._session, provider)
        self.inputs = tuple(spec_of(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(spec_of(argument) for argument in self._session.get_outputs())
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        provided = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"
        self.ran_on = f"{provided}, {own}" if own else provided

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises UsageError on a wrong name, dtype, rank or dimension, or when the session is closed;
        StageError where ONNX Runtime fails.
        """
        self._require_open()
        feeds = check_feeds(inputs, self.inputs)
        names = [spec.name for spec in self.outputs]
        with as_stage_error("run", self._subject):
            outputs = self._session.run(names, feeds)
        return {name: np.asarray(output) for name, output in zip(names, outputs, strict=True)}

    def binding(self) -> Any:
        """An `onnxruntime.IOBinding` of this session, for callers that keep tensors where they are."""
        self._require_open()
        return self._session.io_binding()

    def run_bound(self, binding: Any) -> None:
        """Run on what is bound. Raises StageError where ONNX Runtime fails, UsageError when closed."""
        self._require_open()
        with as_stage_error("run", self._subject):
            self._session.run_with_iobinding(binding)

    def close(self) -> None:
        """Free the graph, its weights and its threads."""
        self._session = None

    def _require_open(self) -> None:
        if self._session is None:
            raise UsageError(f"the session of {self._subject} is closed", hint="Open it again.")


def physical_cores() -> int:
    """Physical cores that this process may use; hyper-threads only slow matrix products down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _check_request(path: Path, provider: str, threads: int | None) -> None:
    available = ort.get_available_providers()
    if provider not in available:
        raise UnsupportedError(
            f"this build of onnxruntime {ort.__version__} has no {provider}",
            hint=f"It has: {', '.join(available)}. `toolkit doctor` says what to install.",
        )
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads", hint="Give at least 1, or leave it out for all physical cores.")
    if not path.is_file():
        raise StageError("session", f"there is no graph file {path}", hint="Export it first, or check the path.")


def _options(provider: str, threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or physical_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.record_ep_graph_assignment_info", str(int(provider != CPU)))
    return options


def _refuse_other_provider(session: Any, provider: str) -> None:
    """Providers fall back to the CPU in silence: as a whole, or node by node.

    `session.disable_cpu_ep_fallback` is too strict for whole models: ONNX Runtime itself puts the arithmetic on
    shapes on the CPU. So every heavy node is checked instead.
    """
    actual = session.get_providers()[0]
    if actual != provider:
        raise StageError(
            "session",
            f"asked for {provider}, but ONNX Runtime fell back to {actual}",
            hint="`toolkit doctor` says why the provider does not start.",
        )
    strays = [] if provider == CPU else sorted(_heavy_nodes_elsewhere(session, provider))
    if strays:
        raise StageError(
            "session",
            f"{len(strays)} nodes would not run on {provider}: {', '.join(strays[:5])}",
            hint="Install a newer onnxruntime build: this one has no kernel for them.",
        )


def _heavy_nodes_elsewhere(session: Any, provider: str) -> Iterable[str]:
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != provider:
            yield from (f"{node.op_type} {node.name}" for node in part.get_nodes() if node.op_type in _COMPUTE)
