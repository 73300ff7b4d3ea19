"""Text encoders: the module around the Transformers model, its spec, and its inputs."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from model_zoo import _calibration, _dims, _fingerprints, _loading, _preprocess, _source, _user_data
from model_zoo._arrays import array_feed
from model_zoo._datasets import open_samples
from model_zoo._samples import Sample, text_samples
from model_zoo._user_data import Feed
from toolkit.data_source import parse_source
from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, ModelRequest, ModelSpec, Tensors, TensorSpec

__all__ = [
    "SentenceEncoder", "TextEncoder", "batches_of", "calibration", "evaluation", "golden", "input_names",
    "pooling_of", "samples_of", "shipped_passages", "text_spec", "token_rows", "tokenizer_folder",
]  # fmt: skip

_DATA = Path(__file__).parent / "data"
_POOLING = ("cls", "max", "mean")
_GOLDEN_ROWS = ((1, None), (3, None), (2, 32))


class TextEncoder(nn.Module):
    """Any Transformers text encoder with its outputs by name.

    Inputs int64 [batch, sequence]; outputs are those named, as the model's own output has them.
    """

    def __init__(self, model: PreTrainedModel, outputs: Sequence[str]) -> None:
        super().__init__()
        self.model = model
        self.outputs = tuple(outputs)
        self.train(model.training)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """The named outputs."""
        result = self.model(**_given(input_ids, attention_mask, token_type_ids))
        return {name: getattr(result, name) for name in self.outputs}


class SentenceEncoder(nn.Module):
    """A text encoder whose token vectors are pooled to one `embedding` [batch, hidden], normalised where asked.

    Pooling as sentence-transformers does it: `mean` over attended tokens, `cls` the first, `max` elementwise.
    """

    def __init__(self, model: PreTrainedModel, pooling: str, normalize: bool) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize
        self.train(model.training)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """`embedding` [batch, hidden]."""
        result = self.model(**_given(input_ids, attention_mask, token_type_ids))
        vector = self._pool(result.last_hidden_state, attention_mask)
        return {"embedding": nn.functional.normalize(vector, dim=-1) if self.normalize else vector}

    def _pool(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        mask = attention_mask.unsqueeze(-1)
        if self.pooling == "max":
            return hidden.masked_fill(mask == 0, torch.finfo(hidden.dtype).min).amax(1)
        weights = mask.to(hidden.dtype)
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)


def _given(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor | None) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs if types is None else {**inputs, "token_type_ids": types}


def pooling_of(folder: Path | None) -> tuple[str, bool] | None:
    """Pooling mode and whether to normalise, from sentence-transformers' `modules.json`; None without one.

    Raises UnsupportedError for modules or pooling modes that are not known here.
    """
    path = folder / "modules.json" if folder else None
    if folder is None or path is None or not path.is_file():
        return None
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        kinds = [(str(item["type"]).rpartition(".")[2], str(item["path"])) for item in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a list of modules: {error}", hint="Fetch it again.") from error
    odd = [kind for kind, _ in kinds if kind not in {"Transformer", "Pooling", "Normalize"}]
    places = [place for kind, place in kinds if kind == "Pooling"]
    if odd or len(places) != 1:
        raise UnsupportedError(
            f"the sentence encoder in {folder} has {', '.join(odd) or f'{len(places)} poolings'}",
            hint="Supported: one Transformer, one Pooling, and Normalize.",
        )
    return _pooling_mode(folder / places[0] / "config.json"), any(kind == "Normalize" for kind, _ in kinds)


def _pooling_mode(path: Path) -> str:
    config = _source.read_json(path)
    named = {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_max_tokens": "max",
    }
    on = [named.get(key, key) for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    on = on or ([str(config["pooling_mode"])] if config.get("pooling_mode") else [])
    if len(on) != 1 or on[0] not in _POOLING:
        raise UnsupportedError(
            f"{path} asks for the pooling {' and '.join(on) or 'none'}", hint=f"Supported: {', '.join(_POOLING)}."
        )
    return on[0]


def text_spec(
    request: ModelRequest,
    *,
    family: str,
    task: str,
    architecture: str,
    names: Sequence[str],
    outputs: Sequence[TensorSpec],
    longest: int,
    labels: Sequence[str] = (),
) -> ModelSpec:
    """The spec of a text encoder: int64 inputs [batch, sequence] of at most `longest` tokens."""
    defaults = {"batch": _dims.BATCH, "sequence": _dims.sequence(longest)}
    return ModelSpec(
        name=request.name,
        family=family,
        kind="encoder",
        task=task,
        source=request.source,
        architecture=architecture,
        inputs=tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in names),
        outputs=tuple(outputs),
        dims=_dims.merge(defaults, request.dims, {"sequence": longest}),
        revision=request.revision,
        weights=request.weights,
        seed=request.seed,
        labels=tuple(labels),
        offline=request.offline,
        trust_remote_code=request.trust_remote_code,
    )


def input_names(config: Any, cls: type | None = None) -> list[str]:
    """The inputs of an encoder: `token_type_ids` only where the model takes them and has more than one type."""
    types = (getattr(config, "type_vocab_size", 0) or 0) > 1
    taken = cls is None or "token_type_ids" in inspect.signature(getattr(cls, "forward")).parameters  # noqa: B009
    return ["input_ids", "attention_mask", *(["token_type_ids"] if types and taken else [])]


def golden(spec: ModelSpec, vocabulary: int) -> tuple[Tensors, ...]:
    """Three batches of real passages: one row; three rows with padding; two rows cut to 32 tokens."""
    passages = shipped_passages("golden")
    batches = _calibration.chunked(len(passages), [_dims.within(rows, spec.dims["batch"]) for rows, _ in _GOLDEN_ROWS])
    return tuple(
        _encode(spec, [passages[row] for row in rows], vocabulary, limit)
        for rows, (_, limit) in zip(batches, _GOLDEN_ROWS, strict=True)
    )


def calibration(spec: ModelSpec, data: Data, vocabulary: int) -> Calibration:
    """Texts of the user's file, folder or data set, an `.npz` of token ids, or the shipped passages."""
    if data.source:
        return _user_data.calibration(spec, data, _feed(spec, data, vocabulary, held_out=False))
    passages = shipped_passages("calibration")[: data.count or _calibration.COUNT]
    where = f"{len(passages)} passages of the Python documentation{_without_tokenizer(spec)}"
    return _calibration.hashed(
        lambda: batches_of(spec, passages, vocabulary, 4), len(passages), where, items=lambda: _known_by(passages)
    )


