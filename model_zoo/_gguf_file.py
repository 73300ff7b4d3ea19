"""The header of a GGUF file: what it says of the model, and where each tensor lies. Reads no weights.

The layout is ggml's `docs/gguf.md`, versions 2 and 3: magic, version, counts, key-value pairs, tensor infos, then the
tensors, each at a multiple of `general.alignment`. Written here, and not taken from the `gguf` package, because that
reader takes seconds for a vocabulary and answers a broken file with an error of numpy's.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo._gguf_blocks import TYPES, TensorType, type_name
from toolkit.errors import UnsupportedError, UsageError

__all__ = ["GgufFile", "TensorInfo", "is_gguf", "read"]

_VERSIONS = (2, 3)
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_ALLOWED = ", ".join(kind.name for kind in TYPES.values())


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor: its shape with the row length last, its type, and its first byte in the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A header. `metadata` holds numbers, strings, numeric arrays, and lists of strings; `end` is its last byte."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    end: int

    @property
    def architecture(self) -> str:
        """What `general.architecture` says, as `llama`."""
        return str(self.metadata.get("general.architecture", ""))

    def get(self, key: str, default: Any = None) -> Any:
        """A value of the architecture's own, as `block_count`."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    def whole(self, key: str, default: int | None = None) -> int:
        """A count, above zero where there is no default. A list of one count for all layers is that count.

        Raises UsageError where it is missing or out of range, UnsupportedError where it differs from layer to layer.
        """
        value = self.get(key, default)
        if isinstance(value, np.ndarray) and len(set(value.tolist())) == 1:
            value = value.tolist()[0]
        if isinstance(value, (list, np.ndarray)):
            raise UnsupportedError(
                f"{self.path}: '{self.architecture}.{key}' differs from layer to layer",
                hint="Give the model as a Hub id or as a folder with config.json and safetensors.",
            )
        if isinstance(value, bool) or not isinstance(value, int) or not (default is None) <= value < 2**31:
            raise self._unusable(key, value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number, as the shortest decimal of the float32 that is stored: 1e-05, not 9.999999747378752e-06.

        Raises UsageError where it is missing, not finite or no number.
        """
        value = self.get(key, default)
        if not isinstance(value, (int, float)) or not np.isfinite(value):
            raise self._unusable(key, value)
        return float(str(np.float32(value)))

    def _unusable(self, key: str, value: Any) -> UsageError:
        name = f"{self.architecture}.{key}"
        what = f"has no '{name}' in its metadata" if value is None else f"says {str(value)[:40]!r} for '{name}'"
        return UsageError(f"{self.path} {what}", hint="Convert the model or download the file again.")

    def raw(self, info: TensorInfo) -> NDArray[np.uint8]:
        """The tensor's bytes, mapped, [rows, bytes of a row]; a vector is one row."""
        rows = prod(info.shape[:-1])
        return np.memmap(self.path, np.uint8, "r", offset=info.start, shape=(rows, info.size // rows))


def is_gguf(path: Path) -> bool:
    """Whether it is called so; what it holds is found out by reading it."""
    return path.suffix.lower() == ".gguf" and path.is_file()


def read(path: Path) -> GgufFile:
    """Read the header of a file that was not changed since; repeated reading costs nothing.

    Raises UsageError for a file that is no GGUF, is damaged, or is shorter than its header says; UnsupportedError
    for a version or a tensor type that is not read here.
    """
    status = path.stat()
    return _read(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, size: int, _changed: int) -> GgufFile:
    if size < 24:
        raise UsageError(f"{path} is not a GGUF file: it has {size} bytes", hint="Download it again.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _check_start(path, data)
        cursor = _Cursor(path, data, 8)
        tensors, pairs = cursor.number("<Q"), cursor.number("<Q")
        metadata = dict(_pair(cursor) for _ in range(pairs))
        entries = [_entry(cursor) for _ in range(tensors)]
        start = _aligned(path, cursor.position, metadata.get("general.alignment", 32))
    infos = {name: _info(path, name, shape, kind, start + offset) for name, shape, kind, offset in entries}
    if len(infos) != len(entries):
        raise _damaged(path, "two tensors have the same name")
    _check_length(path, size, infos)
    return GgufFile(path, metadata, infos, cursor.position)


class _Cursor:
    """A place in the header. Every read is checked against the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap, position: int) -> None:
        self.path, self._data, self.position = path, data, position

    def bytes(self, count: int) -> bytes:
        start, self.position = self.position, self.position + count
        if self.position > len(self._data):
            raise UsageError(
                f"{self.path} is truncated: its header does not end within the {len(self._data):,} bytes there are",
                hint="Download it again.",
            )
        return self._data[start : self.position]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def string(self) -> str:
        return self.bytes(self.number("<Q")).decode("utf-8", errors="surrogateescape")


def _pair(cursor: _Cursor) -> tuple[str, Any]:
    key = cursor.string()
    return key, _value(cursor, cursor.number("<I"))


def _value(cursor: _Cursor, kind: int) -> Any:
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.string()
    if kind != _ARRAY:
        raise _damaged(cursor.path, f"a value of type {kind} in its metadata")
    element, count = cursor.number("<I"), cursor.number("<Q")
    if element == _STRING:
        return [cursor.string() for _ in range(count)]
    if element not in _SCALARS:
        raise _damaged(cursor.path, f"an array of type {element} in its metadata")
    dtype = np.dtype(_SCALARS[element])
    return np.frombuffer(cursor.bytes(count * dtype.itemsize), dtype)


def _entry(cursor: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    name = cursor.string()
    axes = cursor.number("<I")
    if not 1 <= axes <= 4:
        raise _damaged(cursor.path, f"tensor '{name}' with {axes} axes")
    shape = tuple(cursor.number("<Q") for _ in range(axes))
    return name, shape[::-1], cursor.number("<I"), cursor.number("<Q")


def _info(path: Path, name: str, shape: tuple[int, ...], number: int, start: int) -> TensorInfo:
    kind = TYPES.get(number)
    if kind is None:
        raise UnsupportedError(
            f"{path}: tensor '{name}' is of type {type_name(number)}, which is not read here",
            hint=f"Supported: {_ALLOWED}. Take the file in one of these, or convert it with "
            "`llama-quantize --allow-requantize --pure FILE OUT Q8_0`.",
        )
    if not prod(shape) or shape[-1] % kind.block:
        raise _damaged(path, f"tensor '{name}' {list(shape)}, which is no whole number of {kind.name} blocks")
    return TensorInfo(name, shape, kind, start, prod(shape) // kind.block * kind.size)


def _check_start(path: Path, data: mmap.mmap) -> None:
    if data[:4] != b"GGUF":
        raise UsageError(
            f"{path} is not a GGUF file: it begins with {data[:4]!r}, not b'GGUF'",
            hint="Give a GGUF file, or a folder with config.json and safetensors.",
        )
    version = struct.unpack("<I", data[4:8])[0]
    if version not in _VERSIONS:
        swapped = version & 0xFFFF == 0
        what = "for big-endian machines" if swapped else f"of version {version}"
        raise UnsupportedError(
            f"{path} is a GGUF file {what}", hint="Versions 2 and 3, little-endian, are read: convert the model again."
        )


def _aligned(path: Path, position: int, alignment: Any) -> int:
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _damaged(path, f"an alignment of {alignment!r}")
    return -(-position // alignment) * alignment


def _check_length(path: Path, size: int, tensors: Mapping[str, TensorInfo]) -> None:
    ends = [info.start + info.size for info in tensors.values()]
    wanted = max(ends, default=0)
    if wanted > size:
        lost = sum(end > size for end in ends)
        raise UsageError(
            f"{path} is truncated: {size:,} of {wanted:,} bytes are there, and {lost} of its {len(tensors)} tensors "
            "are not whole",
            hint="Download it again.",
        )


def _damaged(path: Path, what: str) -> UsageError:
    return UsageError(f"{path} is a damaged GGUF file: it has {what}", hint="Download it again.")
