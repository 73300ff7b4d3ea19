"""From logits of tokens to what a person wants to see: entities, words for a mask, answers to a question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.answers import shares, top_labels
from toolkit.errors import UsageError

__all__ = ["entities", "fills", "spans", "tokens"]

OUTSIDE = "O"
LONGEST = 30
"""Tokens that an answer to a question has at most."""


def tokens(logits: NDArray[Any], encodings: Sequence[Any], labels: Sequence[str]) -> list[list[dict[str, Any]]]:
    """The likeliest class of each token but special ones, of logits [n, positions, classes].

    `encodings` are the tokenizer's, one a row; `start` and `end` count characters of the text.
    """
    return [_tokens(top_labels(row, labels, 1), encoding) for row, encoding in zip(logits, encodings, strict=True)]


def entities(found: Sequence[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    """Neighbouring tokens of one class as one, without those of class `O`; the share is their mean.

    `B-` before a class begins another one of it, and `I-` goes on, as in CoNLL-2003.
    """
    groups: list[list[dict[str, Any]]] = []
    previous = OUTSIDE
    for token in found:
        kind = _kind(token["label"])
        if kind != OUTSIDE:
            if kind == previous and _goes_on(token, groups[-1][-1]):
                groups[-1].append(token)
            else:
                groups.append([token])
        previous = kind
    return [_entity(group, text) for group in groups]


def fills(
    logits: NDArray[Any], encodings: Sequence[Any], mask: int, count: int, spelled: Callable[[int], str]
) -> list[list[list[dict[str, Any]]]]:
    """For each row and each of its tokens `mask` the `count` likeliest tokens, of logits [n, positions, vocabulary].

    Raises UsageError for a text without the token.
    """
    rows = []
    for row, encoding in zip(logits, encodings, strict=True):
        places = [place for place, index in enumerate(encoding.ids) if index == mask]
        if not places:
            raise UsageError("a text has no [MASK]", hint='Put [MASK] where a word is to be guessed: "The [MASK] sat."')
        likeliest = top_labels(row[places], (), count)
        rows.append([[{**one, "label": spelled(one["index"])} for one in best] for best in likeliest])
    return rows


def spans(
    starts: NDArray[Any], ends: NDArray[Any], encodings: Sequence[Any], contexts: Sequence[str], count: int
) -> list[list[dict[str, Any]]]:
    """The `count` likeliest answers in each context, of the logits of where they start and end, both [n, positions].

    The share of an answer is that of its start times that of its end among the context's tokens, as in BERT's paper
    (section 4.2); answers of more than 30 tokens are left out. `start` and `end` count characters.
    """
    rows = zip(starts, ends, encodings, contexts, strict=True)
    return [_spans(start, end, encoding, context, count) for start, end, encoding, context in rows]


def _spans(starts: NDArray[Any], ends: NDArray[Any], encoding: Any, context: str, count: int) -> list[dict[str, Any]]:
    places = np.array([place for place, text in enumerate(encoding.sequence_ids) if text == 1], dtype=int)
    if not places.size:
        raise UsageError("there is no room for the context beside the question", hint="Give a shorter question.")
    first, last = (shares(logits[None, places])[0] for logits in (starts, ends))
    joint = np.tril(np.triu(np.outer(first, last)), LONGEST - 1)
    best = [index for index in np.argsort(-joint, axis=None, kind="stable")[:count] if joint.flat[index] > 0]
    found = []
    for begin, end in (divmod(int(index), len(places)) for index in best):
        left, right = encoding.offsets[places[begin]][0], encoding.offsets[places[end]][1]
        share = float(joint[begin, end])
        found.append({"answer": context[left:right].strip(), "start": left, "end": right, "probability": share})
    return found


def _tokens(best: Sequence[Sequence[dict[str, Any]]], encoding: Any) -> list[dict[str, Any]]:
    places = zip(encoding.tokens, encoding.offsets, encoding.special_tokens_mask, best, strict=True)
    return [
        {"token": token, "start": start, "end": end, **likeliest[0]}
        for token, (start, end), special, likeliest in places
        if not special
    ]


def _goes_on(token: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether a token of the same class belongs to the entity before it: a part of a word always does."""
    return not token["label"].startswith("B-") or token["start"] == before["end"]


def _kind(label: str) -> str:
    return label[2:] if label[:2] in ("B-", "I-") else label


def _entity(group: Sequence[dict[str, Any]], text: str) -> dict[str, Any]:
    start, end = group[0]["start"], group[-1]["end"]
    share = sum(token["probability"] for token in group) / len(group)
    return {"text": text[start:end].strip(), "label": _kind(group[0]["label"]), "start": start, "end": end,
            "probability": share}  # fmt: skip
