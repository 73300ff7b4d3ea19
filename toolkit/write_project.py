"""What `toolkit bundle` does: bundles verified, a program or a layout written around them, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit import plugins
from toolkit.atomic import publish
from toolkit.bundle.check import require_unchanged
from toolkit.bundle.read import open_bundle
from toolkit.errors import UsageError
from toolkit.hashing import file_sha256
from toolkit.projects import Writer

__all__ = ["write_project"]

_MARK = ".toolkit-project"
"""Lists what was written with its hashes: such a folder may be replaced as long as nobody changed anything in it."""


def write_project(bundles: Sequence[Path], language: str | None, layout: str | None, output: Path) -> str:
    """Write it to `output` and answer what to type next.

    Raises UsageError unless one of language and layout is given, and for a bundle that is not as it was written;
    UnsupportedError where such a program cannot run a bundle.
    """
    writer = _writer(language, layout)
    opened = [open_bundle(bundle) for bundle in bundles]
    for bundle in opened:
        writer.check(bundle)
        require_unchanged(bundle)
    with publish(output, replace=_untouched) as folder:
        said = writer.write(opened, folder)
        (folder / _MARK).write_text(_listed(folder), encoding="utf-8")
    return said


def _untouched(folder: Path) -> bool:
    mark = folder / _MARK
    return mark.is_file() and mark.read_text(encoding="utf-8") == _listed(folder)


def _listed(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _MARK)
    return "".join(f"{file_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in paths)


def _writer(language: str | None, layout: str | None) -> Writer:
    if (language is None) == (layout is None):
        languages, layouts = plugins.listing("toolkit.projects"), plugins.listing("toolkit.layouts")
        raise UsageError(
            "give one of --lang and --layout",
            hint=f"Languages: {', '.join(languages)}. Layouts: {', '.join(layouts)}.",
        )
    return plugins.project(language) if language is not None else plugins.layout(str(layout))
