"""Padded positions do not count as drift; everything else does."""

from __future__ import annotations

import numpy as np

from toolkit.drift.measure import measure
from toolkit.types import Dim, Gate, ModelSpec, TensorSpec

SPEC = ModelSpec(
    name="m",
    family="auto",
    kind="encoder",
    task="features",
    source="here",
    architecture="M",
    inputs=(TensorSpec("attention_mask", "int64", ("batch", "sequence")),),
    outputs=(TensorSpec("hidden", "float32", ("batch", "sequence", 4)),),
    dims={"batch": Dim(1, 2, 8), "sequence": Dim(1, 3, 8)},
)
FED = [{"attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}]
GATE = Gate(min_sqnr_db=60)


def hidden(row: int, position: int, value: float) -> list[dict[str, np.ndarray]]:
    array = np.ones((2, 3, 4), dtype=np.float32)
    array[row, position] = value
    return [{"hidden": array}]


def passes(row: int, position: int, value: float) -> bool:
    drift = measure("export", "here", hidden(0, 0, 1), hidden(row, position, value), SPEC, inputs=FED, gate=GATE)
    return drift.passed


def test_a_padded_position_may_differ() -> None:
    assert passes(0, 2, 7.0)


def test_an_attended_position_may_not() -> None:
    assert not passes(0, 1, 7.0)
    assert not passes(1, 2, 7.0)


def test_a_padded_position_may_not_be_nan() -> None:
    assert not passes(0, 2, float("nan"))
