"""Causal language models: spec from the configuration, the module with an explicit cache, and its inputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel

from exporters.decoder import CausalLM
from model_zoo import _calibration, _dims, _loading, _source, _text, _user_data
from model_zoo._arrays import array_feed, array_names
from model_zoo._calibration import OWN
from model_zoo._resolve import needs_no_files
from model_zoo._samples import Sample
from model_zoo._skeleton import shapes_only, skeleton
from model_zoo._user_data import Feed
from model_zoo._windows import known_by, windows
from toolkit.cache_names import past_names, present_names
from toolkit.data_source import parse_source
from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, DecoderSpec, Dim, Evaluation, ModelRequest, ModelSpec, Tensors, TensorSpec

__all__ = ["CausalFamily", "without_past"]

_LONGEST = 8192
"""The default of the longest sequence: tables and TensorRT profiles grow with it. `--dim total_sequence=` raises it."""
_GOLDEN = ((2, 8), (1, 16))
_RAGGED = (7, 3, 5)
_WINDOWS, _STEPS = 4, 128


@dataclass(frozen=True)
class CausalFamily:
    """The family of a causal LM that computes attention through Transformers' interface, or is mended by `adapt`.

    `name` is the family's file; `configs` holds the configurations of its short names; `adapt` swaps modules in place.
    """

    name: str
    configs: Mapping[str, Mapping[str, Any]]
    adapt: Callable[[PreTrainedModel], None] | None = None

    def describe(self, request: ModelRequest) -> ModelSpec:
        """The spec. The class is run without weights, for shapes only, to learn its cache."""
        config = _loading.request_config(request)
        architecture = _loading.architecture(request.config)
        cls = _loading.find_class(
            architecture,
            source=request.source,
            config=request.config,
            trust_remote_code=request.trust_remote_code,
        )
        if not issubclass(cls, GenerationMixin):
            raise UnsupportedError(
                f"'{architecture}' has no language-model head",
                hint="Supported are causal language models, as LlamaForCausalLM; embeddings of decoders are to come.",
            )
        vocabulary, caches = _probe(skeleton(cls, config), config)
        context = _context(config)
        longest = min(context, _LONGEST)
        dims = {
            "batch": Dim(1, 1, 8),
            "sequence": _dims.sequence(longest),
            "past_sequence": Dim(0, min(128, longest - 1), longest),
            "total_sequence": _dims.sequence(longest),
        }
        given = {**_following(request.dims), **request.dims}
        limits = dict.fromkeys(("sequence", "past_sequence", "total_sequence"), context)
        tokens = _tokens(config, _generation_config(request))
        ranges = _dims.merge(dims, given, limits)
        _require_room(ranges["past_sequence"], ranges["total_sequence"])
        return ModelSpec(
            name=request.name,
            family=self.name,
            kind="decoder",
            task="text-generation",
            source=request.source,
            architecture=architecture,
            inputs=_inputs(caches),
            outputs=_outputs(caches, vocabulary, last=request.last_logits),
            dims=ranges,
            revision=request.revision,
            weights=request.weights,
            seed=request.seed,
            offline=request.offline,
            trust_remote_code=request.trust_remote_code,
            decoder=DecoderSpec(
                layers=len(caches),
                vocabulary=vocabulary,
                context=context,
                eos=tokens["eos"],
                bos=next(iter(tokens["bos"]), None),
                pad=next(iter(tokens["pad"]), None),
                last_logits=request.last_logits,
            ),
        )

    def load(self, spec: ModelSpec) -> nn.Module:
        """The model behind its explicit cache."""
        values = _loading.source_config(spec, self.configs)
        config = _loading.make_config(values, source=spec.source, trust_remote_code=spec.trust_remote_code)
        cls = _loading.find_class(
            spec.architecture, source=spec.source, config=values, trust_remote_code=spec.trust_remote_code
        )
        model = _loading.load(cls, spec, config)
        if self.adapt is not None:
            self.adapt(model)
        decoder = _decoder(spec)
        return CausalLM(model, decoder.layers, last_logits=decoder.last_logits).eval()

    def golden(self, spec: ModelSpec) -> tuple[Tensors, ...]:
        """Prefills of real text: rows of one length, and rows of several, padded on the right."""
        rows = _rows(spec, "golden", max(longest for _, longest in _GOLDEN))
        made = [_prefill(spec, [row[:length] for row in _take(rows, count, spec)]) for count, length in _GOLDEN]
        ragged = _take(rows, len(_RAGGED), spec)
        made.append(
            _prefill(spec, [row[:length] for row, length in zip(ragged, itertools.cycle(_RAGGED), strict=False)])
        )
        return tuple(made)

    def calibration(self, spec: ModelSpec, data: Data = OWN) -> Calibration:
        """Windows of running text: the user's file, folder or data set of texts, or the shipped passages."""
        if data.source:
            return _user_data.calibration(spec, data, _feed(spec, data, held_out=False), 1)
        drawn = _shipped(spec, "calibration", data.count or _calibration.COUNT)
        return _calibration.hashed(
            lambda: (_prefill(spec, [sample.content.tokens]) for sample in drawn),
            len(drawn),
            "windows of the Python documentation",
            items=lambda: known_by(drawn),
        )

    def evaluation(self, spec: ModelSpec, data: Data = OWN) -> Evaluation | None:
        """Held-out running text, the user's or shipped, for perplexity, KL divergence and top-1 agreement.

        A graph with last logits only is fed token by token, so its text is shorter and its rows go in together.
        """
        rows, longest = _judged_at_once(spec)
        if data.source:
            return _user_data.evaluation(spec, data, _feed(spec, data, held_out=True, longest=longest), rows)
        drawn = _shipped(spec, "evaluation", _WINDOWS)
        texts = [sample.content.tokens[:longest] for sample in drawn]
        return _calibration.held_out(
            "language",
            (_prefill(spec, texts[start : start + rows]) for start in range(0, len(texts), rows)),
            count=len(texts),
            source="windows of the Python documentation",
            items=lambda: known_by(drawn),
        )

    def assets(self, spec: ModelSpec) -> tuple[Path, ...]:
        """Tokenizer files, chat template, generation settings and the configuration."""
        return _loading.asset_files(spec)


