"""Opening a bundle, and finding out whether it is still what was written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from toolkit.bundle.manifest import MANIFEST, FileEntry, Manifest, read_manifest, relative_path
from toolkit.bundle.testdata import EVALUATION, read_evaluation, read_golden
from toolkit.bundle.write import ASSETS, DRIFT
from toolkit.drift.report import DriftReport, read_report
from toolkit.errors import UsageError
from toolkit.hashing import file_sha256
from toolkit.types import Evaluation

__all__ = ["Bundle", "evaluation", "golden", "is_bundle", "open_bundle", "report", "verify_hashes"]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle's folder and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def assets(self) -> Path:
        """Where tokenizer and image-processor files are; absent if the model has none."""
        return self.folder / ASSETS

    def path(self, relative: str) -> Path:
        """The file's place on disk. Raises UsageError when it leaves the bundle, through a link too."""
        return _inside(self.folder, relative)


def is_bundle(folder: Path) -> bool:
    """Whether the folder holds a bundle of this schema and nothing else: what an export may replace."""
    try:
        return not _unlisted(open_bundle(folder))
    except UsageError:
        return False


def open_bundle(folder: Path) -> Bundle:
    """Read the manifest; no other file is opened yet, so nothing is verified but that all paths stay inside.

    Raises UsageError for a folder that is no bundle, a broken manifest, a newer schema, a path leading out.
    """
    if not (folder / MANIFEST).is_file():
        what = f"has no {MANIFEST}" if folder.is_dir() else "is not a folder"
        raise UsageError(f"{folder} is not a bundle: it {what}", hint="Give the folder that toolkit export wrote.")
    manifest = read_manifest(folder / MANIFEST)
    for relative in manifest.files:
        _inside(folder, relative)
    return Bundle(folder, manifest)


def verify_hashes(bundle: Bundle) -> list[str]:
    """A sentence for each file that changed, is missing or was added; empty when all is as it was written."""
    reasons = {name: _differs(bundle.path(name), entry) for name, entry in bundle.manifest.files.items()}
    sentences = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    return sentences + [f"{name}: not listed in the manifest" for name in _unlisted(bundle)]


def golden(bundle: Bundle) -> tuple[list[dict[str, NDArray[Any]]], list[dict[str, NDArray[Any]]]]:
    """Golden inputs and the reference's outputs. Raises UsageError when there are none or one is broken."""
    inputs, outputs = read_golden(bundle.folder)
    if not inputs:
        raise UsageError(f"{bundle.folder} holds no golden inputs, so there is nothing to check it on")
    return inputs, outputs


def evaluation(bundle: Bundle) -> tuple[Evaluation, list[dict[str, NDArray[Any]]]] | None:
    """Held-out inputs and the reference's outputs on them; None where the bundle has no task metric."""
    if bundle.manifest.evaluation is None:
        return None
    return read_evaluation(bundle.path(EVALUATION))


def report(bundle: Bundle) -> DriftReport:
    """The drift that was measured when the bundle was written."""
    return read_report(bundle.path(DRIFT))


def _inside(folder: Path, relative: str) -> Path:
    try:
        path = folder / relative_path(relative)
        path.resolve().relative_to(folder.resolve())
    except (ValueError, OSError) as error:
        raise UsageError(
            f"'{relative}' leaves the bundle {folder}", hint="Do not use this bundle; it may be forged."
        ) from error
    return path


def _unlisted(bundle: Bundle) -> list[str]:
    present = {path.relative_to(bundle.folder).as_posix() for path in _walk(bundle.folder)}
    return sorted(present - set(bundle.manifest.files) - {MANIFEST})


def _walk(folder: Path) -> Iterator[Path]:
    # Links to folders are reported as they are, never entered.
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in files)
        yield from (Path(root, name) for name in folders if Path(root, name).is_symlink())


def _differs(path: Path, entry: FileEntry) -> str:
    if not path.exists():
        return "missing"
    if not path.is_file():
        return "not a regular file"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"changed, {size} bytes where the manifest has {entry.bytes}"
    return "" if file_sha256(path) == entry.sha256 else "changed, another SHA-256 than the manifest's"
