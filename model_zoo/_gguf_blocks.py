"""How GGUF packs weights: 32 to a block, with one half-precision scale, and a minimum or a fixed middle.

Layouts as in ggml's `block_q4_0` to `block_q8_0`: nibbles of the first half of a block are the low ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLOCK", "TYPES", "TensorType", "codes", "decode", "offset", "scale", "type_name"]

BLOCK = 32
_ROWS = 1024


@dataclass(frozen=True, slots=True)
class TensorType:
    """A storage type: `block` weights take `size` bytes; `bits` is 0 where they are plain floats.

    `middle` is the code that stands for zero; None says that each block stores its own minimum.
    """

    name: str
    block: int
    size: int
    bits: int = 0
    middle: int | None = None


TYPES = {
    0: TensorType("F32", 1, 4),
    1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", BLOCK, 18, 4, 8),
    3: TensorType("Q4_1", BLOCK, 20, 4),
    6: TensorType("Q5_0", BLOCK, 22, 5, 16),
    7: TensorType("Q5_1", BLOCK, 24, 5),
    8: TensorType("Q8_0", BLOCK, 34, 8, 128),
}
_OTHERS = {
    9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS",
    18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32",
    27: "I64", 28: "F64", 29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


def type_name(number: int) -> str:
    """What ggml calls the type of this number."""
    known = TYPES.get(number)
    return known.name if known else _OTHERS.get(number, f"number {number}")


def codes(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.uint8]:
    """The integers of rows of blocks: uint8 [N, K / 32 · size] in, uint8 [N, K] out, none as large as 2**bits.

    Five-bit types keep the fifth bits first, 32 of them in 4 bytes, lowest first.
    """
    body = _blocks(raw, kind)[..., _head(kind) :]
    if kind.bits == 8:
        return (body ^ np.uint8(128)).reshape(len(raw), -1)
    nibbles = body[..., -BLOCK // 2 :]
    found = np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=-1)
    if kind.bits == 5:
        found |= np.unpackbits(body[..., :4], axis=-1, bitorder="little") << np.uint8(4)
    return found.reshape(len(raw), -1)


def scale(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.float32]:
    """What a block's codes are multiplied by, float32 [N, K / 32]."""
    return _half(_blocks(raw, kind)[..., :2])


def offset(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.float32]:
    """What is added then, float32 [N, K / 32].

    A half-precision scale times a code of at most 8 bits is exact in float32, so scale · code + offset has the bits
    of ggml's own dequantization.
    """
    if kind.middle is None:
        return _half(_blocks(raw, kind)[..., 2:4])
    with np.errstate(invalid="ignore"):  # a broken scale is found, and named, in the weights that it makes
        return scale(raw, kind) * np.float32(-kind.middle)


def decode(raw: NDArray[Any], kind: TensorType, order: NDArray[np.intp] | None, out: NDArray[np.float32]) -> None:
    """Write the weights of `raw`, [N, bytes of a row], into `out`, float32 [N, K]; row n of `out` is row order[n].

    Works a few rows at a time, so that nothing of the tensor's own size is held besides `out`.
    """
    for rows in _chunks(len(out)):
        some = raw[rows] if order is None else raw[order[rows]]
        if kind.bits:
            _combine(some, kind, out[rows])
        else:
            out[rows] = np.ascontiguousarray(some).view(np.float32 if kind.size == 4 else np.float16)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, count, _ROWS))


def _combine(raw: NDArray[np.uint8], kind: TensorType, out: NDArray[np.float32]) -> None:
    blocks = codes(raw, kind).reshape(len(raw), -1, BLOCK).astype(np.float32)
    with np.errstate(invalid="ignore"):
        blocks *= scale(raw, kind)[..., None]
        blocks += offset(raw, kind)[..., None]
    out[...] = blocks.reshape(out.shape)


def _blocks(raw: NDArray[np.uint8], kind: TensorType) -> NDArray[np.uint8]:
    return np.ascontiguousarray(raw).reshape(len(raw), -1, kind.size)


def _head(kind: TensorType) -> int:
    return 4 if kind.middle is None else 2


def _half(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(raw).view(np.float16)[..., 0].astype(np.float32)
