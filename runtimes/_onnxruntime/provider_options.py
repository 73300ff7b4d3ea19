"""Options of an execution provider as a typed dataclass, read from and written as ONNX Runtime's own names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, fields, replace
from functools import cache
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from toolkit.errors import UsageError
from toolkit.plugins import nearest

__all__ = ["ProviderOptions", "named", "shared_out", "within"]

_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def within(default: int | None, low: int, high: int | None = None) -> Any:
    """A dataclass field for a number from `low` to `high`, both included; None for `high` is no bound."""
    return field(default=default, metadata={"low": low, "high": high})


class ProviderOptions:
    """Base of frozen dataclasses whose fields are one provider's options: bool, int, str or Literal, or one of those
    and None, which leaves the choice to ONNX Runtime.

    ONNX Runtime 1.31 raises for a name it does not know but reads `1e9` as 1 and takes any number for some options,
    so everything is checked here.
    """

    PROVIDER: ClassVar[str]
    REFUSED: ClassVar[Mapping[str, str]] = {}
    """Options that ONNX Runtime has and we do not offer, each with the reason."""
    BOOLEANS: ClassVar[tuple[str, str]] = ("0", "1")
    """How the provider reads no and yes."""

    @classmethod
    def from_mapping(cls, given: Mapping[str, object]) -> Self:
        """Options by name, each as text or as a value of its type; what is missing has its default.

        Raises UsageError for a name that is no option or a value that is not allowed, naming what is.
        """
        return cls().changed(given)

    def changed(self, given: Mapping[str, object]) -> Self:
        """These options with those that are given in the place of their own; raises as `from_mapping`."""
        return replace(self, **{name: self._read(name, value) for name, value in given.items()})  # type: ignore[type-var]

    def as_strings(self) -> dict[str, str]:
        """What ONNX Runtime takes: every value as text, booleans as the provider reads them, without what is None."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}  # type: ignore[arg-type]
        return {
            name: self.BOOLEANS[value] if isinstance(value, bool) else str(value)
            for name, value in values.items()
            if value is not None
        }

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options that are offered."""
        return tuple(each.name for each in fields(cls))  # type: ignore[arg-type]

    @classmethod
    def _read(cls, name: str, value: object) -> object:
        if name in cls.REFUSED:
            raise UsageError(f"{name} is not offered for {cls.PROVIDER}", hint=cls.REFUSED[name])
        if name not in cls.names():
            raise _unknown(name, cls)
        bounds = next(each.metadata for each in fields(cls) if each.name == name)  # type: ignore[arg-type]
        kind, optional = _kind(cls, name)
        if value is None and optional:
            return None
        read = _parsed(kind, value)
        low, high = bounds.get("low"), bounds.get("high")
        if read is None or (
            isinstance(read, int) and not (low is None or low <= read <= (read if high is None else high))
        ):
            raise UsageError(f"'{value}' is no {name}", hint=f"Allowed: {_allowed(kind, low, high)}.")
        return read


@contextmanager
def named(runtime: str) -> Iterator[None]:
    """Put the runtime's name before what is wrong with an option: one may be given for several runtimes."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{runtime}: {error}", hint=error.hint) from error


def shared_out(given: Mapping[str, str], *kinds: type[ProviderOptions]) -> tuple[dict[str, str], ...]:
    """What is given for each of the kinds: an option goes to the first that offers it, or else that refuses it.

    Raises UsageError for a name that none of them has.
    """
    parts: tuple[dict[str, str], ...] = tuple({} for _ in kinds)
    for name, value in given.items():
        takers = [part for part, kind in zip(parts, kinds, strict=True) if name in kind.names()]
        takers += [part for part, kind in zip(parts, kinds, strict=True) if name in kind.REFUSED]
        if not takers:
            raise _unknown(name, *kinds)
        takers[0][name] = value
    return parts


def _unknown(name: str, *kinds: type[ProviderOptions]) -> UsageError:
    known = tuple(dict.fromkeys(option for kind in kinds for option in kind.names()))
    have = "has" if len(kinds) == 1 else "have"
    who = " and ".join(kind.PROVIDER for kind in kinds)
    return UsageError(f"{who} {have} no option '{name}'", hint=f"{nearest(name, known)}Allowed: {', '.join(known)}.")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _kind(cls: type, name: str) -> tuple[Any, bool]:
    """The type of an option, and whether None is allowed beside it."""
    hint = _hints(cls)[name]
    given = get_args(hint)
    if type(None) not in given:
        return hint, False
    return next(each for each in given if each is not type(None)), True


def _parsed(kind: Any, value: object) -> object:
    """The value as its type, None where it is none."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    if kind is bool:
        return value if isinstance(value, bool) else _BOOLEANS.get(str(value).lower())
    if kind is int:
        text = str(value)
        return int(text) if not isinstance(value, bool) and text.removeprefix("-").isdecimal() else None
    return value if isinstance(value, str) and value else None


def _allowed(kind: Any, low: int | None, high: int | None) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(map(str, get_args(kind)))
    if kind is bool:
        return "0, 1"
    if kind is int:
        return f"{low} to {high}" if high is not None else f"a whole number from {low}"
    return "a text that is not empty"