def evaluation(spec: ModelSpec, vocabulary: int, data: Data) -> Evaluation | None:
    """The user's texts; or held-out passages for retrieval overlap, where there is an `embedding` and a tokenizer."""
    if data.source:
        return _user_data.evaluation(spec, data, _feed(spec, data, vocabulary, held_out=True))
    if spec.task != "embedding" or tokenizer_folder(spec) is None:
        return None
    passages = shipped_passages("evaluation")
    return _calibration.held_out(
        "retrieval",
        batches_of(spec, _by_length(spec, passages, 4), vocabulary, 4),
        count=len(passages),
        source=f"{len(passages)} passages of the Python documentation",
        items=lambda: _known_by(passages),
    )


def _by_length(spec: ModelSpec, passages: Sequence[str], wanted: int) -> list[str]:
    """Those that fill batches, in the order of their length.

    As they come, every third position of a batch is padding, which all that is measured would compute as well.
    """
    taken = sum(_calibration.batch_sizes(len(passages), spec.dims["batch"], wanted))
    return sorted(passages[:taken], key=len)


def samples_of(spec: ModelSpec, data: Data, *, held_out: bool, count: int) -> tuple[str, Iterator[Sample]]:
    """What the user's texts are called, and the texts."""
    source = parse_source(data)
    if source.path is not None and not source.name:
        return str(source.path), text_samples(source, source.path)
    return open_samples(source, "text", held_out=held_out, offline=spec.offline, count=count)


