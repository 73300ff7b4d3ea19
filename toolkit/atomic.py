"""Publishing a folder or a file: it appears whole or not at all, and a folder has one writer at a time."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from toolkit import disk
from toolkit.errors import UsageError

__all__ = ["publish", "scratch", "write_whole"]

Replace = Callable[[Path], bool] | bool


@contextmanager
def publish(target: Path, *, replace: Replace = False) -> Iterator[Path]:
    """Yield an empty hidden folder beside `target`; when the block ends well, it becomes `target`.

    `replace` says whether what stands at `target` may go: it is swapped out by rename and then removed. An
    empty folder may always go. Every file is on disk before the rename. On any exception, Ctrl-C included,
    the hidden folder is removed and `target` stays as it was. Leftovers of killed writers are cleared first.
    Raises UsageError when something else stands at `target`, when another writer holds it, when the place
    cannot be written to, and when the disk is full.
    """
    target = Path(os.path.realpath(target))
    if not target.name:
        raise UsageError(f"cannot write a bundle to {target}", hint="Choose a folder: --output out/my-bundle.")
    with _parents(target.parent), _locked(target):
        with _placing(target.parent):
            _recover(target)
            _refuse_foreign(target, replace)
        work = _hidden(target, "tmp")
        try:
            with _placing(target.parent):
                work.mkdir()
            yield work
            _sync(work)
            _refuse_foreign(target, replace)
            _put(work, target)
        except Exception as error:
            if disk.is_full(error):
                raise _disk_full(target) from error
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def scratch(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside `target`, for who holds `target` through `publish`; gone when the block ends.

    Where the writer is killed, the next `publish` of `target` clears it.
    """
    work = _hidden(Path(os.path.realpath(target)), "tmp")
    try:
        work.mkdir()
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_whole(path: Path, text: str, *, hint: str = "Give another file.") -> None:
    """Write a UTF-8 file that is all there or as it was before, and the folders that lead to it.

    Raises UsageError with that hint where it cannot be written.
    """
    if not path.name:
        raise UsageError(f"cannot write {path}: that is a folder", hint="Give another file.")
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        _sync_one(partial)
        partial.replace(path)
        _sync_one(path.parent)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error
    finally:
        with suppress(OSError):
            partial.unlink()


@contextmanager
def _parents(parent: Path) -> Iterator[None]:
    """Make the parent folders; take those we made away again when the block fails and left them empty."""
    with _placing(parent):
        missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        with _placing(parent):
            parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):
                folder.rmdir()
        raise


@contextmanager
def _placing(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"cannot write in {parent}: {reason}", hint="Choose another --output.") from error


@contextmanager
def _locked(target: Path) -> Iterator[None]:
    path = target.with_name(f".{target.name}.lock")
    with _placing(target.parent):
        handle = _acquire(path, target)
    try:
        yield
    finally:
        # Removed while still held: a waiting writer then finds that its file is not the one on disk.
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _acquire(path: Path, target: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise UsageError(
                f"another export is writing {target}", hint="Wait for it to end, or choose another --output."
            ) from error
        except BaseException:
            os.close(handle)
            raise
        if _is_on_disk(handle, path):
            return handle
        os.close(handle)


def _is_on_disk(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _hidden(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.{suffix}")


def _recover(target: Path) -> None:
    """Clear what a killed writer left: we hold the lock, so nobody alive owns it.

    A writer killed between the two renames of a swap left no target; then the old one goes back.
    """
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.(tmp|old)")
    found = [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]
    old = [path for path in found if path.suffix == ".old"]
    if old and not os.path.lexists(target):
        old[0].rename(target)
    for path in found:
        shutil.rmtree(path, ignore_errors=True)


def _refuse_foreign(target: Path, replace: Replace) -> None:
    if not os.path.lexists(target):
        return
    if target.is_dir():
        if not any(target.iterdir()) or (replace(target) if callable(replace) else replace):
            return
        what = "holds something that is not to be replaced"
    else:
        what = "is not a folder"
    raise UsageError(f"{target} exists and {what}", hint="Choose another --output, or move it out of the way yourself.")


def _put(work: Path, target: Path) -> None:
    if not target.exists():
        work.rename(target)
        _sync_one(target.parent)
        return
    old = _hidden(target, "old")
    try:
        target.rename(old)
        work.rename(target)
        _sync_one(target.parent)
    finally:
        if not target.exists():
            old.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _sync_one(Path(root, name))
        _sync_one(Path(root))


def _sync_one(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _disk_full(target: Path) -> UsageError:
    free = shutil.disk_usage(target.parent).free
    return UsageError(
        f"disk full: {target} could not be written",
        hint=f"There are {_size(free)} free in {target.parent} now; an export needs several times its model's size. "
        "Free up space, or choose --output on another disk.",
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
