"""A few real rows of what Linears read, spread evenly over the calibration data and picked inside the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantize.calibration import feeds, fetch, open_session, weights_folder
from quantize.smoothing import Group
from toolkit.types import Calibration

__all__ = ["first_row", "real_rows", "sample_rows"]

Rows = NDArray[np.float32]

_GOLDEN = 0.6180339887498949


def sample_rows(
    model: ir.Model, groups: Sequence[Group], steps: Mapping[str, int], calibration: Calibration
) -> dict[str, Rows]:
    """By the name of each group's activation [..., K] every so many rows of it, [R, K]; `steps` says of how many one.

    Rows that `attention_mask` calls padding are left out. Raises StageError where the graph does not run.
    """
    proto = ir.to_proto(model)
    names = [str(group.activation.name) for group in groups]
    for group, name in zip(groups, names, strict=True):
        _add_tap(proto, name, group.width, steps[name])
    session = open_session(proto, weights_folder(model))
    fed = {value.name for value in session.get_inputs()} - {f"{_tap(name)}.start" for name in names}
    found: dict[str, list[Rows]] = {name: [] for name in names}
    masks = (batch.get("attention_mask") for batch in calibration.batches())
    for index, (batch, mask) in enumerate(zip(feeds(calibration, fed), masks, strict=True)):
        starts = {name: first_row(index, steps[name]) for name in names}
        feed = {**batch, **{f"{_tap(name)}.start": np.array([start]) for name, start in starts.items()}}
        taken = fetch(session, [_tap(name) for name in names], feed, index)
        for name in names:
            found[name].append(real_rows(taken[_tap(name)], mask, slice(starts[name], None, steps[name])))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _add_tap(proto: ModelProto, name: str, width: int, step: int) -> None:
    constants = {"shape": [-1, width], "end": [np.iinfo(np.int64).max], "axis": [0], "step": [step]}
    for what, numbers in constants.items():
        array = np.array(numbers, np.int64)
        proto.graph.initializer.append(numpy_helper.from_array(array, f"{_tap(name)}.{what}"))
    shape, *ends = (f"{_tap(name)}.{what}" for what in ("shape", "start", "end", "axis", "step"))
    proto.graph.input.append(helper.make_tensor_value_info(ends[0], TensorProto.INT64, [1]))
    proto.graph.node.append(helper.make_node("Reshape", [name, shape], [f"{_tap(name)}.rows"]))
    proto.graph.node.append(helper.make_node("Slice", [f"{_tap(name)}.rows", *ends], [_tap(name)]))
    proto.graph.output.append(helper.make_empty_tensor_value_info(_tap(name)))


def first_row(index: int, step: int) -> int:
    """Another first row in each batch: a step of as many rows as a sample has would pick one position of all."""
    return int(index * _GOLDEN % 1 * step)


def real_rows(rows: Rows, mask: NDArray[Any] | None, picked: slice = slice(None)) -> Rows:
    """Those of `rows` [R, K] that are no padding by `mask` [batch, tokens], where the tensor has a row a token.

    `rows` are the tensor's `picked` ones.
    """
    kept = mask.reshape(-1)[picked] if mask is not None else None
    return rows if kept is None or kept.shape != rows.shape[:1] else rows[kept.astype(bool)]


def _tap(name: str) -> str:
    return f"quantize.sample.{name}"
