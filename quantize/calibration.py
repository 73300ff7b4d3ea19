"""Watching activations on calibration data: ranges, channels and histograms; what is held does not grow with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

from quantize.hidden_ranges import Hidden, add_hidden
from quantize.histogram import Histogram, Range
from quantize.nodes import module_path
from toolkit.errors import StageError, UsageError
from toolkit.types import Calibration, Tensors

__all__ = [
    "Channels",
    "feeds",
    "fetch",
    "measure_channels",
    "measure_ranges",
    "not_finite",
    "observe",
    "open_session",
    "require",
    "weights_folder",
]

_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """What the channels [K] of a tensor held: least and greatest number [K], sum of squares [K], and how many rows."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    squares: NDArray[np.float64]
    rows: int

    @property
    def absmax(self) -> NDArray[np.float64]:
        """The largest magnitude of each channel [K]."""
        found: NDArray[np.float64] = np.maximum(np.abs(self.low), np.abs(self.high))
        return found

    @property
    def mean_square(self) -> NDArray[np.float64]:
        """The mean of the squares of each channel [K]."""
        return self.squares / max(self.rows, 1)

    def union(self, other: Channels) -> Channels:
        """What both saw."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Channels(low, high, self.squares + other.squares, self.rows + other.rows)

    def range(self, divisors: NDArray[np.floating[Any]] | float = 1.0) -> Range:
        """That of all channels together, each divided by its own of `divisors` [K]."""
        return Range(float((self.low / divisors).min()), float((self.high / divisors).max()))


def require(calibration: Calibration | None, scheme: str) -> Calibration:
    """The calibration, or UsageError where a scheme that measures activations was given none."""
    if calibration is None:
        raise UsageError(
            f"scheme '{scheme}' measures activations and was given no calibration data",
            hint="Give --calibration a folder or file of realistic inputs, or a number of the family's samples.",
        )
    return calibration


def observe(
    model: ir.Model,
    values: Iterable[ir.Value],
    calibration: Calibration,
    divisors: Mapping[str, NDArray[np.float32]] | None = None,
    weights: Mapping[str, NDArray[np.int64]] | None = None,
) -> dict[str, Histogram]:
    """Run the calibration data through the fp32 graph and answer one histogram per named float32 value.

    A value that `divisors` names is watched as it is after division by that vector [K], its last axis; the channels
    of one that `weights` names count as much as that vector says.
    One batch's worth of the watched tensors is held at a time. Weights are mapped from their own file.
    Raises StageError that names the tensor and its module where one holds NaN or Inf.
    """
    watched = {_name(value): value for value in values}
    state = {name: Histogram((weights or {}).get(name)) for name in watched}
    divided = {name: divisor for name, divisor in (divisors or {}).items() if name in watched}
    tapped = {name: _tap("divided", name) if name in divided else name for name in watched}
    fed = {name for name, value in watched.items() if value.is_graph_input() and name not in divided}
    computed = [name for name in watched if name not in fed and name not in divided]
    for index, feed, taps in _run(model, lambda proto: [*_add_divisions(proto, divided), *computed], calibration):
        for name, value in watched.items():
            try:
                state[name].update(feed[name] if name in fed else taps.pop(tapped[name]))
            except ValueError as error:
                raise not_finite(value, str(error), index) from error
    return state


def measure_channels(model: ir.Model, widths: Mapping[ir.Value, int], calibration: Calibration) -> dict[str, Channels]:
    """What each channel of every named float32 value held, reduced inside the graph; `widths` says how many it has.

    The channels are the last axis; a width of 1 takes the tensor as a whole. Two vectors [K] a tensor leave the
    runtime. Raises StageError that names the tensor and its module where one holds NaN or Inf.
    """
    watched = {_name(value): (value, width) for value, width in widths.items()}
    sizes = {name: width for name, (_, width) in watched.items()}
    seen: dict[str, Channels] = {}
    for index, _, taps in _run(model, lambda proto: _add_channel_reductions(proto, sizes), calibration):
        for name, (value, width) in watched.items():
            low, high, squares, size = (taps[_tap(kind, name)] for kind in ("min", "max", "squares", "size"))
            # The sum is there for NaN, which the two extremes may drop.
            if np.isnan(squares).any() or not (np.isfinite(low) & np.isfinite(high)).all():
                raise not_finite(value, "NaN" if np.isnan(squares).any() else "Inf", index)
            lowest, highest, power = (each.astype(np.float64) for each in (low, high, squares))
            found = Channels(lowest, highest, power, int(size) // width)
            seen[name] = seen[name].union(found) if name in seen else found
    return seen


def measure_ranges(
    model: ir.Model, values: Iterable[ir.Value], calibration: Calibration, hidden: Sequence[Hidden] = ()
) -> dict[str, Range]:
    """The range of every named float32 value over the calibration data, reduced inside the graph.

    `hidden` are intermediates of fused nodes, measured beside them and answered by their own names.
    Only two numbers a tensor leave the runtime, so watching all tensors of a model costs no memory.
    An infinite range is answered as such, and none for a tensor that is always empty, as a first step's past.
    NaN raises StageError that names the tensor and its module.
    """
    watched = {_name(value): value for value in values} | {each.name: each.node.outputs[0] for each in hidden}

    def add_taps(proto: ModelProto) -> list[str]:
        add_hidden(proto, hidden)
        return _add_reductions(proto, watched)

    ranges: dict[str, Range] = {}
    for index, _, taps in _run(model, add_taps, calibration):
        for name, value in watched.items():
            low, high, total = (float(taps[_tap(kind, name)]) for kind in ("min", "max", "l1"))
            if math.isnan(low) or math.isnan(high) or math.isnan(total):
                raise not_finite(value, "NaN", index)
            if low > high:
                continue
            seen = Range(low, high)
            ranges[name] = ranges[name].union(seen) if name in ranges else seen
    return ranges


def _run(
    model: ir.Model, add_taps: Callable[[ModelProto], list[str]], calibration: Calibration
) -> Iterator[tuple[int, Tensors, dict[str, NDArray[Any]]]]:
    session, taps = _session(model, add_taps)
    for index, batch in enumerate(feeds(calibration, {value.name for value in session.get_inputs()})):
        yield index, batch, fetch(session, taps, batch, index)


def feeds(calibration: Calibration, inputs: Set[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """Each batch, with the graph's inputs only. Raises UsageError where one is missing, or there is no batch."""
    index = -1
    for index, batch in enumerate(calibration.batches()):
        missing = inputs - set(batch)
        if missing:
            raise UsageError(
                f"calibration batch {index} of {calibration.source} lacks {', '.join(sorted(missing))}",
                hint=f"Every batch holds: {', '.join(sorted(inputs))}.",
            )
        yield {name: batch[name] for name in inputs}
    if index < 0:
        raise UsageError(
            f"calibration data from {calibration.source} is empty", hint="Give at least one realistic input."
        )


