"""What the tokenizers library does with each single character, asked of itself: classes and normal forms.

Asking it, rather than a Unicode database, gives its own version of Unicode, whatever that is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["COUNT", "INSIDE", "ISOLATED", "REMOVED", "Forms", "context", "members", "normal_forms"]

COUNT = 0x110000
"""The number of code points."""

INSIDE, REMOVED, ISOLATED = 0, 1, 2
"""What a pre-tokenizer does with a character between two letters: part of the word, dropped, a word of its own."""

_PLANE, _BESIDE = 0x10000, "a"
_BETWEEN = (ord("|"), ord("ᚠ"))
"""Characters to ask between: the compatibility forms make the first of others, a replacement may name either."""
_PIECE = 1 << 13  # characters that the library is asked about at once: its time grows faster than the text
_FULL = (0, 1, 2, 3, 14)
_ALIKE = ((range(4, 14), 4), (range(15, 17), 15))


@lru_cache(maxsize=64)
def members(pattern: str) -> NDArray[np.bool_]:
    """Which code points a regular expression matches, bool [COUNT]; no surrogates. Raises ValueError for a bad one."""
    from tokenizers import Regex
    from tokenizers.normalizers import Replace

    if len(pattern) == 1 and pattern not in ".^$|?*+":
        only = np.zeros(COUNT, np.bool_)
        only[ord(pattern)] = True
        return only
    try:
        stage = Replace(Regex(f"(?:{pattern})+"), "")
        left = _normalized(stage, _asked())
    except Exception as error:
        raise ValueError(f"{pattern!r}: {error}") from error
    matched = np.zeros(COUNT, np.bool_)
    matched[_asked()] = True
    matched[left] = False
    return _everywhere(matched[_asked()])


@lru_cache(maxsize=16)
def context(pre_tokenizer: str) -> NDArray[np.int8]:
    """What a pre-tokenizer (its JSON) does with each code point between two letters, int8 [COUNT].

    Letters are not asked about: they are INSIDE.
    """
    asked = _asked()[~members(r"\p{L}")[_asked()]]
    stage = _stage("pre_tokenizer", pre_tokenizer)
    answers = np.full(COUNT, REMOVED, np.int8)
    for at, text in _pieces(asked):
        for _, (start, end) in stage.pre_tokenize_str(text):
            answers[asked[at + start : at + end]] = INSIDE if end - start > 1 else ISOLATED
    for code in asked[answers[asked] == ISOLATED].tolist():  # it may have stood alone among others that are dropped
        if len(stage.pre_tokenize_str(f"{_BESIDE}{chr(code)}{_BESIDE}")) == 1:
            answers[code] = INSIDE
    answers[np.flatnonzero(members(r"\p{L}"))] = INSIDE
    return _everywhere(answers[_asked()])


@dataclass(frozen=True)
class Forms:
    """What becomes of each code point: `rows[table[code]]` without -1; it stays as it is where `table` has 0.

    `table` int32 [COUNT], `rows` int32 [N, W]: the forms in order from row 1 on, each filled up with -1.
    """

    table: NDArray[np.int32]
    rows: NDArray[np.int32]


@lru_cache(maxsize=8)
def normal_forms(normalizer: str) -> Forms:
    """What a normalizer (its JSON) makes of each code point that stands alone.

    Raises ValueError for a normalizer that does not work character by character.
    """
    stage = _stage("normalizer", normalizer)
    tried = (_parted(stage, between) for between in _BETWEEN)
    found = next((parts for parts in tried if parts is not None), None)
    if found is None:
        raise ValueError("it does not work character by character")
    asked, (made, starts, sizes) = _asked(), found
    changed = np.flatnonzero((sizes != 1) | (np.append(made, 0)[starts] != asked))
    rows = np.full((len(changed), max(1, sizes[changed].max(initial=1))), -1, np.int32)
    for column in range(rows.shape[1]):
        long = sizes[changed] > column
        rows[long, column] = made[starts[changed[long]] + column]
    distinct, number = _ranked(rows)
    table = np.zeros(len(asked), np.int32)
    table[changed] = number + 1
    return Forms(_everywhere(table), np.pad(distinct, ((1, 0), (0, 0)), constant_values=-1))


def _parted(stage: Any, between: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None:
    """What a normalizer makes of all that is asked with `between` between: text, where each part begins, its length.

    None where it does not leave that character alone, or makes it of others.
    """
    asked = _asked()
    codes = np.full(2 * len(asked) - 1, between)
    codes[::2] = asked
    made = _normalized(stage, codes)
    ends = np.append(np.flatnonzero(made == between), len(made))
    if len(ends) != len(asked) + 1:  # it is itself one of those asked about, and makes two empty parts
        return None
    starts = np.append(0, ends[:-1] + 1)
    own = np.searchsorted(asked, between)
    starts, sizes = np.delete(starts, own + 1), np.delete(ends - starts, own + 1)
    sizes[own] = 1
    return made, starts, sizes


def _ranked(rows: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The distinct rows in order, and the number of each row's among them: `np.unique`, which is slow by row."""
    order = np.lexsort(rows.T[::-1])
    first = np.append(True, (np.diff(rows[order], axis=0) != 0).any(axis=1))[: len(rows)]
    number = np.empty(len(rows), np.int64)
    number[order] = np.cumsum(first) - 1
    return rows[order][first], number


def _stage(kind: str, text: str) -> Any:
    """A normalizer or pre-tokenizer from its JSON, by way of a tokenizer that has nothing else."""
    from tokenizers import Tokenizer

    empty = {"type": "WordLevel", "vocab": {}, "unk_token": "?"}
    whole = {"version": "1.0", "added_tokens": [], "model": empty, kind: json.loads(text)}
    absent = {name: None for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder") if name != kind}
    return getattr(Tokenizer.from_str(json.dumps(whole | absent)), kind)


@lru_cache(maxsize=1)
def _asked() -> NDArray[np.int64]:
    """In order: every code point of the planes in use but surrogates, and samples of the planes that are all alike."""
    asked = np.zeros((COUNT // _PLANE, _PLANE), np.bool_)
    asked[_FULL, :] = True
    asked[0, 0xD800:0xE000] = False
    for _, sample in _ALIKE:
        asked[sample, [0, 0xFFFE]] = True
    return np.flatnonzero(asked)


def _normalized(stage: Any, codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """What a normalizer makes of a text, piece by piece, as code points."""
    made = "".join(stage.normalize_str(text) for _, text in _pieces(codes))
    return np.frombuffer(made.encode("utf-32-le"), "<u4").astype(np.int64)


def _pieces(codes: NDArray[np.int64]) -> Iterator[tuple[int, str]]:
    """Where each piece of a text begins, and the piece."""
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    return ((at, text[at : at + _PIECE]) for at in range(0, len(text), _PIECE))


def _everywhere(answers: NDArray[Any]) -> NDArray[Any]:
    """The answers for `_asked` spread over all code points."""
    spread = np.zeros(COUNT, answers.dtype)
    spread[_asked()] = answers
    by_plane = spread.reshape(-1, _PLANE)
    for planes, sample in _ALIKE:
        for plane in planes:
            by_plane[plane, :0xFFFE], by_plane[plane, 0xFFFE:] = by_plane[sample, 0], by_plane[sample, 0xFFFE]
    return spread
