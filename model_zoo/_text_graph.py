"""From texts to token ids and back, as graphs around extensions' operators, held against the original tokenizer."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo import _preprocess
from model_zoo._hard_texts import HARD_TEXTS, PLAIN_TEXTS, SAMPLES, with_tokens
from toolkit.errors import ToolkitError
from toolkit.processing import EXTENSIONS, Processing, extensions_library
from toolkit.types import ModelSpec, Tensors

__all__ = ["postprocessing", "preprocessing", "session"]

_FILES = ("tokenizer.json", "vocab.txt")
_OWN = ("input_ids", "attention_mask", "token_type_ids")
_ADDED, _SHOWN = 12, 12


def preprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """`text` string [batch] to the model's token inputs, int64 [batch, sequence], as `_preprocess.texts` makes them."""
    sequence = spec.dims.get("sequence")
    names = tuple(item.name for item in spec.inputs if item.name in _OWN)
    if spec.task == "question-answering":
        return Processing(reason="a question and the text that answers it are two inputs")
    if sequence and sequence.min > 1 and "attention_mask" not in names:
        return Processing(reason=f"texts are padded to {sequence.min} tokens, which no mask hides")
    try:
        tokenizer = _tokenizer(assets, sequence.max if sequence else None)
        return _encoding(tokenizer.to_str(), names)
    except ToolkitError as error:
        return Processing(reason=str(error))


def postprocessing(spec: ModelSpec, assets: Sequence[Path]) -> Processing:
    """`ids` int64 [tokens] to `text` string [1], special tokens skipped."""
    try:
        return _decoding(_tokenizer(assets, None).to_str())
    except ToolkitError as error:
        return Processing(reason=str(error))


