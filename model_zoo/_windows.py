"""Running text for language models: tokens cut into windows of one length, as a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from model_zoo import _dims, _fingerprints, _text
from model_zoo._samples import Sample, no_text
from toolkit.types import ModelSpec

__all__ = ["Window", "known_by", "windows"]

_WINDOW = 256
_AT_ONCE = 256
_TELLING = 32


@dataclass(frozen=True, slots=True)
class Window:
    """Token ids in a row, and those of the texts that lie wholly in it."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]


def windows(spec: ModelSpec, vocabulary: int, texts: Iterable[Sample]) -> Iterator[Sample]:
    """The texts one after the other, in windows of 256 tokens (or what the model takes), without overlap.

    Text is read a little at a time. What is left at the end is dropped, unless it is all there is. Raises UsageError
    for text of less than two tokens, in which there is nothing to predict.
    """
    cutter = _Cutter(_dims.within(_WINDOW, spec.dims["sequence"]))
    stream, count = iter(texts), 0
    while some := list(islice(stream, _AT_ONCE)):
        for sample, row in zip(some, _text.token_rows(spec, [item.content for item in some], vocabulary), strict=True):
            for window in cutter.add(sample.content, row):
                count += 1
                yield Sample(window, None, f"window {count}, up to {sample.where}")
    if not count:
        if len(cutter.tokens) < 2:
            raise no_text("what was given")
        yield Sample(cutter.rest(), None, "the whole text")


def known_by(samples: Sequence[Sample]) -> list[frozenset[bytes]]:
    """What each window is known by: its tokens, and every text of 32 characters or more that lies wholly in it.

    Shorter ones, as headings, come up in texts that have nothing to do with each other.
    """
    return [
        frozenset(
            {
                _fingerprints.of_tokens(sample.content.tokens),
                *(_fingerprints.of_text(text) for text in sample.content.texts if len(text) >= _TELLING),
            }
        )
        for sample in samples
    ]


@dataclass(slots=True)
class _Cutter:
    """Tokens that are not in a window yet, and the texts that began among them: (first, end, text)."""

    length: int
    tokens: list[int] = field(default_factory=list)
    texts: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, text: str, row: Sequence[int]) -> Iterator[Window]:
        self.texts.append((len(self.tokens), len(self.tokens) + len(row), text))
        self.tokens += row
        start = 0
        while len(self.tokens) - start >= self.length:
            yield self._cut(start, start + self.length)
            start += self.length
        if start:
            del self.tokens[:start]
            self.texts = [(first - start, end - start, text) for first, end, text in self.texts if first >= start]

    def rest(self) -> Window:
        return self._cut(0, len(self.tokens))

    def _cut(self, start: int, end: int) -> Window:
        whole = (text for first, last, text in self.texts if first >= start and last <= end)
        return Window(tuple(self.tokens[start:end]), tuple(whole))
