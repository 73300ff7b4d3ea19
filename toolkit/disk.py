"""Telling a full disk from every other failure, whichever library met it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

__all__ = ["chain", "is_full"]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Libraries in C++ or Rust report a full disk as text only; numpy reports a write that fell short, and no cause.
_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|File too large"
    r"|\d+ requested and \d+ written|problem writing element \d+ to file"
)


def is_full(error: BaseException | None) -> bool:
    """Whether the error, or one that it came from, is about a full disk, a quota, or a limit on a file's size."""
    return any((isinstance(link, OSError) and link.errno in _FULL) or _WORDS.search(str(link)) for link in chain(error))


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, then what each came from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
