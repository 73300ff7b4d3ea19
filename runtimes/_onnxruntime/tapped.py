"""A graph file with inner tensors as outputs, opened as its own session would be, and in as little memory as it can."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from runtimes._onnxruntime.failures import as_stage_error
from runtimes._onnxruntime.feeds import check_feeds, spec_of
from runtimes._onnxruntime.kernels import DOMAIN
from runtimes._onnxruntime.kernels.expanded import with_linears_expanded
from runtimes._onnxruntime.operators import contents
from runtimes._onnxruntime.session import CPU, session_options
from runtimes._onnxruntime.source import WEIGHTS_FOLDER, source_of
from toolkit.errors import StageError
from toolkit.types import Tensors

__all__ = ["Optimised", "TapSession", "TappedGraph", "Typed"]

_WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"
_WEIGHTS_FROM = "session.optimized_model_external_initializers_min_size_in_bytes"
_BLOCKS = {("com.microsoft", "MatMulNBits"), (DOMAIN, "BlockLinear"), (DOMAIN, "BlockLinearOffset")}


@dataclass(frozen=True, slots=True)
class Typed:
    """An ONNX element type and a shape whose unknown sizes are names."""

    dtype: int
    shape: tuple[int | str, ...] = ()


@dataclass(frozen=True, slots=True)
class Optimised:
    """What ONNX Runtime made of a graph: the tensors between its nodes, and how many nodes of each kind it has."""

    tensors: Mapping[str, Typed]
    operators: Counter[tuple[str, str]]


class TapSession:
    """A session on the CPU that answers the tensors it was opened for. Arrays of float16 stay float16."""

    def __init__(self, session: Any, ran_on: str, subject: str) -> None:
        self._session, self._subject = session, subject
        self.ran_on = ran_on
        self.inputs = tuple(spec_of(argument) for argument in session.get_inputs())
        self._names = [argument.name for argument in session.get_outputs()]

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name; inputs that the graph does not read are left out.

        Raises UsageError for wrong inputs, StageError where ONNX Runtime fails.
        """
        taken = {spec.name for spec in self.inputs}
        feeds = check_feeds({name: array for name, array in inputs.items() if name in taken}, self.inputs)
        with as_stage_error("compare", self._subject):
            outputs = self._session.run(self._names, feeds)
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        """Free the graph and its weights."""
        self._session = None


class TappedGraph:
    """A graph file as `OrtSession` would open it on the CPU, number types emulated alike; `proto` has no weights in it.

    The outputs of `proto` are those of the model. Raises StageError for what is no graph.
    """

    def __init__(self, path: Path, *, rounded: bool) -> None:
        if not path.is_file():
            raise StageError("compare", f"there is no graph file {path}", hint="Export it first, or check the path.")
        self.path, self._held = path, contents(path)
        with as_stage_error("compare", f"cannot open {path}"):
            source = source_of(path, self._held, on_cpu=True, rounded=rounded)
            loaded = (
                onnx.load(source.content, load_external_data=False)
                if isinstance(source.content, str)
                else onnx.load_from_string(source.content)
            )
        # Inside our Linears there is no tensor to be tapped.
        self.proto: onnx.ModelProto = with_linears_expanded(loaded)
        called = frozenset((node.domain, node.op_type) for node in self.proto.graph.node)
        self._held = replace(self._held, operators=called)
        self._told = source.told
        self._blocks = not _BLOCKS.isdisjoint(self._held.operators)

    @property
    def weight_bytes(self) -> int:
        """The size of the graph and of the files beside it that hold its weights."""
        places = {entry.value for tensor in self.proto.graph.initializer for entry in tensor.external_data[:1]}
        files = [self.path, *(self.path.parent / place for place in places)]
        return sum(file.stat().st_size for file in files if file.is_file())

    def optimised(self, taps: Iterable[str] = ()) -> Optimised:
        """What ONNX Runtime makes of the graph, with these tensors as outputs beside its own."""
        with tempfile.TemporaryDirectory(prefix="toolkit-optimised-") as folder:
            path = Path(folder) / "model.onnx"
            self._open(self.with_outputs(taps), path)
            written = onnx.load(path, load_external_data=False)
        return Optimised(_typed(written.graph), Counter((node.domain, node.op_type) for node in written.graph.node))

    def session(self, taps: Iterable[str]) -> TapSession:
        """The whole graph, answering these tensors."""
        return self.open(self.with_outputs(taps, alone=True))

    def open(self, proto: onnx.ModelProto) -> TapSession:
        """A graph made from `proto`, whose weights lie where this one's do."""
        session, own = self._open(proto)
        ran_on = ", ".join(filter(None, [f"onnxruntime {ort.__version__} {CPU}", own, *self._told]))
        return TapSession(session, ran_on, self.path.name)

    def with_outputs(self, taps: Iterable[str], *, alone: bool = False) -> onnx.ModelProto:
        """The graph with these tensors as outputs, beside its own or `alone`."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        kept = {value.name: value for value in proto.graph.output}
        wanted = dict.fromkeys([*([] if alone else kept), *taps])
        outputs = [kept.get(name) or onnx.helper.make_empty_tensor_value_info(name) for name in wanted]
        del proto.graph.output[:]
        proto.graph.output.extend(outputs)
        return proto

    def _open(self, proto: onnx.ModelProto, written: Path | None = None) -> tuple[Any, str]:
        options, own = session_options(self._held, CPU)
        options.add_session_config_entry(WEIGHTS_FOLDER, str(self.path.parent.resolve()))
        # Tensors go as soon as they were read, and weights are read from their file, not from a packed copy. Where
        # weights are in blocks, only their packed form is computed in integers, and it is an eighth of the model.
        options.enable_cpu_mem_arena = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.add_session_config_entry("session.disable_prepacking", str(int(not self._blocks)))
        if written is not None:
            options.optimized_model_filepath = str(written)
            options.add_session_config_entry(_WEIGHTS_FILE, "weights")
            options.add_session_config_entry(_WEIGHTS_FROM, "1024")
        with as_stage_error("compare", f"cannot open {self.path}"):
            return ort.InferenceSession(proto.SerializeToString(), options, [CPU]), own


def _typed(graph: onnx.GraphProto) -> dict[str, Typed]:
    values: Sequence[onnx.ValueInfoProto] = [*graph.value_info, *graph.input, *graph.output]
    known = {value.name: _type_of(value) for value in values}
    names = [name for node in graph.node for name in node.output if name]
    return {name: known.get(name, Typed(0)) for name in names}


def _type_of(value: onnx.ValueInfoProto) -> Typed:
    tensor = value.type.tensor_type
    sizes = (dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim)
    return Typed(tensor.elem_type, tuple(sizes))
