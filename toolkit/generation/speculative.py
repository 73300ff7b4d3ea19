"""Speculative decoding: a small model drafts, the large one checks several tokens in one pass.

Greedy, for one row: the tokens are those that the target would have chosen alone. Source: Leviathan et al. (2023),
Fast Inference from Transformers via Speculative Decoding, at temperature 0. (A pass over several tokens and a pass
over one may round differently, so an exact tie between two tokens can fall the other way.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.generation.generate import Event, Generation, Row, check_prompts, prefill
from toolkit.generation.sampling import Sampler, check_finite

if TYPE_CHECKING:
    from toolkit.generation.text import Codec
    from toolkit.types import Decoder

__all__ = ["Acceptance", "speculate", "vocabularies_differ"]


@dataclass(slots=True)
class Acceptance:
    """How many tokens were drafted, how many of them the target took, in how many passes of the target."""

    drafted: int = 0
    accepted: int = 0
    passes: int = 0

    @property
    def rate(self) -> float:
        """Accepted among drafted, 0 to 1; 0 where nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0


def speculate(
    target: Decoder,
    draft: Decoder,
    prompt: NDArray[np.int64],
    settings: Generation,
    codec: Codec | None = None,
    *,
    ahead: int = 4,
    counts: Acceptance | None = None,
) -> Iterator[Event]:
    """Yield the tokens that `generate` would for this prompt, with at most `ahead` of them drafted at a time.

    `counts` is filled in as it goes. The caller closes both decoders. Raises UsageError for a temperature above 0,
    for models of different vocabularies, for a prompt longer than either cache, and for a target that answers the
    last position's logits only.
    """
    _check(settings, ahead)
    for decoder in (target, draft):
        check_prompts([prompt], decoder)
    logits, drafted = prefill(target, [prompt], settings), prefill(draft, [prompt], settings)
    if logits.shape[1] != drafted.shape[1]:
        raise vocabularies_differ(logits.shape[1], drafted.shape[1])
    row = Row(0, prompt, settings, codec)
    sampler = Sampler(settings.sampling, [prompt], logits.shape[1])
    pair = _Pair(target, draft, prompt, min(target.limit, draft.limit))
    counts = counts if counts is not None else Acceptance()
    guesses: list[int] = []
    while row.finish is None:
        for place, own in enumerate(logits):
            check_finite(own[None], [0], [row.length])
            token = int(sampler.choose(own[None], [0])[0])
            full = len(pair.tokens) >= target.limit
            pair.tokens.append(token)
            yield row.take(token, full=full)
            guessed = place < len(guesses) and guesses[place] == token
            counts.accepted += guessed
            if row.finish is not None or not guessed:
                break
        if row.finish is None:
            pair.settle()
            guesses = pair.guess(min(ahead, settings.max_new_tokens - row.new - 1))
            logits = pair.verify(guesses)
            counts.drafted += len(guesses)
            counts.passes += 1


def vocabularies_differ(target: int, draft: int) -> UsageError:
    """The error for a draft whose tokens are not the target's."""
    return UsageError(
        f"the draft has {draft} tokens in its vocabulary, the model {target}",
        hint="Give --draft a smaller model of the same family, with the same tokenizer.",
    )


class _Pair:
    """Both caches and the tokens chosen so far, the last of which no cache holds yet."""

    def __init__(self, target: Decoder, draft: Decoder, prompt: NDArray[np.int64], limit: int) -> None:
        self.tokens: list[int] = prompt.tolist()
        self._target, self._draft = target, draft
        self._limit = limit
        self._in_target = self._in_draft = len(prompt)

    def settle(self) -> None:
        """Forget what was guessed wrong: all but the chosen tokens before the last."""
        known = len(self.tokens) - 1
        if self._in_target > known:
            self._target.rewind(known)
            self._in_target = known
        if self._in_draft > known:
            self._draft.rewind(known)
            self._in_draft = known

    def guess(self, count: int) -> list[int]:
        """Up to `count` tokens that the draft would put next, as far as both caches reach."""
        guesses: list[int] = []
        for _ in range(min(count, self._limit - len(self.tokens))):
            unread = [*self.tokens, *guesses][self._in_draft :]
            logits = self._draft.forward(np.array([unread], np.int64), np.array([len(unread)], np.int64))
            self._in_draft += len(unread)
            guesses.append(int(np.argmax(logits[0])))
        return guesses

    def verify(self, guesses: list[int]) -> NDArray[np.float32]:
        """The target's logits after the last token and after each guess, [guesses + 1, vocabulary]."""
        tokens = np.array([[self.tokens[-1], *guesses]], np.int64)
        lengths = np.array([tokens.shape[1]], np.int64)
        self._in_target += tokens.shape[1]
        if not guesses:
            return self._target.forward(tokens, lengths)
        answer: NDArray[np.float32] = self._target.forward(tokens, lengths, every=True)[0]
        return answer


def _check(settings: Generation, ahead: int) -> None:
    if ahead < 1:
        raise UsageError(f"{ahead} drafted tokens", hint="Allowed: 1 or more.")
    if not settings.sampling.greedy:
        raise UsageError(
            "a draft works with greedy choice only",
            hint="Leave --draft out, or leave --temperature at 0.",
        )
