"""A GGUF file as a model's source: its configuration, its weights, and the weights as they were packed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from model_zoo import _gguf_blocks, _gguf_config, _gguf_file
from model_zoo._gguf_file import GgufFile
from model_zoo._gguf_names import Stored, stored
from toolkit.errors import UsageError
from toolkit.types import ModelSpec, PackedWeight
from toolkit.weight_names import canonical_weight

if TYPE_CHECKING:
    import torch

__all__ = ["config_of", "find", "is_gguf", "model_name", "packed_weights", "read_into", "state_dict"]

_EMBEDDING = "token_embd.weight"
_CARRIED = ("Q4_0", "Q4_1", "Q8_0")
_SUFFIX = r"[.-](?:I?Q\d\w*|B?F16|F32)$"


def is_gguf(source: str) -> bool:
    """Whether the source is a `.gguf` file on this machine."""
    return _gguf_file.is_gguf(Path(source))


def find(path: Path) -> Path | None:
    """The GGUF file that a path stands for: itself, or the only one of a folder without config.json.

    Raises UsageError where a folder has several.
    """
    if path.is_file():
        return path if _gguf_file.is_gguf(path) else None
    if (path / "config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if _gguf_file.is_gguf(file))
    if len(files) > 1:
        raise UsageError(
            f"{path} has {len(files)} GGUF files: {', '.join(file.name for file in files[:5])}",
            hint=f"Give one of them: --model {files[0]}",
        )
    return files[0] if files else None


def model_name(path: Path) -> str:
    """What the model is called: the file's name without `.gguf` and without the type at its end, as `.Q4_1`."""
    return re.sub(_SUFFIX, "", path.stem, flags=re.IGNORECASE) or path.stem


def config_of(path: Path) -> dict[str, Any]:
    """The values of `config.json`, from the file's metadata alone; weights are not read.

    Raises UsageError for a file that is no GGUF, is damaged or truncated; UnsupportedError for a version, an
    architecture, a tensor or a tensor type that is not read here.
    """
    file = _gguf_file.read(path)
    config = _gguf_config.config_of(file)
    list(stored(file))
    return config


def state_dict(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and float32 tensors as Transformers has them, one at a time: nothing is held but the one yielded.

    A projection of the output that equals the embedding is not in the file, and not in the answer.
    """
    import torch

    file = _gguf_file.read(path)
    for item in stored(file):
        tensor = torch.empty(_shape(item), dtype=torch.float32)
        _decode(file, item, tensor)
        yield item.name, tensor


def read_into(path: Path, parameters: Mapping[str, torch.Tensor], prefix: str) -> dict[str, list[Any]]:
    """Decode every weight straight into the parameter of its name; nothing else of a weight's size is held.

    `prefix` is what a headless class leaves out of the names, as `model.`. Answers what did not fit, as Transformers
    does: `missing_keys`, `unexpected_keys`, and `mismatched_keys` as (name, stored shape, wanted shape).
    """
    file = _gguf_file.read(path)
    found: set[str] = set()
    info: dict[str, list[Any]] = {"unexpected_keys": [], "mismatched_keys": []}
    for item in stored(file):
        name = item.name if item.name in parameters else item.name.removeprefix(prefix)
        if name not in parameters:
            info["unexpected_keys"].append(item.name)
            continue
        found.add(name)
        if tuple(parameters[name].shape) != _shape(item):
            info["mismatched_keys"].append((name, _shape(item), tuple(parameters[name].shape)))
        else:
            _decode(file, item, parameters[name].detach())
    info["missing_keys"] = sorted(parameters.keys() - found)
    return info


def packed_weights(spec: ModelSpec) -> Mapping[str, PackedWeight]:
    """The matrices whose blocks can be carried over as they are (Q4_0, Q4_1, Q8_0), by canonical weight name.

    That is the name in the graph of a module that holds the Transformers model as `model`. scale · codes +
    offset has the very bits of the float32 weight. Where the output projection is the embedding, both
    `model.embed_tokens.weight` and `lm_head.weight` name it. Empty for any source but a GGUF file, and for random
    weights.
    """
    if spec.weights == "random" or not is_gguf(spec.source):
        return {}
    file = _gguf_file.read(Path(spec.source))
    items = [item for item in stored(file) if item.info.type.name in _CARRIED and len(item.info.shape) == 2]
    packed = {canonical_weight(f"model.{item.name}"): _packed(file, item) for item in items}
    for item in items:
        if item.info.name == _EMBEDDING and "output.weight" not in file.tensors:
            packed["lm_head.weight"] = packed[canonical_weight(f"model.{item.name}")]
    return packed


def _packed(file: GgufFile, item: Stored) -> PackedWeight:
    rows, columns = item.info.shape
    return PackedWeight(
        bits=8 if item.info.type.bits == 8 else 4,
        block_size=_gguf_blocks.BLOCK,
        shape=(rows, columns),
        codes=lambda: _gguf_blocks.codes(_rows(file, item), item.info.type),
        scale=lambda: _gguf_blocks.scale(_rows(file, item), item.info.type),
        offset=lambda: _gguf_blocks.offset(_rows(file, item), item.info.type),
    )


def _rows(file: GgufFile, item: Stored) -> NDArray[np.uint8]:
    raw = file.raw(item.info)
    return raw if item.order is None else raw[item.order]


def _shape(item: Stored) -> tuple[int, ...]:
    return item.info.shape[::-1] if item.transposed else item.info.shape


def _decode(file: GgufFile, item: Stored, tensor: torch.Tensor) -> None:
    """Write the weight into the tensor's own memory; one that is transposed passes through a second array."""
    raw = file.raw(item.info)
    shape = (len(raw), item.info.shape[-1])
    target = np.empty(shape, np.float32) if item.transposed else tensor.numpy().reshape(shape)
    if item.order is not None and len(item.info.shape) == 1:
        _gguf_blocks.decode(raw, item.info.type, None, target)
        target[0] = target[0, item.order]
    else:
        _gguf_blocks.decode(raw, item.info.type, item.order, target)
    if item.shift:
        with np.errstate(invalid="ignore"):
            target += np.float32(item.shift)
    if item.transposed:
        tensor.numpy()[...] = target.T
