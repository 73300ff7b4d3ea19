"""A target is a runtime and a scheme, written `<runtime>-<scheme>`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from toolkit.errors import UnsupportedError, UsageError
from toolkit.plugins import find, listing, nearest

if TYPE_CHECKING:
    from toolkit.types import Kind

__all__ = ["Target", "all_targets", "parse_target", "schemes_for"]


@dataclass(frozen=True, slots=True)
class Target:
    """Where an engine is to run and in which precision, as `trt-int8`."""

    runtime: str
    scheme: str

    def __str__(self) -> str:
        return f"{self.runtime}-{self.scheme}"


def all_targets(kind: Kind | None = None) -> tuple[Target, ...]:
    """Every runtime with every scheme that it declares; with `kind` only those that take such models."""
    return tuple(
        Target(name, scheme)
        for name, entry in listing("runtimes").items()
        for scheme in (entry.literals.get("SCHEMES", ()) if kind is None else schemes_for(name, kind))
    )


def schemes_for(runtime: str, kind: Kind) -> tuple[str, ...]:
    """The schemes with which a runtime takes models of this kind.

    A runtime lists the kinds that it takes in `KINDS`, a scheme too, and a runtime that takes some scheme for some
    kinds only says so in `SCHEME_KINDS`; what lists none takes all.
    """
    literals, schemes = find("runtimes", runtime).literals, listing("quantize.schemes")
    if kind not in literals.get("KINDS", (kind,)):
        return ()
    limits = literals.get("SCHEME_KINDS", {})
    return tuple(
        scheme
        for scheme in literals.get("SCHEMES", ())
        if kind in limits.get(scheme, (kind,)) and kind in schemes[scheme].literals.get("KINDS", (kind,))
    )


def parse_target(text: str) -> Target:
    """`trt-rtx-fp16` is runtime `trt-rtx`, scheme `fp16`: the longest runtime name is tried first.

    Raises UsageError for a name that does not exist, UnsupportedError for a pair that the runtime does not take.
    """
    runtimes, schemes = listing("runtimes"), listing("quantize.schemes")
    for runtime in sorted(runtimes, key=len, reverse=True):
        scheme = text.removeprefix(f"{runtime}-")
        if scheme == text or scheme not in schemes:
            continue
        supported = runtimes[runtime].literals.get("SCHEMES", ())
        if scheme in supported:
            return Target(runtime, scheme)
        raise UnsupportedError(
            f"there is no {text}: runtime '{runtime}' does not take scheme '{scheme}'",
            hint=f"{runtime} takes: {', '.join(supported)}.",
        )
    known = [str(target) for target in all_targets()]
    raise UsageError(
        f"unknown target '{text}'",
        hint=f"{nearest(text, known)}A target is <runtime>-<scheme>: {', '.join(known)}.",
    )