def fetch(
    session: ort.InferenceSession, taps: list[str], feed: dict[str, NDArray[Any]], index: int
) -> dict[str, NDArray[Any]]:
    """The named outputs for one batch. Raises StageError with the runtime's message."""
    try:
        # Asked for no output at all, ONNX Runtime answers every one.
        return dict(zip(taps, session.run(taps, feed), strict=True)) if taps else {}
    except Exception as error:  # ONNX Runtime raises a class of its own for each status code
        raise StageError(
            "quantize", f"ONNX Runtime failed on calibration batch {index}: {error}", hint=_SHAPE_HINT
        ) from error


_SHAPE_HINT = "Check that the calibration inputs have the shapes and dtypes that `toolkit inspect` shows."


def _session(model: ir.Model, add_taps: Callable[[ModelProto], list[str]]) -> tuple[ort.InferenceSession, list[str]]:
    proto = ir.to_proto(model)
    taps = add_taps(proto)
    present = {output.name for output in proto.graph.output}
    proto.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in taps if name not in present)
    return open_session(proto, weights_folder(model)), taps


def open_session(proto: ModelProto, folder: str) -> ort.InferenceSession:
    """The graph on ONNX Runtime's CPU provider, its external weights in `folder`. Raises StageError where it cannot."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    # Runs each reduction as soon as its tensor exists; the default order keeps all tensors alive to the end.
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.enable_cpu_mem_arena = False
    # Without it, 1.32 turns int8 into uint8 halfway and then refuses its own graph (onnxruntime#25526).
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    if _rounds_in_blocks(proto):
        # Without it, 1.32 takes scales that are a token's for one scale of a whole tensor, and fails in its product.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if folder:
        options.add_session_config_entry(_FOLDER_KEY, folder)
    try:
        return ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for each status code
        raise StageError(
            "quantize",
            f"ONNX Runtime cannot run the exported graph for calibration: {error}",
            hint="Export again; the fp32 graph must run before it is quantized.",
        ) from error


def _rounds_in_blocks(proto: ModelProto) -> bool:
    """Whether a layer that was quantized before measures the range of each token, or of a part of it."""
    rounding = (node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    return any(attribute.name == "block_size" for node in rounding for attribute in node.attribute)


def weights_folder(model: ir.Model) -> str:
    """Where the external weights lie; empty where there are none. Raises StageError for more than one folder."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    folders = {str(tensor.base_dir) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}
    if len(folders) > 1:
        raise StageError(
            "quantize",
            f"the weights lie in several folders: {', '.join(sorted(folders))}",
            hint="Save the model with one external data file and try again.",
        )
    return folders.pop() or "." if folders else ""


