"""What TensorRT itself says of an error: its calls answer no more than false, or nothing."""

from __future__ import annotations

from collections import deque
from typing import Any

__all__ = ["make_error_log"]

_KEPT = 8


def make_error_log(trt: Any) -> Any:
    """A `trt.ILogger` of the given module that keeps the last errors; its `take()` answers and forgets them."""

    class ErrorLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self._errors: deque[str] = deque(maxlen=_KEPT)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self._errors.append(message.strip())

        def take(self) -> str:
            said = "; ".join(dict.fromkeys(self._errors))
            self._errors.clear()
            return said or "TensorRT logged no reason"

    return ErrorLog()
