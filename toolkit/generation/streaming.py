"""Text from tokens as they come: whole characters only, and nothing that may yet turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolkit.errors import UsageError

__all__ = ["Detokenizer", "StopStrings"]

_BROKEN = "\ufffd"
_PROMPT_TAIL = 8


class Detokenizer:
    """Turns one row's tokens into pieces of text that join to the whole.

    A token's text depends on its neighbours: a character may take several tokens, and decoders drop the space of
    a first word. So each piece is the difference of two decodings that begin a few tokens earlier, the first of
    them in the prompt. What ends in a broken character waits for the tokens that complete it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], prompt: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = [int(token) for token in prompt[-_PROMPT_TAIL:]]
        self._known = len(self._window)
        self._known_text = decode(self._window)

    def push(self, token: int) -> str:
        """The text that is certain now, which may be none."""
        self._window.append(int(token))
        text = self._decode(self._window)
        if len(text) <= len(self._known_text) or text.endswith(_BROKEN):
            return ""
        return self._advance(text)

    def flush(self) -> str:
        """What was held back, broken characters included: no more tokens will come."""
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        piece = text[len(self._known_text) :]
        self._window = self._window[self._known :]
        self._known, self._known_text = len(self._window), self._decode(self._window)
        return piece


class StopStrings:
    """Lets text through until one of the stop strings appears, wherever the borders between its pieces fall.

    Raises UsageError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if "" in stops:
            raise UsageError("a stop string is empty", hint="Give at least one character to --stop.")
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """What can be shown now; `found` tells that a stop string ended it. Nothing comes after that."""
        if self.found:
            return ""
        text = self._held + piece
        places = [place for place in map(text.find, self._stops) if place >= 0]
        if places:
            self.found, self._held = True, ""
            return text[: min(places)]
        keep = self._beginning_of_a_stop(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, now that no more text will come."""
        held, self._held = self._held, ""
        return held

    def _beginning_of_a_stop(self, text: str) -> int:
        """How many of the last characters may be the beginning of a stop string: the most that are."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        sizes = range(min(longest, len(text)), 0, -1)
        return next((size for size in sizes if any(stop.startswith(text[-size:]) for stop in self._stops)), 0)
