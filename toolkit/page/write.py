"""Writing the page: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from toolkit.errors import UsageError

__all__ = ["write_page"]


def write_page(page: str, path: Path) -> None:
    """Write beside the final name, then move it there. Raises UsageError where that cannot be done."""
    place = path.absolute()
    if place.is_dir() or not place.parent.is_dir():
        raise UsageError(f"cannot write {path}", hint="Give a file name in an existing folder: --output report.html.")
    try:
        with NamedTemporaryFile(dir=place.parent, prefix=f".{place.name}.", suffix=".tmp", delete=False) as file:
            part = Path(file.name)
            try:
                file.write(page.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
                part.chmod(0o644)
                part.replace(place)
            finally:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", hint="Choose another --output.") from error
