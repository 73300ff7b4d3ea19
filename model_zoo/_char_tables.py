"""What the tokenizers library does with each single character, asked of itself: classes and normal forms.

Asking it, rather than a Unicode database, gives its own version of Unicode, whatever that is.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["COUNT", "INSIDE", "ISOLATED", "REMOVED", "context", "members", "normal_forms"]

COUNT = 0x110000
"""The number of code points."""

INSIDE, REMOVED, ISOLATED = 0, 1, 2
"""What a pre-tokenizer does with a character between two letters: part of the word, dropped, a word of its own."""

_PLANE, _BESIDE = 0x10000, "a"
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
        left = Replace(Regex(f"(?:{pattern})+"), "").normalize_str(_text())
    except Exception as error:
        raise ValueError(f"{pattern!r}: {error}") from error
    matched = np.zeros(COUNT, np.bool_)
    matched[_asked()] = True
    matched[np.frombuffer(left.encode("utf-32-le"), np.uint32)] = False
    return _everywhere(matched[_asked()])


@lru_cache(maxsize=16)
def context(pre_tokenizer: str) -> NDArray[np.int8]:
    """What a pre-tokenizer (its JSON) does with each code point between two letters, int8 [COUNT].

    Letters are not asked about: they are INSIDE.
    """
    letters = members(r"\p{L}")
    asked = _asked()[~letters[_asked()]].tolist()
    text = _BESIDE + _BESIDE.join(map(chr, asked)) + _BESIDE
    covered, starts = np.zeros(len(text), np.bool_), np.zeros(len(text), np.bool_)
    for _, (start, end) in _stage("pre_tokenizer", pre_tokenizer).pre_tokenize_str(text):
        covered[start:end], starts[start] = True, True
    own = np.where(starts[1:-1:2] & starts[2::2], ISOLATED, INSIDE)
    answers = np.full(COUNT, INSIDE, np.int8)
    answers[asked] = np.where(covered[1:-1:2], own, REMOVED)
    return _everywhere(answers[_asked()])


@lru_cache(maxsize=8)
def normal_forms(normalizer: str) -> dict[int, tuple[int, ...]]:
    """The code points that a normalizer (its JSON) changes, each with what it makes of one that stands alone.

    Raises ValueError for a normalizer that does not work character by character.
    """
    asked, beside = _asked().tolist(), "|"
    made = _stage("normalizer", normalizer).normalize_str(beside.join(map(chr, asked))).split(beside)
    if len(made) != len(asked) + 1:  # the separator is one of the characters: it makes two empty ones
        raise ValueError("it does not work character by character")
    at = asked.index(ord(beside))
    made[at : at + 2] = [beside]
    forms = {code: tuple(map(ord, form)) for code, form in zip(asked, made, strict=True) if form != chr(code)}
    for planes, sample in _ALIKE:
        for low in (0, 0xFFFE):
            form = forms.get(sample * _PLANE + low)
            if form is not None:
                size = 0xFFFE if low == 0 else 2
                forms |= {plane * _PLANE + low + k: form for plane in planes for k in range(size)}
    return forms


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
    codes = [code for plane in _FULL for code in range(plane * _PLANE, (plane + 1) * _PLANE)]
    samples = [sample * _PLANE + low for _, sample in _ALIKE for low in (0, 0xFFFE)]
    return np.array(sorted([code for code in codes if not 0xD800 <= code < 0xE000] + samples))


@lru_cache(maxsize=1)
def _text() -> str:
    return "".join(map(chr, _asked().tolist()))


def _everywhere(answers: NDArray[Any]) -> NDArray[Any]:
    """The answers for `_asked` spread over all code points."""
    spread = np.zeros(COUNT, answers.dtype)
    spread[_asked()] = answers
    by_plane = spread.reshape(-1, _PLANE)
    for planes, sample in _ALIKE:
        for plane in planes:
            by_plane[plane, :0xFFFE], by_plane[plane, 0xFFFE:] = by_plane[sample, 0], by_plane[sample, 0xFFFE]
    return spread
