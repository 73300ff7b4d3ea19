"""Plug-in discovery: a file's name is its plug-in's name; listing reads literals from its source, imports nothing."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.projects import Writer
    from toolkit.types import Family, Runtime, Scheme

__all__ = ["Group", "Listing", "family", "find", "layout", "listing", "nearest", "project", "runtime", "scheme"]

Group = Literal["model_zoo", "quantize.schemes", "runtimes", "toolkit.projects", "toolkit.layouts"]
_WORD: Mapping[str, str] = {
    "model_zoo": "model family",
    "quantize.schemes": "scheme",
    "runtimes": "runtime",
    "toolkit.projects": "language",
    "toolkit.layouts": "layout",
}


@dataclass(frozen=True, slots=True)
class Listing:
    """A plug-in as listing sees it: name, module, first line of its docstring, and its upper-case literals."""

    name: str
    module: str
    summary: str
    literals: Mapping[str, Any] = field(default_factory=dict)


@cache
def listing(group: Group) -> Mapping[str, Listing]:
    """All plug-ins of a group by name: our own files first, then other packages' entry points.

    An entry point is declared in the group `toolkit.<group>`, as `toolkit.runtimes`, with the plug-in's name; for
    `toolkit.projects` and `toolkit.layouts` the group is that name itself.
    """
    own = {entry.name: entry for entry in _own(group)}
    foreign = {entry.name: entry for entry in _foreign(group)}
    return dict(sorted({**foreign, **own}.items()))


def find(group: Group, name: str) -> Listing:
    """The plug-in of that name. Raises UsageError that names the nearest ones."""
    entries = listing(group)
    if name in entries:
        return entries[name]
    raise UsageError(
        f"unknown {_WORD[group]} '{name}'",
        hint=f"{nearest(name, entries)}Known: {', '.join(entries)}.",
    )


def family(name: str) -> Family:
    """Import the one file of that model family and answer its `FAMILY`."""
    return cast("Family", _load("model_zoo", name, "FAMILY"))


def scheme(name: str) -> Scheme:
    """Import the one file of that scheme and answer its `SCHEME`."""
    return cast("Scheme", _load("quantize.schemes", name, "SCHEME"))


def runtime(name: str) -> Runtime:
    """Import the one folder of that runtime and answer its `RUNTIME`."""
    return cast("Runtime", _load("runtimes", name, "RUNTIME"))


def project(name: str) -> Writer:
    """Import the one folder of that language and answer its `PROJECT`."""
    return cast("Writer", _load("toolkit.projects", name, "PROJECT"))


def layout(name: str) -> Writer:
    """Import the one file of that layout and answer its `LAYOUT`."""
    return cast("Writer", _load("toolkit.layouts", name, "LAYOUT"))


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean a, b? ` for the closest known names, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"Did you mean {', '.join(close)}? " if close else ""


def _load(group: Group, name: str, attribute: str) -> Any:
    entry = find(group, name)
    return getattr(importlib.import_module(entry.module), attribute)


def _own(group: Group) -> Iterable[Listing]:
    package = importlib.util.find_spec(group)
    for location in (package.submodule_search_locations or ()) if package else ():
        for path in sorted(Path(location).iterdir()):
            source = path / "__init__.py" if path.is_dir() else path
            if source.suffix == ".py" and source.is_file() and not path.stem.startswith("_"):
                yield _read(path.stem.replace("_", "-"), f"{group}.{path.stem}", source)


def _foreign(group: Group) -> Iterable[Listing]:
    for point in entry_points(group=f"toolkit.{group.removeprefix('toolkit.')}"):
        found = importlib.util.find_spec(point.module)
        if found and found.origin:
            yield _read(point.name, point.module, Path(found.origin))


def _read(name: str, module: str, source: Path) -> Listing:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    summary = (ast.get_docstring(tree) or "").partition("\n")[0]
    return Listing(name, module, summary, dict(_literals(tree)))


def _literals(tree: ast.Module) -> Iterable[tuple[str, Any]]:
    for node in tree.body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id.isupper() and value is not None:
            try:
                yield target.id, ast.literal_eval(value)
            except ValueError:
                continue
