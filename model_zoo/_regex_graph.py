"""Regular expressions that cut text into words, as graphs: for every place of a stream at once, where a match ends.

Taken are alternatives, groups, classes, `(?i:)`, look-ahead, `? * + {m,n}` after a class and `?` after a group, with
the meaning of a backtracking engine: the first alternative that matches, as often as it goes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from model_zoo import _char_tables
from model_zoo._char_stream import lookup, positions, shift
from model_zoo._graph_builder import Graph, Value

__all__ = ["match_ends", "parse"]


@dataclass(frozen=True)
class Class:
    """One character; `pattern` is its own regular expression."""

    pattern: str


@dataclass(frozen=True)
class Repeat:
    """An item, as often as it goes; `most` None is without end."""

    item: Node
    least: int
    most: int | None


@dataclass(frozen=True)
class Look:
    """A look ahead that takes nothing."""

    item: Node
    negative: bool


@dataclass(frozen=True)
class Sequence:
    """One after the other."""

    items: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """The first that matches."""

    branches: tuple[Node, ...]


Node = Class | Repeat | Look | Sequence | Choice

_ATOM = re.compile(r"\\[pP]\{\^?\w+\}|\\[sSdDwWrnt]|\\[^\w]|\[\^?(?:\\.|[^\\\[\]])+\]|[^\\\[\](){}?*+|.^$]")
_COUNT = re.compile(r"\{(\d+)(?:(,)(\d*))?\}|[?*+]")
_GROUPS = {"(?:": "", "(?i:": "i", "(?!": "!", "(?=": "="}


def parse(pattern: str) -> Node:
    """The tree of a pattern. Raises ValueError that names what is not taken."""
    node, rest = _choice(pattern, "")
    if rest:
        raise ValueError(f"'{rest[:20]}' in the pattern {pattern!r}")
    return node


def match_ends(g: Graph, stream: Value, node: Node) -> Value:
    """Where a match that begins at each place ends, int64 [T]; -1 for no match. Marks belong to no class."""
    return _Compiler(g, stream, node).ends(node, None)


class _Compiler:
    """Works backwards: `rest` is where the remainder of the pattern ends from each place, None for an empty one."""

    def __init__(self, g: Graph, stream: Value, node: Node) -> None:
        self.g, self.place = g, positions(g, stream)
        patterns = sorted(_classes(node))
        bits = np.zeros(_char_tables.COUNT, np.int64)
        for index, pattern in enumerate(patterns):
            bits |= _char_tables.members(pattern).astype(np.int64) << index
        present = np.bincount(bits) > 0
        kinds = np.flatnonzero(present)
        kind = lookup(g, stream, (np.cumsum(present) - 1)[bits], mark=len(kinds))
        kinds = np.append(kinds, 0)
        self.members: Mapping[str, Value] = {
            pattern: g.op("Gather", (kinds >> index) & 1 == 1, kind) for index, pattern in enumerate(patterns)
        }

    def ends(self, node: Node, rest: Value | None) -> Value:
        if isinstance(node, Class):
            return self._where(self.members[node.pattern], self._next(rest))
        if isinstance(node, Sequence):
            for item in reversed(node.items):
                rest = self.ends(item, rest)
            return self._known(rest)
        if isinstance(node, Choice):
            first, *others = [self.ends(branch, rest) for branch in node.branches]
            for other in others:
                first = self._or(first, other)
            return first
        if isinstance(node, Look):
            found = self.ends(node.item, None) >= 0
            return self._where(~found if node.negative else found, self._known(rest))
        return self._repeat(node, rest)

    def _repeat(self, node: Repeat, rest: Value | None) -> Value:
        if node.most is None:
            assert isinstance(node.item, Class)  # noqa: S101 - the parser sees to it
            return self._run(self.members[node.item.pattern], node.least, rest)
        ends = self._known(rest)
        for _ in range(node.most - node.least):
            # Each further one is asked for first; `rest` alone is what remains.
            ends = self._or(self.ends(node.item, ends), self._known(rest))
        for _ in range(node.least):
            ends = self.ends(node.item, ends)
        return ends

    def _run(self, member: Value, least: int, rest: Value | None) -> Value:
        """The longest run of members that the rest can follow."""
        g = self.g
        others = g.op("Squeeze", g.op("NonZero", ~member), np.array([0]))
        stop = g.op("Gather", others, g.op("CumSum", (~member).cast(), 0, exclusive=1))
        if rest is None:
            return self._where(stop >= self.place + least, stop)
        open_ = rest >= 0
        usable = g.op("Concat", np.array([-1]), g.op("Squeeze", g.op("NonZero", open_), np.array([0])), axis=0)
        last = g.op("Gather", usable, g.op("Gather", g.op("CumSum", open_.cast(), 0), stop))
        return self._where(last >= self.place + least, g.op("Gather", rest, g.op("Max", last, 0)))

    def _known(self, rest: Value | None) -> Value:
        return self.place if rest is None else rest

    def _next(self, rest: Value | None) -> Value:
        return self.place + 1 if rest is None else shift(self.g, rest, 1, -1)

    def _where(self, condition: Value, ends: Value) -> Value:
        return self.g.op("Where", condition, ends, -1)

    def _or(self, first: Value, second: Value) -> Value:
        return self.g.op("Where", first >= 0, first, second)


def _classes(node: Node) -> set[str]:
    if isinstance(node, Class):
        return {node.pattern}
    if isinstance(node, Repeat | Look):
        return _classes(node.item)
    return set().union(*map(_classes, node.branches if isinstance(node, Choice) else node.items))


def _choice(text: str, flags: str) -> tuple[Node, str]:
    branches = []
    while True:
        branch, text = _sequence(text, flags)
        branches.append(branch)
        if not text.startswith("|"):
            return branches[0] if len(branches) == 1 else Choice(tuple(branches)), text
        text = text[1:]


def _sequence(text: str, flags: str) -> tuple[Node, str]:
    items: list[Node] = []
    while text and text[0] not in "|)":
        item, text = _item(text, flags)
        items.append(item)
    return Sequence(tuple(items)), text


def _item(text: str, flags: str) -> tuple[Node, str]:
    item, text = _group(text, flags) if text.startswith("(") else _atom(text, flags)
    count = _COUNT.match(text)
    if not count:
        return item, text
    text = text[count.end() :]
    least, most = _bounds(count)
    if text[:1] in ("?", "+") or isinstance(item, Look) or (most is None and not isinstance(item, Class)):
        raise ValueError(f"'{count[0]}{text[:1]}' after what it follows")
    return Repeat(item, least, most), text


def _group(text: str, flags: str) -> tuple[Node, str]:
    opening = next((word for word in _GROUPS if text.startswith(word)), "(")
    kind = _GROUPS.get(opening, "")
    if opening == "(" and text.startswith("(?"):
        raise ValueError(f"'{text[:4]}'")
    inner, text = _choice(text[len(opening) :], "i" if kind == "i" else flags)
    if not text.startswith(")"):
        raise ValueError("a group that does not end")
    return (Look(inner, kind == "!") if kind in ("!", "=") and kind else inner), text[1:]


def _atom(text: str, flags: str) -> tuple[Node, str]:
    found = _ATOM.match(text)
    if not found:
        raise ValueError(f"'{text[:10]}'")
    return Class(f"(?i:{found[0]})" if flags else found[0]), text[found.end() :]


def _bounds(count: re.Match[str]) -> tuple[int, int | None]:
    simple: dict[str, tuple[int, int | None]] = {"?": (0, 1), "*": (0, None), "+": (1, None)}
    if count[0] in simple:
        return simple[count[0]]
    least = int(count[1])
    return least, least if not count[2] else int(count[3]) if count[3] else None
