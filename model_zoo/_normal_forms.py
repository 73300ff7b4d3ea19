"""Unicode's normal forms of a stream in a graph: decomposition, canonical order, composition (Unicode, section 3.11).

Classes and compositions are those of Python's Unicode database, as far as the tokenizers library has them too.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from model_zoo import _char_tables
from model_zoo._char_stream import expand, lookup, positions, shift
from model_zoo._graph_builder import Graph, Value

__all__ = ["normal_form"]

_SIZE = 1 << 22
_OVERLAY, _SEPARATOR = "\u0334", "|"


def normal_form(g: Graph, stream: Value, kind: str) -> Value:
    """The stream in NFC, NFD, NFKC or NFKD, each text between two marks on its own."""
    decomposed = json.dumps({"type": kind.replace("C", "D")})
    stream = expand(g, stream, _char_tables.normal_forms(decomposed))
    stream = _ordered(g, stream)
    return _composed(g, stream) if kind.endswith("C") else stream


def _ordered(g: Graph, stream: Value) -> Value:
    """Combining characters sorted by class, stable, between two that are of class 0."""
    group = lookup(g, stream, _classes())
    number = g.op("CumSum", (group == 0).cast(), 0)
    count = g.op("Shape", stream)
    key = (number * 256 + group) * count + positions(g, stream)
    ordered = g.op("TopK", key, count, axis=0, largest=0, sorted=1, spare=1)
    return g.op("Gather", stream, ordered % count)


def _composed(g: Graph, stream: Value) -> Value:
    return _with_marks(g, _with_starters(g, stream))


def _with_starters(g: Graph, stream: Value) -> Value:
    """Neighbours that both are of class 0 as one, as long as there are such: Hangul, and vowels of India."""
    starters = {pair: made for pair, made in _compositions().items() if not _classes()[pair % _SIZE]}

    def join(carried: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        (code,) = carried
        made = _lookup(g, code, shift(g, code, 1, -1), starters)
        begins = made >= 0
        begins = begins & (shift(g, begins.cast(), -1) == 0)
        kept = shift(g, begins.cast(), -1) == 0
        again = g.op("ReduceMax", begins.cast(), keepdims=0) > 0
        return again, (g.op("Compress", g.op("Where", begins, made, code), kept),)

    return g.loop([stream], join)[0]


def _with_marks(g: Graph, stream: Value) -> Value:
    """Each character of class 0 takes what composes with it of those behind it: in round k the k-th behind each."""
    marks = {pair: made for pair, made in _compositions().items() if _classes()[pair % _SIZE]}
    group = lookup(g, stream, _classes())
    base = g.op("CumSum", (group == 0).cast(), 0)  # bases are numbered from 1; 0 are marks in front of all
    count = g.op("Shape", stream)
    begins = g.op("Compress", positions(g, stream), group == 0)
    size = g.op("Shape", begins)

    def take(carried: Sequence[Value]) -> tuple[Value, Sequence[Value]]:
        current, blocked, kept, offset = carried
        at = g.op("Min", begins + offset, count - 1)
        mark, kind = g.op("Gather", stream, at), g.op("Gather", group, at)
        own = (kind > 0) & (g.op("Gather", base, at) == g.op("Gather", base, begins)) & (at == begins + offset)
        made = _lookup(g, current, mark, marks)
        taken = own & (made >= 0) & (blocked < kind)
        blocked = g.op("Where", own & ~taken, kind, blocked)
        gone = g.op("Where", taken, at, count)  # the last place is one too many
        kept = g.op("ScatterElements", kept, gone, g.op("Expand", 0, size))
        more = g.op("ReduceMax", own.cast(), keepdims=0) > 0
        return more, (g.op("Where", taken, made, current), blocked, kept, offset + 1)

    first, none = g.op("Gather", stream, begins), g.op("Expand", 0, size)
    state = [first, none, g.op("Expand", 1, count + 1), g.constant(1)]
    current, _, kept, _ = g.loop(state, take)
    composed = g.op("ScatterElements", stream, begins, current)
    return g.op("Compress", composed, g.op("Slice", kept, np.array([0]), count) > 0)


def _lookup(g: Graph, first: Value, second: Value, pairs: dict[int, int]) -> Value:
    return g.label(first * _SIZE + second, np.array(list(pairs)), np.array(list(pairs.values())), -1)


@lru_cache(maxsize=1)
def _classes() -> NDArray[np.int32]:
    """The combining class of each code point, int32 [COUNT]; 0 where the library takes it for unassigned."""
    marks = [
        chr(code) for code in np.flatnonzero(_char_tables.members(r"\p{M}")) if unicodedata.combining(chr(code)) > 1
    ]
    texts = [f"a{mark}{_OVERLAY}" for mark in marks]
    classes = np.zeros(_char_tables.COUNT, np.int32)
    for mark, text, made in zip(marks, texts, _normalized("NFD", texts), strict=True):
        if made != text:
            classes[ord(mark)] = unicodedata.combining(mark)
    for code in range(0x334, 0x339):
        classes[code] = 1
    return classes


@lru_cache(maxsize=1)
def _compositions() -> dict[int, int]:
    """Each pair of code points, first · size + second, that the library composes, and what it composes to."""
    pairs = {}
    for code in np.flatnonzero(_char_tables.normal_forms(json.dumps({"type": "NFD"})).table).tolist():
        parts = unicodedata.decomposition(chr(code)).split()
        if len(parts) == 2 and not parts[0].startswith("<"):
            pairs[chr(int(parts[0], 16)) + chr(int(parts[1], 16))] = code
    for code in range(0xAC00, 0xD7A4):
        syllable, tail = divmod(code - 0xAC00, 28)
        lead, vowel = divmod(syllable, 21)
        parts_ = (0xAC00 + 28 * syllable, 0x11A7 + tail) if tail else (0x1100 + lead, 0x1161 + vowel)
        pairs["".join(map(chr, parts_))] = code
    made = _normalized("NFC", list(pairs))
    known = {text: code for (text, code), form in zip(pairs.items(), made, strict=True) if form == chr(code)}
    return {ord(text[0]) * _SIZE + ord(text[1]): code for text, code in known.items()}


def _normalized(kind: str, texts: Sequence[str]) -> list[str]:
    from tokenizers import normalizers

    made: str = getattr(normalizers, kind)().normalize_str(_SEPARATOR.join(texts))
    return made.split(_SEPARATOR)
