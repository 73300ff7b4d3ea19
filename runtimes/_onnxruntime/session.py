"""A graph opened with ONNX Runtime, on the provider that was asked for or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from numpy.typing import NDArray

from runtimes._onnxruntime.failures import as_stage_error
from runtimes._onnxruntime.feeds import check_feeds, spec_of
from runtimes._onnxruntime.kernels.register import register_kernels
from runtimes._onnxruntime.operators import Contents, contents
from runtimes._onnxruntime.saturation import int8_products_saturate, quantizes_activations
from runtimes._onnxruntime.source import WEIGHTS_FOLDER, source_of
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.types import Tensors

__all__ = ["CPU", "Chain", "OrtSession", "physical_cores", "session_options"]

CPU = "CPUExecutionProvider"

Chain = Sequence[tuple[str, Mapping[str, str]]]
"""Providers with their options, each before what takes the nodes that it leaves."""

_COMPUTE = frozenset(
    {
        "Attention", "BiasGelu", "Conv", "DequantizeLinear", "Erf", "FastGelu", "FusedConv", "FusedMatMul",
        "GatherBlockQuantized", "Gelu", "Gemm", "GroupQueryAttention", "LayerNormalization", "MatMul", "MatMulInteger",
        "MatMulNBits", "MultiHeadAttention", "QuantizeLinear", "RMSNormalization", "RotaryEmbedding", "Sigmoid",
        "SimplifiedLayerNormalization", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "Softmax", "Tanh",
    }
)  # fmt: skip


class OrtSession:
    """A graph file on one execution provider, or on several of which each takes what those before it leave.

    `threads` is the number of intra-op threads (default: physical cores this process may use); workers spin,
    which is worth a sixth of the speed. Weights are memory-mapped by ONNX Runtime from the file beside the graph.
    `strict` refuses even arithmetic on shapes on the CPU. Number types that the CPU provider lacks are emulated in
    float32, which `ran_on` says; with `rounded` also float16, which it computes without rounding to it.
    Raises UnsupportedError where this build lacks a provider, StageError where the graph is refused, or the first
    provider does not start, or work would land outside the chain.
    """

    def __init__(
        self,
        path: Path,
        chain: Chain = ((CPU, {}),),
        *,
        strict: bool = False,
        rounded: bool = False,
        threads: int | None = None,
    ) -> None:
        names = [name for name, _ in chain]
        _check_request(path, names, threads)
        self._subject = path.name
        held = contents(path)
        options, own = session_options(held, names[0], threads)
        if strict:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(name, dict(given)) for name, given in chain]
        with as_stage_error("session", f"cannot open {path}"):
            source = source_of(path, held, on_cpu=names[0] == CPU, rounded=rounded)
            if isinstance(source.content, bytes):
                options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent.resolve()))
            # Without this the binding prints the failure of a GPU provider and opens the graph on the CPU instead.
            self._session: Any = ort.InferenceSession(source.content, options, providers=providers, enable_fallback=0)
        _refuse_other_provider(self._session, names)
        self.placement = _placement(self._session) if names[0] != CPU else {}
        """Nodes by the provider that took them, as ONNX Runtime tells; nothing for a session on the CPU."""
        self.inputs = tuple(spec_of(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(spec_of(argument) for argument in self._session.get_outputs())
        self.metadata: Mapping[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        provided = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"
        self.ran_on = ", ".join(filter(None, [provided, own, *source.told]))

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


def session_options(held: Contents, provider: str, threads: int | None = None) -> tuple[ort.SessionOptions, str]:
    """How a graph with these contents is opened on that provider, and what to say of our own kernels in it."""
    options = _options(provider, threads)
    if quantizes_activations(held.operators) and int8_products_saturate():
        options.add_session_config_entry("session.x64quantprecision", "1")
    if held.turns_integers:
        # Without it, 1.32 turns int8 into uint8 halfway and then refuses its own graph (onnxruntime#25526).
        options.add_session_config_entry("session.qdqisint8allowed", "1")
    if held.rounds_tokens:
        # Without it, 1.32 takes scales that are a token's for one scale of a whole tensor, and fails in its product.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options, register_kernels(options, held.operators) if provider == CPU else ""


def physical_cores() -> int:
    """Physical cores that this process may use; hyper-threads only slow matrix products down."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or allowed, allowed))


def _check_request(path: Path, names: Sequence[str], threads: int | None) -> None:
    available = ort.get_available_providers()
    if missing := [name for name in names if name not in available]:
        raise UnsupportedError(
            f"this build of onnxruntime {ort.__version__} has no {missing[0]}",
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


def _refuse_other_provider(session: Any, names: Sequence[str]) -> None:
    """Providers fall back to the CPU in silence: as a whole, or node by node.

    `session.disable_cpu_ep_fallback` is too strict for the CUDA provider and models of dynamic shape: ONNX Runtime
    itself puts their arithmetic on shapes on the CPU (onnxruntime#17930). So every heavy node is checked as well.
    """
    actual = session.get_providers()[0]
    if actual != names[0]:
        raise StageError(
            "session",
            f"asked for {names[0]}, but ONNX Runtime fell back to {actual}",
            hint="`toolkit doctor` says why the provider does not start.",
        )
    strays = [] if names[0] == CPU else sorted(_heavy_nodes_elsewhere(session, names))
    if strays:
        raise StageError(
            "session",
            f"{len(strays)} nodes would not run on {' or '.join(names)}: {', '.join(strays[:5])}",
            hint="Install a newer onnxruntime build: this one has no kernel for them.",
        )


def _heavy_nodes_elsewhere(session: Any, names: Sequence[str]) -> Iterable[str]:
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name not in names:
            yield from (f"{node.op_type} {node.name}" for node in part.get_nodes() if node.op_type in _COMPUTE)


def _placement(session: Any) -> dict[str, int]:
    placed: Counter[str] = Counter()
    for part in session.get_provider_graph_assignment_info():
        placed[part.ep_name] += len(part.get_nodes())
    return dict(placed)
