"""Which weights a language model can least afford in 4 bits: measured, one at a time, on the logits."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from quantize.blocks import Grid, codes, dequantize, scales
from quantize.calibration import feeds, fetch, open_session, weights_folder
from quantize.nodes import module_path
from quantize.weights import Weight
from toolkit.errors import StageError
from toolkit.types import Calibration, Step

__all__ = ["divergences", "promote"]

_LOGITS = "logits"
_TOKENS = 128
_BEHIND_HEAD = frozenset({"Add", "Cast", "Div", "Mul", "MatMul", "Tanh"})
_DATA_GAIN = 0.35
"""How much of the divergence of plain rounding GPTQ leaves: 0.22 to 0.4 on SmolLM2, by how near the text is."""

Array = NDArray[Any]


def promote(model: ir.Model, weights: Sequence[Weight], calibration: Calibration, max_kl: float) -> list[Step]:
    """Give 8 bits to the weights whose 4 cost most divergence a byte, until the others' sum is within `max_kl`.

    Weights that read one tensor take the same bits, so that a runtime can multiply with them at once. Divergences of
    single groups add up, as long as they are small. Does nothing for a graph without `logits`.
    """
    if _LOGITS not in {value.name for value in model.graph.outputs}:
        return []
    groups = _groups(weights)
    found = [_DATA_GAIN * each for each in divergences(model, groups, calibration)]
    left = whole = sum(found)
    chosen: list[Weight] = []
    order = sorted(range(len(groups)), key=lambda index: found[index] / _size(groups[index]), reverse=True)
    for index in order:
        if left <= max_kl:
            break
        left -= found[index]
        chosen += groups[index]
    for weight in chosen:
        if weight.grid is not None:
            weight.grid = Grid(8, weight.grid.block_size)
    return [_step(chosen, whole, max(left, 0.0))]


def divergences(model: ir.Model, groups: Sequence[Sequence[Weight]], calibration: Calibration) -> list[float]:
    """The mean KL divergence from the fp32 model, in nats a position, of rounding each group alone to the nearest.

    A hundred tokens or so are enough to rank them. Raises StageError where a weight or the fp32 logits are not finite.
    """
    plain = {str(weight.value.name): weight.tensor.numpy() for group in groups for weight in group}
    session = _session(model, set(plain))
    batches = _few(calibration, {value.name for value in session.get_inputs()} - set(plain))
    reference = [_log_probabilities(session, {**batch, **plain}, index) for index, batch in enumerate(batches)]
    found: list[float] = []
    for group in groups:
        rounded = {str(weight.value.name): _rounded(weight, plain[str(weight.value.name)]) for weight in group}
        pairs = enumerate(zip(batches, reference, strict=True))
        parts = [
            _kl(before, _log_probabilities(session, {**batch, **plain, **rounded}, index))
            for index, (batch, before) in pairs
        ]
        found.append(float(np.concatenate(parts).mean()))
    return found


def _groups(weights: Sequence[Weight]) -> list[list[Weight]]:
    """The weights by the tensor that their first reader multiplies."""
    found: dict[ir.Value | None, list[Weight]] = {}
    for weight in weights:
        found.setdefault(weight.readers[0].inputs[0], []).append(weight)
    return list(found.values())


def _size(group: Sequence[Weight]) -> int:
    return sum(weight.size for weight in group)


def _few(calibration: Calibration, inputs: set[str]) -> list[dict[str, Array]]:
    """The first rows of the first batches, cut short: each measurement is a run of all of them."""
    batches: list[dict[str, Array]] = []
    tokens = 0
    for batch in feeds(calibration, inputs):
        batches.append(_cut(batch))
        tokens += max((array.size for array in batches[-1].values() if array.dtype == np.int64), default=_TOKENS)
        if tokens >= _TOKENS:
            break
    return batches


def _cut(batch: dict[str, Array]) -> dict[str, Array]:
    """One row of at most so many tokens, where ids, mask and positions are [rows, tokens] and no past is given."""
    shapes = {array.shape for array in batch.values() if array.dtype == np.int64}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        return batch
    return {name: array[:1, :_TOKENS] if array.dtype == np.int64 else array[:1] for name, array in batch.items()}


def _session(model: ir.Model, names: Set[str]) -> ort.InferenceSession:
    """The graph with those weights as inputs, so that one session serves all measurements."""
    proto = ir.to_proto(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in names]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in sorted(names))
    _answer_all_positions(proto)
    outputs = [helper.make_tensor_value_info(_LOGITS, TensorProto.FLOAT, None)]
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    return open_session(proto, weights_folder(model))


def _answer_all_positions(proto: ModelProto) -> None:
    """Skip what picks the last position in front of the head: one answer a row says too little."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    node = makers.get(_LOGITS)
    while node is not None and node.op_type in _BEHIND_HEAD:
        node = makers.get(node.input[0])
    if node is None or node.op_type not in {"GatherElements", "Slice"}:
        return
    picked, every = node.output[0], node.input[0]
    for reader in proto.graph.node:
        for index, name in enumerate(reader.input):
            if name == picked:
                reader.input[index] = every
    del proto.graph.value_info[:]


def _log_probabilities(session: ort.InferenceSession, feed: dict[str, Array], index: int) -> Array:
    logits = fetch(session, [_LOGITS], feed, index)[_LOGITS]
    if not np.isfinite(logits).all():
        raise StageError(
            "quantize",
            f"the logits hold NaN or Inf on calibration batch {index}",
            hint="Check the weights and the calibration inputs: the fp32 model itself is not finite here.",
        )
    logits = logits.reshape(-1, logits.shape[-1])
    logits = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))


def _kl(reference: Array, candidate: Array) -> Array:
    return np.asarray((np.exp(reference) * (reference - candidate)).sum(axis=-1))


def _rounded(weight: Weight, array: Array) -> Array:
    if weight.grid is None:
        raise ValueError(f"weight {weight.value.name} has no grid")
    try:
        blocks = scales(array, weight.grid)
    except ValueError as error:
        raise weight.not_finite() from error
    return dequantize(codes(array, blocks), blocks)


def _step(chosen: Sequence[Weight], whole: float, left: float) -> Step:
    names = ", ".join(module_path(weight.readers[0]) for weight in chosen[:4])
    reason = f"expected divergence {whole:.3f} nats a token with 4 bits everywhere, {left:.3f} so: {names}"
    return Step("quantize", "sensitive weights in int8", len(chosen), reason + (", …" if len(chosen) > 4 else ""))
