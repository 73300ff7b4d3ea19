"""The normalizer and the pre-tokenizer of a tokenizer.json as steps on a stream in a graph."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from model_zoo import _char_tables, _regex_graph
from model_zoo._char_stream import (
    BREAK,
    before_marks,
    expand,
    first_of_words,
    insert,
    is_mark,
    lookup,
    positions,
    reachable,
    shift,
)
from model_zoo._graph_builder import Graph, Value
from model_zoo._normal_forms import normal_form
from toolkit.errors import UnsupportedError

__all__ = ["normalize", "pre_tokenize", "refused"]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WHITESPACE = r"\w+|[^\w\s]+"
_BY_CHARACTER = frozenset({"BertNormalizer", "Lowercase", "StripAccents", "Nmt"})
_FORMS = frozenset({"NFC", "NFD", "NFKC", "NFKD"})


def refused(what: str) -> UnsupportedError:
    """A tokenizer with something that no graph is made of here."""
    return UnsupportedError(f"its tokenizer has {what}", hint="Tokenize with its tokenizer.json instead.")


def normalize(g: Graph, stream: Value, stage: Mapping[str, Any] | None) -> Value:
    """What the normalizer makes of each text between two marks. Raises UnsupportedError for one that is not known."""
    if stage is None:
        return stream
    kind = str(stage["type"])
    if kind == "Sequence":
        for item in stage["normalizers"]:
            stream = normalize(g, stream, item)
        return stream
    if kind == "Prepend":
        for character in reversed(stage["prepend"]):
            stream = insert(g, stream, first_of_words(g, stream), ord(character))
        return stream
    if kind in _FORMS:
        return normal_form(g, stream, kind)
    single = kind == "Replace" and len(stage["pattern"].get("String", "")) == 1
    if kind in _BY_CHARACTER or single:
        try:
            return expand(g, stream, _char_tables.normal_forms(json.dumps(stage)))
        except ValueError as error:
            raise refused(f"a normalizer {kind} that cannot be asked: {error}") from error
    raise refused(f"the normalizer {kind}")


def pre_tokenize(g: Graph, stream: Value, stage: Mapping[str, Any] | None) -> Value:
    """The stream with a BREAK between words. Raises UnsupportedError for a pre-tokenizer that is not known."""
    if stage is None:
        return stream
    kind = str(stage["type"])
    if kind == "Sequence":
        for item in stage["pretokenizers"]:
            stream = pre_tokenize(g, stream, item)
        return stream
    if kind not in _STAGES:
        raise refused(f"the pre-tokenizer {kind}")
    return _STAGES[kind](g, stream, stage)


def _byte_level(g: Graph, stream: Value, stage: Mapping[str, Any]) -> Value:
    if stage.get("add_prefix_space", True):
        stream = insert(g, stream, first_of_words(g, stream) & ~(stream == ord(" ")), ord(" "))
    return _split(g, stream, _GPT2, "isolated") if stage.get("use_regex", True) else stream


def _by_pattern(g: Graph, stream: Value, stage: Mapping[str, Any]) -> Value:
    pattern = stage["pattern"]
    text = pattern["Regex"] if "Regex" in pattern else re.escape(pattern["String"])
    return _split(g, stream, text, str(stage["behavior"]).lower(), bool(stage.get("invert")))


def _whitespace(g: Graph, stream: Value, stage: Mapping[str, Any]) -> Value:
    return _split(g, stream, _WHITESPACE, "removed", True)


def _by_character(g: Graph, stream: Value, stage: Mapping[str, Any]) -> Value:
    """Digits, punctuation and spaces: words of their own, or dropped, one by one."""
    if stage.get("behavior", "Isolated") != "Isolated":
        raise refused(f"the pre-tokenizer {stage['type']} that is {stage['behavior']}")
    asked = {**stage, "individual_digits": True} if stage["type"] == "Digits" else stage
    kinds = lookup(g, stream, _char_tables.context(json.dumps(asked)))
    alone = kinds == _char_tables.ISOLATED
    stream = g.op("Where", kinds == _char_tables.REMOVED, BREAK, stream)
    before = g.op("Cast", shift(g, alone.cast(), -1), to=9)
    joined = stage["type"] == "Digits" and not stage.get("individual_digits")
    return _cut(g, stream, g.op("Xor", alone, before) if joined else alone | before)


def _metaspace(g: Graph, stream: Value, stage: Mapping[str, Any]) -> Value:
    mark, scheme = ord(stage.get("replacement", "▁")), str(stage.get("prepend_scheme", "always")).lower()
    stream = g.op("Where", stream == ord(" "), mark, stream)
    bare = first_of_words(g, stream) & ~(stream == mark)
    if scheme == "first":
        bare = bare & (shift(g, stream, -1, _char_tables.COUNT) == _char_tables.COUNT)
    if scheme != "never":
        stream = insert(g, stream, bare, mark)
    return _cut(g, stream, stream == mark) if stage.get("split", True) else stream


_STAGES: dict[str, Callable[[Graph, Value, Mapping[str, Any]], Value]] = {
    "ByteLevel": _byte_level,
    "Split": _by_pattern,
    "Whitespace": _whitespace,
    "WhitespaceSplit": _by_character,
    "BertPreTokenizer": _by_character,
    "Punctuation": _by_character,
    "Digits": _by_character,
    "Metaspace": _metaspace,
}


def _split(g: Graph, stream: Value, pattern: str, behavior: str, invert: bool = False) -> Value:
    """Cut at the matches of a pattern, found one after the other from the beginning of each text."""
    try:
        ends = _regex_graph.match_ends(g, stream, _regex_graph.parse(pattern))
    except ValueError as error:
        raise refused(f"a pre-tokenizer with {error}") from error
    place = positions(g, stream)
    matched = ends > place
    after = g.op("Where", matched, ends, g.op("Min", place + 1, g.op("ReduceMax", place)))
    visited = reachable(g, place == 0, after)
    begins, inside = visited & matched, ~visited | matched
    behind = visited & g.op("Cast", shift(g, inside.cast(), -1), to=9)
    cuts = {"isolated": begins | behind, "removed": begins, "mergedwithprevious": behind, "mergedwithnext": begins}
    if behavior not in cuts or (invert and behavior not in ("isolated", "removed")):
        raise refused(f"a pre-tokenizer that splits {behavior}{' inverted' if invert else ''}")
    if behavior == "removed":
        dropped = (~inside if invert else inside) & ~is_mark(stream)
        stream = g.op("Where", dropped, BREAK, stream)
    return _cut(g, stream, cuts[behavior])


def _cut(g: Graph, stream: Value, where: Value) -> Value:
    """A BREAK before each place that is no mark and does not stand behind one."""
    return insert(g, stream, where & ~is_mark(stream) & ~before_marks(g, stream), BREAK)
