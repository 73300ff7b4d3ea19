"""A Swift package for iOS that opens the bundles and tests them on the device."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from toolkit.bundle.read import Bundle
from toolkit.projects._phone import check_phone, place_shipped
from toolkit.projects._writing import copy_sources, copy_whole, named

__all__ = ["PROJECT", "Swift"]

_TEMPLATES = Path(__file__).parent / "templates"


class Swift:
    """The language `swift`: a package whose library holds the bundles as resources."""

    def check(self, bundle: Bundle) -> None:
        """Raise UnsupportedError for a bundle that ONNX Runtime does not open on a phone."""
        check_phone(bundle)

    def write(self, bundles: Sequence[Bundle], folder: Path) -> str:
        """Fill the folder; answers how its self-test is run. Raises UsageError for two bundles of one name."""
        copy_sources(_TEMPLATES, folder)
        for name, bundle in named(bundles).items():
            place_shipped(bundle, folder / "Sources/ExportedBundle/bundles" / name)
            copy_whole(bundle, folder / "Tests/ExportedBundleTests/bundles" / name)
        return (
            "self-test, on a Mac: xcodebuild test -scheme ExportedBundle -destination 'platform=iOS,name=YOUR DEVICE'"
        )


PROJECT = Swift()