def session(model: Any) -> Any:
    """A session of ONNX Runtime on the CPU with the operators of the extensions."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # many small nodes: waiting threads cost more than they do
    options.register_custom_ops_library(extensions_library())
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _tokenizer(assets: Sequence[Path], limit: int | None) -> Any:
    """The tokenizer among the assets. Raises a ToolkitError whose message is why there is no graph."""
    if importlib.util.find_spec("onnxruntime_extensions") is None:
        raise ToolkitError("onnxruntime-extensions is not installed")
    folder = next((path.parent for path in assets if path.name in _FILES), None)
    return _preprocess.prepared(folder, limit, own=True)


@lru_cache(maxsize=4)
def _encoding(definition: str, names: tuple[str, ...]) -> Processing:
    from tokenizers import Tokenizer

    from model_zoo._token_graph import token_graph

    tokenizer = Tokenizer.from_str(definition)
    graph = token_graph(tokenizer, names)
    texts = [*PLAIN_TEXTS, *HARD_TEXTS, *with_tokens(_added(tokenizer))]
    compared = f"{len(texts)} texts, token for token with the tokenizers library"
    plain, reason = _first_difference(tokenizer, session(graph), [texts, *SAMPLES])
    if plain:
        return Processing(reason=f"a graph was made, but {reason}")
    samples = tuple((_texts(item), _expected(tokenizer, item, names)) for item in SAMPLES)
    return Processing(graph, samples, exact=not reason, compared=compared, reason=reason, needs=(EXTENSIONS,))


@lru_cache(maxsize=4)
def _decoding(definition: str) -> Processing:
    from tokenizers import Tokenizer

    from model_zoo._text_decode import UNWRITABLE, decode_graph

    tokenizer = Tokenizer.from_str(definition)
    graph = decode_graph(tokenizer)
    running, count = session(graph), 0
    for ids in _id_lists(tokenizer):
        count += 1
        want = tokenizer.decode(ids).translate(UNWRITABLE)
        have = running.run(None, {"ids": np.array(ids, np.int64)})[0][0]
        if want != have:
            return Processing(
                reason=f"a graph was made, but of the ids {ids[:_SHOWN]} it makes {have[:60]!r}, not {want[:60]!r}"
            )
    samples = tuple(
        ({"ids": np.array(ids, np.int64)}, {"text": np.array([tokenizer.decode(ids)], object)})
        for ids in _sample_ids(tokenizer)
    )
    compared = (
        f"{count} lists of ids, the whole vocabulary among them, with the tokenizers library; "
        "U+0000, U+FFFE and U+FFFF come out as U+FFFD"
    )
    return Processing(graph, samples, exact=True, compared=compared, needs=(EXTENSIONS,))


def _added(tokenizer: Any) -> list[str]:
    return [token.content for _, token in sorted(tokenizer.get_added_tokens_decoder().items())][:_ADDED]


def _texts(batch: Sequence[str]) -> Tensors:
    return {"text": np.array(batch, dtype=object)}


def _expected(tokenizer: Any, batch: Sequence[str], names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    encodings = tokenizer.encode_batch(list(batch))
    columns = dict(zip(_OWN, ("ids", "attention_mask", "type_ids"), strict=True))
    return {name: np.array([getattr(item, columns[name]) for item in encodings], np.int64) for name in names}


def _first_difference(tokenizer: Any, running: Any, batches: Sequence[Sequence[str]]) -> tuple[bool, str]:
    """Whether it is a plain text, and what differs there in words; empty without a difference."""
    names = [item.name for item in running.get_outputs()]
    for batch in batches:
        have = dict(zip(names, running.run(None, _texts(batch)), strict=True))
        want = _expected(tokenizer, batch, names)
        if all(np.array_equal(have[name], want[name]) for name in names):
            continue
        for index, text in enumerate(batch):
            one = {name: array[index] for name, array in have.items()}, {name: want[name][index] for name in names}
            found = _difference(tokenizer, *one)
            if found:
                return text in PLAIN_TEXTS, f"{text[:60]!r} {found}"
        return True, "rows are padded otherwise than by the tokenizer"
    return False, ""


def _difference(tokenizer: Any, have: Tensors, want: Tensors) -> str:
    """The tokens around the first difference of one text."""
    ours, theirs = (row["input_ids"][row["attention_mask"] > 0].tolist() for row in (have, want))
    if ours == theirs:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = [[tokenizer.id_to_token(token) for token in row[max(0, at - 1) : at + 3]] for row in (theirs, ours)]
    return f"is {shown[0]} at token {at} for the tokenizer, {shown[1]} for the graph"


def _sample_ids(tokenizer: Any) -> list[list[int]]:
    """Ids of texts with the special tokens, none, and one that stops inside a character where there is such."""
    batch = [text for item in SAMPLES for text in item]
    whole = [_unpadded(encoding) for encoding in tokenizer.encode_batch(batch[:5])]
    smile = tokenizer.encode("ok 😀", add_special_tokens=False).ids
    special = [index for index, token in tokenizer.get_added_tokens_decoder().items() if token.special][:2]
    return [[], *(ids for ids in whole if ids), smile[:-1], [*special, *smile, *special]]


def _unpadded(encoding: Any) -> list[int]:
    return [token for token, real in zip(encoding.ids, encoding.attention_mask, strict=True) if real]


def _id_lists(tokenizer: Any) -> Iterator[list[int]]:
    """The samples, texts, the beginnings of one, all of the vocabulary in order and in another, and no ids at all."""
    yield from _sample_ids(tokenizer)
    for encoding in tokenizer.encode_batch([*PLAIN_TEXTS, *HARD_TEXTS]):
        yield _unpadded(encoding)
    grown = tokenizer.encode("👩‍👩‍👧‍👦 한국어 e\u0301 <end>").ids
    yield from (grown[:length] for length in range(len(grown)))
    every = np.arange(max(tokenizer.get_vocab().values()) + 3)
    yield every.tolist()
    yield np.random.default_rng(0).permutation(every).tolist()
