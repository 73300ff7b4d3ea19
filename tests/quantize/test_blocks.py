"""Block grids: against explicit loops, the ONNX operator itself, and arithmetic laws."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize.block_nodes import held, lazily
from quantize.blocks import BLOCK_SIZES, Blocks, Grid, block_size_for, codes, dequantize, nearest, refine, scales
from toolkit.errors import UsageError

GRIDS = [Grid(bits, size, symmetric) for bits in (4, 8) for size in BLOCK_SIZES for symmetric in (True, False)]
RANGES = {(4, True): (-8, 7), (8, True): (-127, 127), (4, False): (0, 15), (8, False): (0, 255)}


def weight(rows=256, columns=5, seed=0, shift=0.3):
    return (np.random.default_rng(seed).standard_t(4, (rows, columns)) + shift).astype(np.float32)


def error(array, integers, blocks, axis=0):
    return np.square(dequantize(integers, blocks, axis) - array)


def by_loops(array, blocks):
    """The nearest integer of each weight, one at a time, and what it stands for."""
    grid, (rows, columns) = blocks.grid, array.shape
    integers, back = np.zeros((rows, columns), int), np.zeros((rows, columns), np.float32)
    for k in range(rows):
        for n in range(columns):
            scale, zero = blocks.scale[k // grid.block_size, n], int(blocks.zero[k // grid.block_size, n])
            integers[k, n] = min(max(round(float(array[k, n] / scale)) + zero, grid.lowest), grid.highest)
            back[k, n] = np.float32(integers[k, n] - zero) * scale
    return integers, back


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_integers_and_their_inverse_are_those_of_a_loop_over_all_weights(grid):
    array = weight()
    integers, blocks = nearest(array, grid)
    expected, back = by_loops(array, blocks)
    assert np.array_equal(integers, expected)
    assert np.array_equal(dequantize(integers, blocks), back)
    assert (grid.lowest, grid.highest) == RANGES[grid.bits, grid.symmetric]
    assert blocks.scale.shape == blocks.zero.shape == (256 // grid.block_size, 5)
    assert (blocks.scale > 0).all()
    assert not (grid.symmetric and blocks.zero.any())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_blocks_along_the_second_axis_are_the_transpose(grid):
    array = weight()
    integers, blocks = nearest(array, grid)
    turned, other = nearest(np.ascontiguousarray(array.T), grid, axis=1)
    assert np.array_equal(turned.T, integers)
    assert np.array_equal(other.scale.T, blocks.scale)
    assert np.array_equal(dequantize(turned, other, axis=1).T, dequantize(integers, blocks))


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, False), Grid(8, 32)], ids=str)
def test_the_onnx_operator_reads_them_as_we_do(grid):
    array = weight()
    integers, blocks = nearest(array, grid)
    parts = {"w": held(integers, blocks).integers, "s": ir.tensor(blocks.scale)}
    parts["z"] = lazily(lambda: blocks.zero, grid.dtype, blocks.zero.shape)
    values = [ir.Value(name=name, const_value=tensor) for name, tensor in parts.items()]
    for value in values:
        value.dtype, value.shape = value.const_value.dtype, ir.Shape(value.const_value.shape)
    node = ir.node("DequantizeLinear", values, {"axis": 0, "block_size": grid.block_size})
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=values, opset_imports={"": 23}, name="one")
    session = ort.InferenceSession(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    assert np.array_equal(session.run(None, {})[0], dequantize(integers, blocks))


def test_held_integers_of_an_odd_count_keep_their_order():
    array = weight(16, 3)[:, :3]
    integers, blocks = nearest(array, Grid(4, 16))
    assert np.array_equal(held(integers, blocks).integers.numpy().astype(int), integers)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_searched_scale_leaves_no_more_error_than_the_whole_range(symmetric):
    array, grid = weight(), Grid(4, 32, symmetric)
    blocks = scales(array, grid)
    view = array.reshape(8, 32, 5)
    low, high = np.minimum(view.min(1), 0), np.maximum(view.max(1), 0)
    whole = np.maximum(-low, high) / 7 if symmetric else (high - low) / 15
    zero = np.zeros(whole.shape) if symmetric else np.rint(-low / whole)
    plain = Blocks(grid, whole.astype(np.float32), zero.astype(np.int16))
    found, before = (error(array, codes(array, b), b).reshape(8, 32, 5).sum(1) for b in (blocks, plain))
    assert (found <= before * (1 + 1e-6)).all()
    assert found.sum() < 0.97 * before.sum()


def test_importance_moves_the_error_away_from_what_matters():
    array, grid = weight(), Grid(4, 32)
    importance = np.where(np.arange(256) % 32 < 4, 100.0, 0.01)
    plain, aware = (scales(array, grid, importance=each) for each in (None, importance))
    loss = [(error(array, codes(array, blocks), blocks) * importance[:, None]).sum() for blocks in (plain, aware)]
    assert loss[1] < 0.8 * loss[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_refined_blocks_keep_integer_zero_points_and_are_never_worse(symmetric):
    array, grid = weight(512, 16), Grid(4, 32, symmetric)
    before = scales(array, grid)
    after = refine(array, before)
    assert after.zero.dtype == np.int16
    assert (after.zero.min(), after.zero.max()) >= (0, 0)
    assert after.zero.max() <= (0 if symmetric else 15)
    sums = [error(array, codes(array, b), b).reshape(16, 32, 16).sum(1) for b in (before, after)]
    assert (sums[1] <= sums[0] * (1 + 1e-5)).all()
    assert sums[1].sum() < 0.99 * sums[0].sum()


def test_a_block_of_zeros_stays_zero_and_infinities_are_refused():
    array = weight(32, 3)
    array[:16] = 0
    integers, blocks = nearest(array, Grid(4, 16, symmetric=False))
    assert not dequantize(integers, blocks)[:16].any()
    for bad in (np.nan, np.inf):
        array[5, 1] = bad
        with pytest.raises(ValueError, match="NaN or Inf"):
            scales(array, Grid(4, 16))


@pytest.mark.parametrize(("bits", "size"), [(3, 32), (4, 8), (4, 48), (8, 256)])
def test_other_grids_are_refused_and_the_allowed_ones_named(bits, size):
    with pytest.raises(UsageError) as caught:
        Grid(bits, size)
    assert ("16, 32, 64, 128" in caught.value.hint) or ("4 and 8 bits" in caught.value.hint)


@pytest.mark.parametrize(
    ("width", "wanted", "expected"),
    [(576, 32, 32), (576, 128, 64), (48, 32, 16), (128, 64, 64), (100, 32, None), (80, 128, 16)],
)
def test_a_block_size_that_does_not_divide_falls_back_to_one_that_does(width, wanted, expected):
    assert block_size_for(width, wanted) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(GRIDS), st.floats(1e-3, 1e3))
def test_eight_bits_and_inner_weights_are_within_half_a_step(seed, grid, size):
    array = (np.random.default_rng(seed).normal(size=(128, 2)) * size).astype(np.float32)
    integers, blocks = nearest(array, grid)
    steps = np.abs(dequantize(integers, blocks) - array) / np.repeat(blocks.scale, grid.block_size, axis=0)
    inside = (integers > grid.lowest) & (integers < grid.highest)
    assert steps[inside].max() <= 0.5 + 1e-3
    if grid.bits == 8:
        assert steps.max() <= 1.001