def _add_reductions(proto: ModelProto, watched: Iterable[str]) -> list[str]:
    taps: list[str] = []
    for name in watched:
        # The L1 norm is there for NaN, which the two extremes may drop.
        for kind, op_type in (("min", "ReduceMin"), ("max", "ReduceMax"), ("l1", "ReduceL1")):
            tap = _tap(kind, name)
            proto.graph.node.append(helper.make_node(op_type, [name], [tap], keepdims=0))
            taps.append(tap)
    return taps


def _add_channel_reductions(proto: ModelProto, widths: Mapping[str, int]) -> list[str]:
    axis = "quantize.first_axis"
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.int64), axis))
    taps: list[str] = []
    for name, width in widths.items():
        shape, rows = _tap("shape", name), _tap("rows", name)
        proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, width], np.int64), shape))
        proto.graph.node.append(helper.make_node("Reshape", [name, shape], [rows]))
        for kind, op_type in (("min", "ReduceMin"), ("max", "ReduceMax"), ("squares", "ReduceSumSquare")):
            taps.append(_tap(kind, name))
            proto.graph.node.append(helper.make_node(op_type, [rows, axis], taps[-1:], keepdims=0))
        taps.append(_tap("size", name))
        proto.graph.node.append(helper.make_node("Size", [name], taps[-1:]))
    return taps


def _add_divisions(proto: ModelProto, divisors: Mapping[str, NDArray[np.float32]]) -> list[str]:
    for name, divisor in divisors.items():
        constant = _tap("divisor", name)
        proto.graph.initializer.append(numpy_helper.from_array(divisor, constant))
        proto.graph.node.append(helper.make_node("Div", [name, constant], [_tap("divided", name)]))
    return [_tap("divided", name) for name in divisors]


def _tap(kind: str, name: str) -> str:
    return f"quantize.{kind}.{name}"


def _name(value: ir.Value) -> str:
    if not value.name:
        raise ValueError("a value without a name cannot be watched")
    return str(value.name)


def not_finite(value: ir.Value, what: str, batch: int) -> StageError:
    """The error for an activation that holds NaN or Inf; it names the tensor and its module."""
    producer = value.producer()
    where = f"module '{module_path(producer)}'" if producer else "the graph's inputs"
    return StageError(
        "quantize",
        f"tensor '{value.name}' of {where} holds {what} on calibration batch {batch}",
        hint="Check the weights and the calibration inputs: the fp32 model itself is not finite here.",
    )
