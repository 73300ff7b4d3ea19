"""MIL's operators in torch, one small function each, by the names and parameters of coremltools' `mil.ops.defs`.

Tensors of float16 come as float32 that holds only float16's numbers; whoever calls rounds what comes out. Numbers that
say how, as axes and permutations, come as tensors too. `OPERATORS` is the whole of what is understood.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtimes.coreml import moving, weights

__all__ = ["OPERATORS", "Function"]

Function = Callable[..., Tensor | Sequence[Tensor]]


def _unary(function: Callable[[Tensor], Tensor]) -> Function:
    def apply(x: Tensor) -> Tensor:
        return function(x)

    return apply


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return apply


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., K] · weight [N, K] transposed + bias [N]."""
    return F.linear(x, weight, bias)


def matmul(x: Tensor, y: Tensor, transpose_x: Any = False, transpose_y: Any = False) -> Tensor:
    """The product of the last two axes, either turned first."""
    return (x.mT if transpose_x else x) @ (y.mT if transpose_y else y)


def einsum(values: Sequence[Tensor], equation: str) -> Tensor:
    """Einstein's sum by its equation."""
    return torch.einsum(equation, *values)


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Tensor | None = None,
    pad_type: str = "valid",
    pad: Tensor | None = None,
    dilations: Tensor | None = None,
    groups: Any = 1,
) -> Tensor:
    """x [B, C, ...] with weight [M, C / groups, ...] over one to three axes; pads are begin and end of each axis."""
    rank = x.ndim - 2
    steps, holes = _numbers(strides, [1] * rank), _numbers(dilations, [1] * rank)
    if pad_type == "custom":
        x = F.pad(x, _from_last(_numbers(pad, [0] * 2 * rank)))
    elif pad_type != "valid":
        x = F.pad(x, _from_last(_same(x, weight, steps, holes, lower=pad_type == "same_lower")))
    function = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return function(x, weight, bias, stride=steps, dilation=holes, groups=int(groups))


def _same(x: Tensor, weight: Tensor, steps: list[int], holes: list[int], *, lower: bool) -> list[int]:
    pads = []
    for size, kernel, step, hole in zip(x.shape[2:], weight.shape[2:], steps, holes, strict=True):
        whole = max(0, (math.ceil(size / step) - 1) * step + (kernel - 1) * hole + 1 - size)
        less, more = whole // 2, whole - whole // 2
        pads += [more, less] if lower else [less, more]
    return pads


def layer_norm(
    x: Tensor, axes: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: Any = 1e-5
) -> Tensor:
    """Mean 0 and variance 1 over the axes, then times gamma plus beta, which have those axes' sizes."""
    over = _numbers(axes, [])
    centred = x - x.mean(over, keepdim=True)
    normal = centred * torch.rsqrt(centred.square().mean(over, keepdim=True) + float(epsilon))
    shape = [size if axis in {each % x.ndim for each in over} else 1 for axis, size in enumerate(x.shape)]
    scaled = normal if gamma is None else normal * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: Any = 1e-5,
) -> Tensor:
    """Each channel, axis 1, by statistics that are given."""
    return F.batch_norm(x, mean, variance, gamma, beta, eps=float(epsilon))


def l2_norm(x: Tensor, epsilon: Any = 1e-6) -> Tensor:
    """Each of the last three axes' blocks over its length."""
    axes = tuple(range(-min(3, x.ndim), 0))
    return x * torch.rsqrt(x.square().sum(axes, keepdim=True) + float(epsilon))


def softmax(x: Tensor, axis: Any = -1) -> Tensor:
    """Along one axis."""
    return torch.softmax(x, int(axis))


