"""Pictures out of a file from a stranger: only a whole, small PNG becomes part of the page."""

from __future__ import annotations

import base64
import binascii
from io import BytesIO

from toolkit.errors import UsageError

__all__ = ["png_address"]

_PREFIX = "data:image/png;base64,"
_MOST_BYTES = 4 << 20
_MOST_PIXELS = 1 << 22


def png_address(encoded: str, what: str) -> str:
    """The picture as a `data:` address, encoded anew. Raises UsageError where it is not a PNG or is too large."""
    from PIL import Image

    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(what, "is not base64") from error
    if len(content) > _MOST_BYTES:
        raise _refused(what, f"has {len(content)} bytes")
    try:
        with Image.open(BytesIO(content), formats=["PNG"]) as picture:
            width, height = picture.size
            if width * height > _MOST_PIXELS:
                raise _refused(what, f"has {width} x {height} pixels")
            # Checks each chunk's CRC.
            picture.verify()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _refused(what, f"is not a whole PNG ({error})") from error
    return _PREFIX + base64.b64encode(content).decode("ascii")


def _refused(what: str, reason: str) -> UsageError:
    return UsageError(f"the picture {what} {reason}", hint="Write the comparison anew with toolkit compare.")
