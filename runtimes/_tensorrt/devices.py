"""Which NVIDIA devices the driver shows, asked of the driver itself: no CUDA library is needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

__all__ = ["Device", "devices", "driver_version"]

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR = 75, 76
_NAME_BYTES = 256


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU: its name and its architecture, as `sm89`."""

    name: str
    architecture: str


def devices() -> tuple[tuple[Device, ...], str]:
    """All devices in the driver's order; where there is none, the reason."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return (), f"no NVIDIA driver is installed ({_DRIVER} does not load)"
    code = driver.cuInit(0)
    if code:
        return (), f"the NVIDIA driver does not start (cuInit answered {code})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    found = tuple(_device(driver, index) for index in range(count.value))
    return found, "" if found else "the NVIDIA driver shows no device"


def driver_version() -> str:
    """The newest CUDA that the driver knows, as `13.0`; empty where no driver is installed."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return ""
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _device(driver: ctypes.CDLL, index: int) -> Device:
    handle, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, _NAME_BYTES, handle)
    major, minor = (_attribute(driver, handle, which) for which in (_MAJOR, _MINOR))
    return Device(name.value.decode(errors="replace"), f"sm{major}{minor}")


def _attribute(driver: ctypes.CDLL, handle: ctypes.c_int, which: int) -> int:
    value = ctypes.c_int()
    driver.cuDeviceGetAttribute(ctypes.byref(value), which, handle)
    return value.value
