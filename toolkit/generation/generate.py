"""The loop that drives a `Decoder`: prefill, then one token a row at a time until every row has ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.generation.sampling import Sampler, Sampling, check_finite
from toolkit.generation.streaming import Detokenizer, StopStrings

if TYPE_CHECKING:
    from toolkit.generation.text import Codec
    from toolkit.types import Decoder

__all__ = ["PREFILL_CHUNK", "Event", "Finish", "Generation", "Row", "check_prompts", "generate", "prefill"]

Finish = Literal["eos", "stop", "length"]

PREFILL_CHUNK = 512
"""How many positions of a single prompt go through at a time by default; engines are compiled for chunks this long."""


@dataclass(frozen=True, slots=True)
class Generation:
    """When to stop and how to choose. `eos` are tokens that end a row, `stop` texts that do, `pad` fills ended rows.

    `prefill_chunk` is how many positions of a prompt go through at a time, which bounds the memory of a long one.
    Raises UsageError for a value outside its range.
    """

    max_new_tokens: int = 128
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    eos: tuple[int, ...] = ()
    pad: int = 0
    prefill_chunk: int = PREFILL_CHUNK

    def __post_init__(self) -> None:
        for name, value in (("max new tokens", self.max_new_tokens), ("prefill chunk", self.prefill_chunk)):
            if value < 1:
                raise UsageError(f"{name} {value} is outside its range", hint="Allowed: 1 or more.")
        StopStrings(self.stop)


@dataclass(frozen=True, slots=True)
class Event:
    """One new token of a row, the text that became certain with it, and why the row ended, if it did.

    `eos`: the model ended it; `stop`: a stop string was found (and is not in the text); `length`: so many tokens
    were wanted, or the cache is full.
    """

    row: int
    token: int
    text: str
    finish: Finish | None = None


class Row:
    """One row's text, count and end."""

    def __init__(self, index: int, prompt: NDArray[np.int64], settings: Generation, codec: Codec | None) -> None:
        self.index = index
        self.length = len(prompt)
        self.new = 0
        self.finish: Finish | None = None
        self._settings = settings
        self._text = Detokenizer(codec.decode, prompt.tolist()) if codec else None
        self._stops = StopStrings(settings.stop)

    def take(self, token: int, *, full: bool) -> Event:
        """Note a new token; `full` says that the cache has no place for it, so that it is the last."""
        self.new += 1
        self.length += 1
        ended = token in self._settings.eos
        if ended:
            self.finish = "eos"
        elif full or self.new >= self._settings.max_new_tokens:
            self.finish = "length"
        text = self._piece(token, ended)
        if self._stops.found:
            self.finish = "stop"
        return Event(self.index, token, text, self.finish)

    def _piece(self, token: int, ended: bool) -> str:
        if self._text is None:
            return ""
        piece = "" if ended else self._text.push(token)
        if self.finish is None:
            return self._stops.push(piece)
        shown = self._stops.push(piece + self._text.flush())
        return shown + self._stops.flush()


def generate(
    decoder: Decoder, prompts: Sequence[NDArray[np.int64]], settings: Generation, codec: Codec | None = None
) -> Iterator[Event]:
    """Yield a new token of each row that has not ended, row by row, until all have.

    `prompts` are int64 [n] each. Without a `codec` there is no text, and so no stop strings. The caller closes the
    decoder. Rows share the cache's positions: where the longest fills it, the others end with `length` as well.
    Raises UsageError for a prompt longer than the cache or too many of them, StageError for NaN or Inf logits.
    """
    check_prompts(prompts, decoder)
    if settings.stop and codec is None:
        raise UsageError("stop strings need a tokenizer", hint="Leave --stop out.")
    rows = [Row(index, prompt, settings, codec) for index, prompt in enumerate(prompts)]
    logits = prefill(decoder, prompts, settings)
    sampler = Sampler(settings.sampling, prompts, logits.shape[1])
    used = max(len(prompt) for prompt in prompts)
    while live := [row for row in rows if row.finish is None]:
        places = [row.index for row in live]
        own = logits[places]
        check_finite(own, places, [row.length for row in live])
        chosen = sampler.choose(own, places)
        tokens = np.full((len(rows), 1), settings.pad, np.int64)
        tokens[places, 0] = chosen
        for row, token in zip(live, chosen, strict=True):
            yield row.take(int(token), full=used >= decoder.limit)
        if any(row.finish is None for row in live):
            logits = decoder.forward(tokens, np.ones(len(rows), np.int64))
            used += 1


def prefill(decoder: Decoder, prompts: Sequence[NDArray[np.int64]], settings: Generation) -> NDArray[np.float32]:
    """Start the decoder, feed it the prompts, and answer the logits after each, [rows, vocabulary].

    One row goes through in chunks. Several go through at once: attention kernels take more than one new token
    behind a past for a single row only.
    """
    decoder.start(len(prompts))
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    tokens = np.full((len(prompts), lengths.max()), settings.pad, np.int64)
    for row, prompt in zip(tokens, prompts, strict=True):
        row[: len(prompt)] = prompt
    if len(prompts) > 1:
        return decoder.forward(tokens, lengths)
    for start in range(0, tokens.shape[1], settings.prefill_chunk):
        chunk = np.ascontiguousarray(tokens[:, start : start + settings.prefill_chunk])
        logits = decoder.forward(chunk, np.array([chunk.shape[1]], np.int64))
    return logits


def check_prompts(prompts: Sequence[NDArray[np.int64]], decoder: Decoder) -> None:
    """Raises UsageError where the decoder has no place for so many prompts, or for one so long."""
    if not 1 <= len(prompts) <= decoder.rows:
        raise UsageError(f"{len(prompts)} prompts", hint=f"Allowed: 1 to {decoder.rows} at a time.")
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise UsageError(f"prompt {index + 1} has no tokens", hint="Give some text to --prompt.")
        if len(prompt) > decoder.limit:
            raise UsageError(
                f"prompt {index + 1} has {len(prompt)} tokens, the cache holds {decoder.limit}",
                hint=f"Give --context {len(prompt) + 1} or more, as far as the model goes, or a shorter prompt.",
            )