def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """By the error function, the hyperbolic tangent or the logistic function."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return F.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """[..., L, E] over [..., S, E] and [..., S, V]; a mask is true where attended to, or added. Scale 1 / sqrt(E).

    Products and softmax are exact to float32 in here; what Apple's kernel rounds on the way is not imitated.
    """
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    if attn_mask is not None:
        masked = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masked else scores + attn_mask
    return torch.softmax(scores, -1) @ value


def _reduced(function: Callable[..., Tensor]) -> Function:
    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: Any = False) -> Tensor:
        over = _numbers(axes, list(range(x.ndim)))
        return function(x, over, keepdim=bool(keep_dims))

    return reduce


def _argument(function: Callable[..., Tensor]) -> Function:
    def reduce(x: Tensor, axis: Any = -1, keep_dims: Any = False, output_dtype: str = "int32") -> Tensor:
        return function(x, int(axis), keepdim=bool(keep_dims))

    return reduce


def _product(x: Tensor, over: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((each % x.ndim for each in over), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


def cumsum(x: Tensor, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> Tensor:
    """The sum of all up to each, without itself where `exclusive`, from the end where `reverse`."""
    along = int(axis)
    turned = x.flip(along) if reverse else x
    summed = turned.cumsum(along)
    summed = summed - turned if exclusive else summed
    return summed.flip(along) if reverse else summed


def clip(x: Tensor, alpha: Any, beta: Any) -> Tensor:
    """Between alpha and beta."""
    return x.clamp(float(alpha), float(beta))


def rsqrt(x: Tensor, epsilon: Any = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + float(epsilon))


def log(x: Tensor, epsilon: Any = 1e-45) -> Tensor:
    """The natural logarithm of x + epsilon."""
    return torch.log(x + float(epsilon))


def inverse(x: Tensor, epsilon: Any = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + float(epsilon))


def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """a where the condition holds, else b."""
    return torch.where(cond, a, b)


def topk(
    x: Tensor,
    k: Any = 1,
    axis: Any = -1,
    ascending: Any = False,
    sort: Any = True,
    return_indices: Any = True,
    output_indices_dtype: str = "int32",
) -> Sequence[Tensor]:
    """The k largest along an axis, or smallest where `ascending`, and where they stood."""
    found = torch.topk(x, int(k), int(axis), largest=not ascending, sorted=bool(sort))
    return tuple(found) if return_indices else (found.values,)


def argsort(x: Tensor, axis: Any = -1, ascending: Any = False) -> Tensor:
    """Where each would come from, were the axis sorted."""
    return torch.argsort(x, dim=int(axis), descending=not ascending, stable=True)


def quantize(input: Tensor, scale: Tensor, output_dtype: str, zero_point: Any = None, axis: Any = None) -> Tensor:
    """The nearest integers of input / scale + zero point, halves to even, within their type."""
    by, zero = (_along(each, input, axis) for each in (scale, zero_point))
    low, high = {"int8": (-128, 127), "uint8": (0, 255)}[output_dtype]
    steps: Tensor = torch.round(input / by) + (0 if zero is None else zero)
    return torch.clamp(steps, low, high)


def dequantize(input: Tensor, scale: Tensor, zero_point: Any = None, axis: Any = None) -> Tensor:
    """(integers - zero point) · scale."""
    by, zero = (_along(each, input, axis) for each in (scale, zero_point))
    shifted = input.float() - (0.0 if zero is None else zero.float())
    return torch.mul(shifted, by)


def _along(value: Tensor | None, like: Tensor, axis: Any) -> Any:
    if value is None or value.ndim == 0:
        return value
    shape = [1] * like.ndim
    shape[int(axis)] = -1
    return value.reshape(shape)


def _numbers(given: Tensor | None, otherwise: list[int]) -> list[int]:
    return otherwise if given is None else [int(each) for each in given.reshape(-1).tolist()]


def _from_last(pads: list[int]) -> list[int]:
    """Pairs of begin and end, the first axis first, as torch wants them: the last first."""
    pairs = list(zip(pads[::2], pads[1::2], strict=True))
    return [each for pair in reversed(pairs) for each in pair]


_UNARY: Mapping[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "atan": torch.atan,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": lambda x: x,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": F.silu,
    "sin": torch.sin,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_BINARY: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "floor_div": torch.floor_divide,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mod": torch.remainder,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "pow": torch.pow,
    "real_div": torch.div,
    "sub": torch.sub,
}
_REDUCED: Mapping[str, Callable[..., Tensor]] = {
    "reduce_l1_norm": lambda x, over, keepdim: x.abs().sum(over, keepdim),
    "reduce_l2_norm": lambda x, over, keepdim: x.square().sum(over, keepdim).sqrt(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_prod": _product,
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, over, keepdim: x.square().sum(over, keepdim),
}
_OWN: tuple[Function, ...] = (
    argsort, batch_norm, clip, conv, cumsum, dequantize, einsum, gelu, inverse, l2_norm, layer_norm, linear, log,
    matmul, quantize, rsqrt, scaled_dot_product_attention, select, softmax, topk,
)  # fmt: skip

OPERATORS: Mapping[str, Function] = {
    **{name: _unary(function) for name, function in _UNARY.items()},
    **{name: _binary(function) for name, function in _BINARY.items()},
    **{name: _reduced(function) for name, function in _REDUCED.items()},
    "reduce_argmax": _argument(torch.argmax),
    "reduce_argmin": _argument(torch.argmin),
    **{function.__name__: function for function in (*_OWN, *moving.FUNCTIONS, *weights.FUNCTIONS)},
}
"""Every operator that is understood, but for `const`, `cast` and those of states, which the interpreter has itself."""
