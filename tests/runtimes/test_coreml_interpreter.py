"""The MIL interpreter: every operator against coremltools' own evaluation or PyTorch, rounding, states, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil_programs import ct, mb, save, types

from runtimes.coreml.interpreter import Interpreter
from runtimes.coreml.operators import OPERATORS
from runtimes.coreml.program import read_program
from toolkit.errors import StageError, UnsupportedError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 3, 4)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.5)
ONES = (X > 0).astype(np.int32)
Y = RNG.normal(size=(2, 3, 4)).astype(np.float32)
GAMMA = RNG.normal(size=4).astype(np.float32)
IMAGE = RNG.normal(size=(2, 4, 6, 5)).astype(np.float32)
KERNEL = RNG.normal(size=(6, 2, 3, 2)).astype(np.float32)
BIAS = RNG.normal(size=6).astype(np.float32)
HEADS = RNG.normal(size=(2, 3, 5, 8)).astype(np.float32)
MASK = np.tri(5, 5, dtype=bool)
CODES = RNG.integers(-8, 8, (4, 6)).astype(types.np_int4_dtype)
SCALES = RNG.uniform(0.5, 2, (2, 3)).astype(np.float32)
PLACES = RNG.integers(0, 16, (4, 6)).astype(types.np_uint4_dtype)
TABLES = RNG.normal(size=(2, 1, 16, 1)).astype(np.float32)
VECTORS = RNG.normal(size=(1, 1, 16, 2)).astype(np.float32)

Case = Callable[[Any], Any]
CASES: Mapping[str, Case] = {
    **{
        name: lambda x, name=name: getattr(mb, name)(x=x)
        for name in (
            "abs", "atan", "ceil", "cos", "erf", "exp", "exp2", "floor", "relu", "round", "sigmoid", "sign", "sin",
            "softplus", "softsign", "square", "tan", "tanh",
        )
    },
    "sqrt": lambda x: mb.sqrt(x=mb.abs(x=x)),
    "log": lambda x: mb.log(x=mb.abs(x=x), epsilon=0.5),
    "rsqrt": lambda x: mb.rsqrt(x=mb.square(x=x), epsilon=0.5),
    "inverse": lambda x: mb.inverse(x=mb.abs(x=x), epsilon=0.5),
    "clip": lambda x: mb.clip(x=x, alpha=-0.5, beta=1.0),
    **{
        name: lambda x, name=name: getattr(mb, name)(x=x, y=Y)
        for name in ("add", "sub", "mul", "real_div", "maximum", "minimum", "floor_div", "mod")
    },
    "pow": lambda x: mb.pow(x=mb.abs(x=x), y=1.5),
    **{
        name: lambda x, name=name: mb.cast(x=getattr(mb, name)(x=mb.round(x=x), y=np.float32(0)), dtype="fp32")
        for name in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal")
    },
    **{
        name: lambda x, name=name: mb.cast(
            x=getattr(mb, name)(x=mb.greater(x=x, y=np.float32(0)), y=Y > 0), dtype="int32"
        )
        for name in ("logical_and", "logical_or", "logical_xor")
    },
    "logical_not": lambda x: mb.cast(x=mb.logical_not(x=mb.greater(x=x, y=np.float32(0))), dtype="fp32"),
    "select": lambda x: mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=x, b=Y),
    "cast to integers": lambda x: mb.cast(x=mb.mul(x=x, y=np.float32(3)), dtype="int32"),
    **{
        f"{name} keep_dims={keep}": lambda x, name=name, keep=keep: getattr(mb, name)(x=x, axes=[0, -1], keep_dims=keep)
        for name in ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "reduce_l1_norm",
                     "reduce_l2_norm", "reduce_sum_square", "reduce_log_sum_exp")
        for keep in (True, False)
    },
    "reduce_sum of all": lambda x: mb.reduce_sum(x=x),
    "reduce_argmax": lambda x: mb.reduce_argmax(x=x, axis=1, keep_dims=True),
    "reduce_argmin": lambda x: mb.reduce_argmin(x=x, axis=-1, keep_dims=False),
    "softmax": lambda x: mb.softmax(x=x, axis=1),
    "gelu": lambda x: mb.gelu(x=x),
    "gelu tanh": lambda x: mb.gelu(x=x, mode="TANH_APPROXIMATION"),
    "gelu sigmoid": lambda x: mb.gelu(x=x, mode="SIGMOID_APPROXIMATION"),
    "layer_norm": lambda x: mb.layer_norm(x=x, axes=[-1], gamma=GAMMA, beta=GAMMA, epsilon=np.float32(1e-2)),
    "layer_norm of two axes": lambda x: mb.layer_norm(x=x, axes=[1, 2], epsilon=np.float32(1e-5)),
    "l2_norm": lambda x: mb.l2_norm(x=x, epsilon=np.float32(1e-3)),
    "linear": lambda x: mb.linear(x=x, weight=Y.reshape(6, 4), bias=BIAS),
    "matmul": lambda x: mb.matmul(x=x, y=Y, transpose_x=True),
    "matmul turned": lambda x: mb.matmul(x=x, y=Y, transpose_y=True),
    "transpose": lambda x: mb.transpose(x=x, perm=[2, 0, 1]),
    "reshape": lambda x: mb.reshape(x=x, shape=[-1, 6]),
    "reshape keeping an axis": lambda x: mb.reshape(x=x, shape=[0, 4, -1]),
    "expand_dims": lambda x: mb.expand_dims(x=x, axes=[0, -1]),
    "squeeze": lambda x: mb.squeeze(x=mb.expand_dims(x=x, axes=[0, 2]), axes=[0, 2]),
    "concat": lambda x: mb.concat(values=[x, Y], axis=-1),
    "stack": lambda x: mb.stack(values=[x, Y], axis=1),
    "split": lambda x: mb.split(x=x, split_sizes=[1, 2], axis=1),
    "split into equals": lambda x: mb.split(x=x, num_splits=2, axis=2),
    "gather": lambda x: mb.gather(x=x, indices=np.array([[0, -1]], np.int32), axis=1),
    "gather in batches": lambda x: mb.gather(x=x, indices=np.array([[0, 1], [2, 2]], np.int32), axis=1, batch_dims=1),
    "gather_along_axis": lambda x: mb.gather_along_axis(x=x, indices=ONES, axis=1),
    "slice_by_index": lambda x: mb.slice_by_index(
        x=x, begin=[0, -2, 1], end=[0, 3, 0], end_mask=[True, False, True], squeeze_mask=[False, False, False]
    ),
    "slice_by_index backwards": lambda x: mb.slice_by_index(
        x=x, begin=[1, 0, 3], end=[2, 3, 0], stride=[1, 2, -2], squeeze_mask=[True, False, False]
    ),
    "slice_by_size": lambda x: mb.slice_by_size(x=x, begin=[0, 1, 0], size=[2, 2, -1]),
    "slice_update": lambda x: mb.slice_update(
        x=x, update=Y[:1, 1:], begin=[1, 1, 0], end=[2, 3, 0], end_mask=[False, False, True]
    ),
    "tile": lambda x: mb.tile(x=x, reps=[1, 2, 3]),
    "band_part": lambda x: mb.band_part(x=x, lower=1, upper=0),
    "reverse": lambda x: mb.reverse(x=x, axes=[0, 2]),
    "pad": lambda x: mb.pad(x=x, pad=[1, 0, 0, 2], mode="constant", constant_val=np.float32(3)),
    "pad by reflection": lambda x: mb.pad(x=x, pad=[1, 2], mode="reflect"),
    "shape": lambda x: mb.shape(x=x),
    "fill": lambda x: mb.add(x=mb.fill(shape=mb.shape(x=x), value=np.float32(2)), y=np.float32(1)),
    "range_1d": lambda x: mb.range_1d(start=np.int32(1), end=mb.reduce_prod(x=mb.shape(x=x)), step=np.int32(5)),
    "topk": lambda x: mb.topk(x=x, k=2, axis=-1),
    "argsort": lambda x: mb.argsort(x=x, axis=1, ascending=True),
    "quantize": lambda x: mb.cast(
        x=mb.quantize(input=x, scale=np.float32(0.02), output_dtype="int8"), dtype="int32"
    ),
}  # fmt: skip
"""Each writes one operator over x; coremltools works out what it answers where x is a constant."""

TORCH: Mapping[str, tuple[Case, torch.Tensor]] = {
    "silu": (lambda x: mb.silu(x=x), F.silu(torch.from_numpy(X))),
    "cumsum": (
        lambda x: mb.cumsum(x=x, axis=1, exclusive=True, reverse=True),
        torch.from_numpy(X[:, ::-1].cumsum(axis=1)[:, ::-1] - X),
    ),
    "dequantize": (
        lambda x: mb.dequantize(
            input=mb.quantize(input=x, scale=np.float32(0.1), zero_point=np.uint8(7), output_dtype="uint8"),
            scale=np.float32([0.5, 2, 1]), zero_point=np.uint8([1, 2, 3]), axis=1,
        ),
        torch.from_numpy(
            (np.clip(np.rint(X / np.float32(0.1)) + 7, 0, 255) - np.float32([[1], [2], [3]]))
            * np.float32([[0.5], [2], [1]])
        ),
    ),
    # coremltools evaluates it as if it were not interleaved; its documentation says otherwise.
    "concat by turns": (
        lambda x: mb.concat(values=[x, Y], axis=1, interleave=True),
        torch.from_numpy(np.stack([X, Y], axis=2).reshape(2, 6, 4)),
    ),
    "gather_nd": (
        lambda x: mb.gather_nd(x=x, indices=np.array([[0, 1], [1, 2]], np.int32)), torch.from_numpy(X[[0, 1], [1, 2]]),
    ),
    "einsum": (
        lambda x: mb.einsum(values=[x, Y.transpose(2, 1, 0)], equation="chw,whr->chr"),
        torch.from_numpy(np.einsum("chw,whr->chr", X, Y.transpose(2, 1, 0))),
    ),
    "conv": (
        lambda x: mb.conv(
            x=IMAGE, weight=KERNEL, bias=BIAS, strides=[2, 1], pad_type="custom", pad=[1, 0, 2, 1], dilations=[1, 2],
            groups=2,
        ),
        F.conv2d(
            F.pad(torch.from_numpy(IMAGE), (2, 1, 1, 0)), torch.from_numpy(KERNEL), torch.from_numpy(BIAS),
            stride=(2, 1), dilation=(1, 2), groups=2,
        ),
    ),
    "conv of the same size": (
        lambda x: mb.conv(x=IMAGE, weight=KERNEL, pad_type="same", groups=2),
        F.conv2d(F.pad(torch.from_numpy(IMAGE), (0, 1, 1, 1)), torch.from_numpy(KERNEL), groups=2),
    ),
    "batch_norm": (
        lambda x: mb.batch_norm(
            x=IMAGE, mean=GAMMA, variance=GAMMA**2, gamma=GAMMA, beta=GAMMA, epsilon=np.float32(1e-3)
        ),
        F.batch_norm(
            torch.from_numpy(IMAGE), torch.from_numpy(GAMMA), torch.from_numpy(GAMMA**2), torch.from_numpy(GAMMA),
            torch.from_numpy(GAMMA), eps=1e-3,
        ),
    ),
    "attention": (
        lambda x: mb.scaled_dot_product_attention(query=HEADS, key=HEADS[::-1], value=HEADS),
        F.scaled_dot_product_attention(*map(torch.from_numpy, (HEADS, HEADS[::-1].copy(), HEADS))),
    ),
    "attention under a mask": (
        lambda x: mb.scaled_dot_product_attention(query=HEADS, key=HEADS, value=HEADS, attn_mask=MASK),
        F.scaled_dot_product_attention(*[torch.from_numpy(HEADS)] * 3, attn_mask=torch.from_numpy(MASK)),
    ),
    "attention with a bias": (
        lambda x: mb.scaled_dot_product_attention(query=HEADS, key=HEADS, value=HEADS, attn_mask=HEADS[0, 0, :, :5]),
        F.scaled_dot_product_attention(*[torch.from_numpy(HEADS)] * 3, attn_mask=torch.from_numpy(HEADS[0, 0, :, :5])),
    ),
}  # fmt: skip
"""Operators that coremltools does not evaluate."""

STORED: Mapping[str, tuple[Callable[[], Any], np.ndarray]] = {
    "int4 blocks": (
        lambda: mb.constexpr_blockwise_shift_scale(data=CODES, scale=SCALES),
        CODES * SCALES.repeat(2, 0).repeat(2, 1),
    ),
    "uint4 blocks with zero points": (
        lambda: mb.constexpr_blockwise_shift_scale(data=PLACES, scale=SCALES, offset=PLACES[:2, :3]),
        (PLACES.astype(np.float32) - PLACES[:2, :3].repeat(2, 0).repeat(2, 1)) * SCALES.repeat(2, 0).repeat(2, 1),
    ),
    "tables by rows": (
        lambda: mb.constexpr_lut_to_dense(indices=PLACES, lut=TABLES),
        TABLES[[[0], [0], [1], [1]], 0, PLACES.astype(int), 0],
    ),
    "tables of pairs": (
        lambda: mb.constexpr_lut_to_dense(indices=PLACES, lut=VECTORS, vector_axis=1),
        VECTORS[0, 0][PLACES.astype(int)].reshape(4, 12),
    ),
    "sparse": (
        lambda: mb.constexpr_sparse_to_dense(
            nonzero_data=np.float32([1, 2, 3]), mask=np.array([[1, 0, 1], [0, 1, 0]]).astype(types.np_uint1_dtype)
        ),
        np.float32([[1, 0, 2], [0, 3, 0]]),
    ),
    "float16 weights": (lambda: mb.constexpr_cast(source_val=X.astype(np.float16), output_dtype="fp32"),
                        X.astype(np.float16).astype(np.float32)),
}  # fmt: skip


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[Any, Any]]]:
    """For each case what the interpreter answers beside what it should, from one package that holds them all."""
    expected: dict[str, list[Any]] = {name: [tensor.numpy()] for name, (_, tensor) in TORCH.items()}

    def evaluate(x: Any) -> Any:
        expected.update({name: [each.val for each in _listed(case(X))] for name, case in CASES.items()})
        return mb.identity(x=x)

    mb.program(input_specs=[mb.TensorSpec(X.shape)], opset_version=ct.target.iOS18)(evaluate)
    every = {**CASES, **{name: case for name, (case, _) in TORCH.items()}}
    every |= {name: lambda x, make=make: mb.add(x=make(), y=np.float32(0)) for name, (make, _) in STORED.items()}
    expected |= {name: [array] for name, (_, array) in STORED.items()}

    def build(x: Any) -> Any:
        return tuple(
            mb.identity(x=each, name=f"case_{index}_{part}")
            for index, case in enumerate(every.values())
            for part, each in enumerate(_listed(case(x)))
        )

    program = read_program(save(build, [mb.TensorSpec(X.shape)], tmp_path_factory.mktemp("mil") / "m.mlpackage"))
    answers = Interpreter(program).run({"x": X}, {})
    return {
        name: [(answers[f"case_{index}_{part}"], wanted) for part, wanted in enumerate(expected[name])]
        for index, name in enumerate(every)
    }


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, list | tuple) else [found]


@pytest.mark.parametrize("name", [*CASES, *TORCH, *STORED])
def test_operator(name: str, answered: dict[str, list[tuple[Any, Any]]]) -> None:
    for answer, wanted in answered[name]:
        assert wanted is not None
        assert answer.shape == np.shape(wanted)
        np.testing.assert_allclose(answer, wanted, rtol=2e-5, atol=2e-6)


def test_every_operator_that_is_known_is_tested() -> None:
    used: set[str] = set()

    def build(x: Any) -> Any:
        made = [each for case in (*CASES.values(), *(case for case, _ in TORCH.values())) for each in _listed(case(x))]
        made += [make() for make, _ in STORED.values()]
        used.update(operation.op_type for operation in made[0].op.enclosing_block.operations)
        return mb.identity(x=x)

    mb.program(input_specs=[mb.TensorSpec(X.shape)], opset_version=ct.target.iOS18)(build)
    assert set(OPERATORS) - used <= {"fill_like", "identity"}


def _interpreter(build: Any, specs: list[Any], folder: Path) -> Interpreter:
    return Interpreter(read_program(save(build, specs, folder / "m.mlpackage")))


def test_float16_is_rounded_after_each_operator_and_overflows(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        small = mb.sub(x=mb.add(x=x, y=np.float16(1)), y=np.float16(1), name="small")
        return small, mb.mul(x=mb.mul(x=x, y=np.float16(60000)), y=np.float16(1e-3), name="large")

    interpreter = _interpreter(build, [mb.TensorSpec((3,), types.fp16)], tmp_path)
    x, large, small = np.float16([1e-4, 1e-3, 2]), np.float16(60000), np.float16(1e-3)
    answers = interpreter.run({"x": x}, {})
    assert {array.dtype for array in answers.values()} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(answers["small"], np.float16([0, 2**-10, 2]))
    np.testing.assert_array_equal(answers["large"], [x[0] * large * small, x[1] * large * small, np.inf])


def test_float32_stays_what_it_is(tmp_path: Path) -> None:
    def build(x: Any) -> Any:
        return mb.add(x=mb.mul(x=x, y=np.float32(60000)), y=np.float32(1e-3), name="y")

    answers = _interpreter(build, [mb.TensorSpec((1,))], tmp_path).run({"x": np.float32([2])}, {})
    np.testing.assert_array_equal(answers["y"], np.float32([120000.001]))


def test_states_are_kept_between_calls_and_apart(tmp_path: Path) -> None:
    def build(x: Any, total: Any) -> Any:
        new = mb.add(x=mb.read_state(input=total), y=x)
        return mb.identity(x=mb.coreml_update_state(state=total, value=new), name="y")

    specs = [mb.TensorSpec((2,), types.fp16), mb.StateTensorSpec((2,), types.fp16)]
    interpreter = _interpreter(build, specs, tmp_path)
    first, second = interpreter.new_states(), interpreter.new_states()
    x = np.float16([1, 2])
    interpreter.run({"x": x}, first)
    np.testing.assert_array_equal(interpreter.run({"x": x}, first)["y"], [2, 4])
    np.testing.assert_array_equal(interpreter.run({"x": x}, second)["y"], [1, 2])


def test_an_unknown_operator_is_named(tmp_path: Path) -> None:
    package = save(
        lambda x: mb.thresholded_relu(x=mb.elu(x=x, alpha=np.float32(1)), alpha=np.float32(1)),
        [mb.TensorSpec((2,))],
        tmp_path / "m.mlpackage",
    )
    with pytest.raises(UnsupportedError, match="does not know the operators elu, thresholded_relu"):
        Interpreter(read_program(package))


def test_an_operator_that_fails_is_named(tmp_path: Path) -> None:
    def build(x: Any, at: Any) -> Any:
        return mb.gather(x=x, indices=at, name="found")

    specs = [mb.TensorSpec((3, 2)), mb.TensorSpec((1,), types.int32)]
    interpreter = _interpreter(build, specs, tmp_path)
    with pytest.raises(StageError, match=r"operator 'gather' \(found\)"):
        interpreter.run({"x": np.zeros((3, 2), np.float32), "at": np.int32([7])}, {})


def test_a_package_that_is_not_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"cannot read .*model\.mlmodel"):
        read_program(tmp_path)
    model = tmp_path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    model.parent.mkdir(parents=True)
    model.write_bytes(b"nonsense")
    with pytest.raises(StageError, match="cannot read"):
        read_program(tmp_path)
    model.write_bytes(b"")
    with pytest.raises(UnsupportedError, match="no ML Program"):
        read_program(tmp_path)


def test_a_cut_weight_file_is_refused(tmp_path: Path) -> None:
    package = save(
        lambda x: mb.linear(x=x, weight=RNG.normal(size=(64, 64)).astype(np.float32)),
        [mb.TensorSpec((1, 64))],
        tmp_path / "m.mlpackage",
    )
    weights = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(StageError, match="weight"):
        read_program(package)