def _feed(spec: ModelSpec, data: Data, vocabulary: int, *, held_out: bool) -> Feed:
    source = parse_source(data)
    if source.suffix == ".npz" and source.path is not None:
        return array_feed(source.path, spec)
    count = _user_data.evaluation_count(spec, data)
    name, samples = samples_of(spec, data, held_out=held_out, count=count)

    def batch(chosen: Sequence[Sample]) -> Tensors:
        return _encode(spec, [sample.content for sample in chosen], vocabulary, None)

    return Feed(
        f"{name}{_without_tokenizer(spec)}",
        samples,
        lambda: batch,
        lambda chosen: _known_by([sample.content for sample in chosen]),
    )


def _without_tokenizer(spec: ModelSpec) -> str:
    if tokenizer_folder(spec) is not None:
        return ""
    return ", hashed into token ids (the model came without a tokenizer)"


def _known_by(passages: Sequence[str]) -> list[frozenset[bytes]]:
    return [frozenset({_fingerprints.of_text(passage)}) for passage in passages]


def batches_of(spec: ModelSpec, passages: Sequence[str], vocabulary: int, wanted: int) -> Iterator[Tensors]:
    """Batches of about `wanted` rows, within the ranges of the spec's dimensions."""
    sizes = _calibration.batch_sizes(len(passages), spec.dims["batch"], wanted)
    for rows in _calibration.chunked(len(passages), sizes):
        yield _encode(spec, [passages[row] for row in rows], vocabulary, None)


def tokenizer_folder(spec: ModelSpec) -> Path | None:
    """The folder with the model's tokenizer, or None when it has none that can be read here."""
    folder = _loading.model_folder(spec)
    named = ("tokenizer.json", "vocab.txt")
    return folder if folder and any((folder / name).is_file() for name in named) else None


def _encode(spec: ModelSpec, passages: Sequence[str], vocabulary: int, limit: int | None) -> Tensors:
    dim, names = spec.dims["sequence"], [item.name for item in spec.inputs]
    limit = _dims.within(limit or dim.max, dim)
    folder = tokenizer_folder(spec)
    if folder is None:
        tensors = _synthetic(passages, names, vocabulary, limit)
    else:
        tensors = _preprocess.texts(passages, folder, names, max_length=limit, min_length=dim.min)
    return _widen(tensors, dim.min)


def _synthetic(
    passages: Sequence[str], names: Sequence[str], vocabulary: int, limit: int
) -> dict[str, NDArray[np.int64]]:
    """Token ids for a model without tokenizer: each word of the passage hashed to an id below the vocabulary."""
    rows = [[_hash(word) % vocabulary for word in passage.split()][:limit] for passage in passages]
    width = max(len(row) for row in rows)
    ids, mask = np.zeros((2, len(rows), width), dtype=np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    columns = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: columns[name] for name in names}


def token_rows(spec: ModelSpec, lines: Sequence[str], vocabulary: int) -> list[list[int]]:
    """Each line's token ids, without special tokens; hashed words for a model that came without a tokenizer."""
    folder = tokenizer_folder(spec)
    if folder is None:
        return [[_hash(word) % vocabulary for word in line.split()] for line in lines]
    return _preprocess.token_ids(lines, folder)


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2s(word.encode(), digest_size=4).digest(), "big")


def _widen(tensors: Mapping[str, NDArray[np.int64]], width: int) -> dict[str, NDArray[Any]]:
    """Pad on the right with unattended zeros up to the shortest sequence that the engine takes."""
    return {name: np.pad(array, ((0, 0), (0, max(0, width - array.shape[1])))) for name, array in tensors.items()}


def shipped_passages(split: str) -> list[str]:
    """The English passages of `golden`, `calibration` or `evaluation`, one a line."""
    path = _DATA / "passages" / f"{split}.txt"
    return path.read_text(encoding="utf-8").splitlines()