def without_past(spec: ModelSpec, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """All inputs of a first forward: token ids and mask [B, S], positions that count real tokens, and empty pasts."""
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    tensors: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
    for tensor in spec.inputs[3:]:
        _, heads, _, size = tensor.shape
        tensors[tensor.name] = np.zeros((len(ids), int(heads), 0, int(size)), np.float32)
    return tensors


def _decoder(spec: ModelSpec) -> DecoderSpec:
    if spec.decoder is None:
        raise UnsupportedError(f"{spec.name} is no causal language model", hint="Resolve the model again.")
    return spec.decoder


def _probe(model: PreTrainedModel, config: Any) -> tuple[int, list[tuple[int, int, int]]]:
    """Vocabulary, and each layer's key/value heads and sizes of key and value, from one run without weights."""

    def run() -> tuple[Any, DynamicCache]:
        cache, ids = DynamicCache(), torch.ones(2, 5, dtype=torch.long, device="meta")
        # Without a mask, some models look for padding in the ids, which have no values here.
        return model(input_ids=ids, attention_mask=ids, past_key_values=cache, use_cache=True).logits, cache

    try:
        logits, cache = shapes_only(run)
        shapes = [(layer.keys.shape, layer.values.shape) for layer in cache.layers]
    except Exception as error:
        raise UnsupportedError(
            f"{type(model).__name__} does not run with a plain key/value cache: {error}",
            hint="Supported are causal language models whose every layer is attention with keys and values.",
        ) from error
    return int(logits.shape[-1]), [(int(key[1]), int(key[3]), int(value[3])) for key, value in shapes]


def _context(config: Any) -> int:
    """The most positions, under the names that configurations use."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        found = getattr(config, name, None)
        if isinstance(found, int) and found > 0:
            return found
    return 2048


def _following(given: Mapping[str, Dim]) -> dict[str, Dim]:
    """The cache is as long as the whole sequence is allowed to be."""
    total = given.get("total_sequence")
    if total is None or total.max < 2:
        return {}
    return {"past_sequence": Dim(1, min(total.opt, total.max - 1), total.max)}


def _require_room(past: Dim, total: Dim) -> None:
    """Generation goes on until the whole is full, so every past up to there comes up; engines are built for a range."""
    if past.max < total.max - 1:
        raise UsageError(
            f"dimension past_sequence ends at {past.max}, but a total_sequence of up to {total.max} lets it reach "
            f"{total.max - 1}",
            hint=f"Give --dim total_sequence={total.min}:{min(total.opt, past.max + 1)}:{past.max + 1}, "
            f"and past_sequence={past.min}:{past.opt}:{past.max} only where its usual size matters.",
        )


def _inputs(caches: Sequence[tuple[int, int, int]]) -> tuple[TensorSpec, ...]:
    tokens = [
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        TensorSpec("attention_mask", "int64", ("batch", "total_sequence")),
        TensorSpec("position_ids", "int64", ("batch", "sequence")),
    ]
    return (*tokens, *_cache_specs(past_names(len(caches)), caches, "past_sequence"))


def _outputs(caches: Sequence[tuple[int, int, int]], vocabulary: int, *, last: bool) -> tuple[TensorSpec, ...]:
    logits = TensorSpec("logits", "float32", ("batch", 1 if last else "sequence", vocabulary))
    return (logits, *_cache_specs(present_names(len(caches)), caches, "total_sequence"))


def _cache_specs(names: Sequence[str], caches: Sequence[tuple[int, int, int]], length: str) -> Iterator[TensorSpec]:
    sizes = [(heads, size) for heads, key, value in caches for size in (key, value)]
    for name, (heads, size) in zip(names, sizes, strict=True):
        yield TensorSpec(name, "float32", ("batch", heads, length, size))


def _generation_config(request: ModelRequest) -> Mapping[str, Any]:
    if needs_no_files(request):
        return {}
    folder = _source.files(request.source, revision=request.revision, offline=request.offline)
    path = folder / "generation_config.json"
    return _source.read_json(path) if path.is_file() else {}


def _tokens(config: Any, generation: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Special token ids; `generation_config.json` knows better than the configuration."""
    found: dict[str, tuple[int, ...]] = {}
    for word in ("eos", "bos", "pad"):
        given = generation.get(f"{word}_token_id")
        value = getattr(config, f"{word}_token_id", None) if given is None else given
        listed = value if isinstance(value, list) else [value]
        found[word] = tuple(int(item) for item in listed if item is not None)
    return found


def _rows(spec: ModelSpec, split: str, length: int) -> list[list[int]]:
    rows = _text.token_rows(spec, _text.shipped_passages(split), _decoder(spec).vocabulary)
    return [row for row in rows if len(row) >= length] or rows


def _take(rows: Sequence[list[int]], count: int, spec: ModelSpec) -> list[list[int]]:
    wanted = _dims.within(count, spec.dims["batch"])
    return [rows[index % len(rows)] for index in range(wanted)]


def _judged_at_once(spec: ModelSpec) -> tuple[int, int | None]:
    """How many windows are evaluated in one batch, and how many of their tokens, None for all."""
    if not _decoder(spec).last_logits:
        return 1, None
    return _dims.within(_WINDOWS, spec.dims["batch"]), _STEPS


def _shipped(spec: ModelSpec, split: str, count: int) -> list[Sample]:
    texts = (Sample(passage, None, split) for passage in _text.shipped_passages(split))
    return list(itertools.islice(windows(spec, _decoder(spec).vocabulary, texts), count))


def _feed(spec: ModelSpec, data: Data, *, held_out: bool, longest: int | None = None) -> Feed:
    source = parse_source(data)
    if source.suffix == ".npz" and source.path is not None:
        return _array_feed(spec, source.path, longest)
    count = _user_data.evaluation_count(spec, data)
    name, texts = _text.samples_of(spec, data, held_out=held_out, count=count)

    def batch(chosen: Sequence[Sample]) -> Tensors:
        return _prefill(spec, [sample.content.tokens[:longest] for sample in chosen])

    samples = windows(spec, _decoder(spec).vocabulary, texts)
    return Feed(f"windows of {name}", samples, lambda: batch, known_by)


def _array_feed(spec: ModelSpec, path: Path, longest: int | None) -> Feed:
    """All the inputs as they are; or token ids alone, with a mask where there is one, as a first forward."""
    names = array_names(path)
    if all(item.name in names for item in spec.inputs):
        return array_feed(path, spec)
    tokens = tuple(item for item in spec.inputs[:2] if item.name == "input_ids" or item.name in names)
    feed = array_feed(path, replace(spec, inputs=tokens))

    def start() -> Callable[[Sequence[Sample]], Tensors]:
        read = feed.start()

        def batch(chosen: Sequence[Sample]) -> Tensors:
            arrays = {name: array[:, :longest] for name, array in read(chosen).items()}
            ids = arrays["input_ids"]
            return without_past(spec, ids, arrays.get("attention_mask", np.ones_like(ids)))

        return batch

    return replace(feed, start=start)


def _prefill(spec: ModelSpec, rows: Sequence[Sequence[int]]) -> dict[str, NDArray[Any]]:
    width = max(len(row) for row in rows)
    ids, mask = np.zeros((2, len(rows), width), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return without_past(spec, ids, mask)
