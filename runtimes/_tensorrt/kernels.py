"""What an engine runs, read from the list of kernels that TensorRT-RTX's builder logs at detailed verbosity.

A line is `Name: …, LayerType: …, Inputs: [{ Name, Dimensions, …, Datatype }], Constants: […], Outputs: […], …`.
Names end in `_myl<profile>_<number>`. A matrix product or convolution has the type `gemm`, `correlation` or
`runtime_fusion`; its constants hold its weight, beside biases and scales that are smaller.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["KernelCounts", "count_kernels"]

_PRODUCTS = ("gemm", "correlation", "runtime_fusion")
_KERNEL = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*?)\], TacticName:",
    re.M,
)
_TENSOR = re.compile(r"\{ Name: (?P<name>.*?), Dimensions: \[(?P<dims>[^\]]*)\],.*?Datatype: (?P<dtype>\w+)")
_DTYPES = {"BFloat16": "bf16", "FP4E2M1": "fp4"}
"""Ours for the names that are not the log's in lower case."""
_BITS = {"fp4": 4, "int4": 4, "int8": 8, "fp8": 8, "half": 16, "bf16": 16, "float": 32}


@dataclass(frozen=True, slots=True)
class KernelCounts:
    """Counts over all of an engine's profiles.

    `gemms` counts products with a weight, by what they multiply: `int8`, `fp8`, `half`; `half x int4` with a weight
    that the kernel itself unpacks, `half x int4 unpacked` where another kernel unpacks it each time. Queries, keys and
    values that share one product count once. `int8_attentions` are the fused ones that multiply int8.
    """

    kernels: int
    fused_attentions: int
    gemms: Mapping[str, int]
    int8_attentions: int = 0


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    dims: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def rank(self) -> int:
        return len(self.dims)

    @property
    def wide(self) -> int:
        return sum(size > 1 for size in self.dims)


@dataclass(frozen=True, slots=True)
class _Kernel:
    name: str
    kind: str
    inputs: Sequence[_Tensor]
    constants: Sequence[_Tensor]
    outputs: Sequence[_Tensor]


def count_kernels(plan: str) -> KernelCounts | None:
    """Count the kernels of the builder's list; None where it is no such list."""
    kernels = [_kernel(found) for found in _KERNEL.finditer(plan)]
    if not kernels:
        return None
    unpacked = {
        output.name: _narrowest(kernel.constants)
        for kernel in kernels
        if kernel.constants and not kernel.inputs
        for output in kernel.outputs
    }
    forms = (_form(kernel, unpacked) for kernel in kernels if kernel.kind in _PRODUCTS and "mha" not in kernel.name)
    fused = [kernel for kernel in kernels if "mha" in kernel.name]
    int8 = sum(any(tensor.dtype == "int8" for tensor in kernel.inputs) for kernel in fused)
    return KernelCounts(len(kernels), len(fused), dict(Counter(filter(None, forms)).most_common()), int8)


def _form(kernel: _Kernel, unpacked: Mapping[str, str]) -> str:
    """What a product multiplies; empty where none of its operands is a weight, as in an attention that was split."""
    fed = [tensor for tensor in kernel.inputs if tensor.name not in unpacked]
    if not fed:
        return ""
    activation = fed[0].dtype
    elsewhere = [unpacked[tensor.name] for tensor in kernel.inputs if tensor.name in unpacked]
    if elsewhere:
        return activation if elsewhere[0] == activation else f"{activation} x {elsewhere[0]} unpacked"
    # A bias beside two activations is [1, N]; a weight of one output feature, [K, 1], has only one beside it.
    weights = [tensor for tensor in kernel.constants if tensor.rank > 1 and (tensor.wide > 1 or len(fed) == 1)]
    if not weights:
        return ""
    weight = max(weights, key=lambda tensor: tensor.size).dtype
    return activation if weight == activation else f"{activation} x {weight}"


def _narrowest(constants: Sequence[_Tensor]) -> str:
    return min((tensor.dtype for tensor in constants), key=lambda dtype: _BITS.get(dtype, 64))


def _kernel(found: re.Match[str]) -> _Kernel:
    parts = (_tensors(found[part]) for part in ("inputs", "constants", "outputs"))
    return _Kernel(found["name"], found["kind"], *parts)


def _tensors(text: str) -> list[_Tensor]:
    return [
        _Tensor(
            match["name"],
            tuple(abs(int(size)) for size in match["dims"].split(",") if size),
            _DTYPES.get(match["dtype"], match["dtype"].lower()),
        )
        for match in _TENSOR.finditer(text)
    ]
