"""The Unigram model of SentencePiece in a graph: the most likely way to cut a word into pieces, by Viterbi."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from model_zoo._char_stream import TOKEN, Trie, before_marks, first_of_words, is_mark, positions, reachable, walk
from model_zoo._graph_builder import Graph, Value
from model_zoo._pre_tokenize import refused
from model_zoo._token_models import Tokens, flattened, row_numbers, tokens_of

__all__ = ["unigrams"]

_PENALTY = 10.0


def unigrams(g: Graph, stream: Value, model: Mapping[str, Any]) -> Tokens:
    """Each word, a run between marks, in the pieces whose scores add up to the most, as the library adds: in float64.

    A character that is no piece is the unknown one, 10 below the least score; several in a row are one token.
    """
    if model.get("byte_fallback") or model.get("unk_id") is None:
        raise refused("a Unigram model without an unknown token, or with bytes instead")
    unknown = int(model["unk_id"])
    begins, mark = first_of_words(g, stream), is_mark(stream)
    ends = mark & ~before_marks(g, stream)
    words = _Words(g.op("Compress", positions(g, stream), begins), g.op("Compress", positions(g, stream), ends))
    came, piece = _best(g, words, *_pieces(g, stream, model))
    place = positions(g, stream)
    came, piece = (g.op("Slice", item, np.array([0]), g.op("Shape", stream)) for item in (came, piece))
    node = reachable(g, ends, g.op("Where", came >= 0, came, place)) & ~begins
    before = g.op("Max", came, 0)
    again = (piece == unknown) & (g.op("Gather", piece, before) == unknown) & ~g.op("Gather", begins, before)
    ids = g.op("Where", node & ~again, piece, -1)
    special = g.op("Where", stream >= TOKEN, stream - TOKEN, -1)
    rows = row_numbers(g, stream)
    return tokens_of(g, flattened(g, [ids, special]), flattened(g, [rows, rows]))


@dataclass(frozen=True)
class _Words:
    """The first place of each word and the one behind it, both int64 [W]."""

    first: Value
    end: Value


def _pieces(g: Graph, stream: Value, model: Mapping[str, Any]) -> tuple[Value, Value]:
    """For each place and length the piece, int64 [T, L], -1 for none, and its score, float64 [T, L]."""
    scores = np.array([score for _, score in model["vocab"]], np.float64)
    unknown = int(model["unk_id"])
    names = {name: index for index, (name, _) in enumerate(model["vocab"])}
    columns = walk(g, stream, Trie.of([names]), max(map(len, names)))
    single = g.op("Where", (columns[0] < 0) & ~is_mark(stream), len(scores), columns[0])
    found = g.op("Concat", *(g.op("Unsqueeze", item, np.array([1])) for item in (single, *columns[1:])), axis=1)
    table = np.array([*scores, scores.min() - _PENALTY, -np.inf])
    return g.op("Where", found == len(scores), unknown, found), g.op("Gather", table, found)


def _best(g: Graph, words: _Words, pieces: Value, scores: Value) -> tuple[Value, Value]:
    """For each place where a way of most score ends: where its last piece begins, and that piece; -1 for none."""
    width = g.op("Slice", g.op("Shape", pieces), np.array([1]), np.array([2]))
    count = g.op("Slice", g.op("Shape", pieces), np.array([0]), np.array([1]))
    size = count + width + 1
    zero = g.op("Expand", np.array(0.0), g.op("Shape", words.first))
    best = g.op("ScatterElements", g.op("Expand", np.array(-np.inf), size), words.first, zero)
    none = g.op("Expand", -1, size)
    lengths = g.op("Unsqueeze", g.op("Range", 1, g.op("Squeeze", width) + 1, 1), np.array([0]))

    def step(carried: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        best, came, piece, offset = carried
        at = words.first + offset
        active = at < words.end
        at = g.op("Compress", at, active)
        column = g.op("Unsqueeze", at, np.array([1]))
        sums = g.op("Unsqueeze", g.op("Gather", best, at), np.array([1])) + g.op("Gather", scores, at)
        target = column + lengths
        better = sums > g.op("Gather", best, target)
        spot = _line(g, g.op("Where", better, target, size - 1))
        best = g.op("ScatterElements", best, spot, _line(g, g.op("Where", better, sums, np.array(-np.inf))))
        came = g.op("ScatterElements", came, spot, _line(g, g.op("Expand", column, g.op("Shape", target))))
        piece = g.op("ScatterElements", piece, spot, _line(g, g.op("Gather", pieces, at)))
        more = g.op("ReduceMax", g.op("Concat", active.cast(), np.array([0]), axis=0), keepdims=0) > 0
        return more, (best, came, piece, offset + 1)

    kinds = [TensorProto.DOUBLE, *[TensorProto.INT64] * 3]
    _, came, piece, _ = g.loop([best, none, none, g.constant(0)], step, kinds)
    return came, piece


def _line(g: Graph, values: Value) -> Value:
    return g.op("Reshape", values, np.array([-1]))
