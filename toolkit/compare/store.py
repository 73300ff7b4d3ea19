"""Tensors of one side on disk, so that the other side need not be in memory with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.compare.keys import Key

__all__ = ["Store"]


class Store:
    """Arrays by batch and key, each in a file of its own in a folder that is the caller's to remove.

    `size` counts the bytes that were put there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._files: dict[tuple[int, Key], Path] = {}
        self._largest: dict[Key, int] = {}
        self.size = 0

    def put(self, batch: int, key: Key, array: NDArray[Any]) -> None:
        """Write the array; a second one of the same batch and key takes its place."""
        path = self._files.setdefault((batch, key), self._folder / f"{len(self._files)}.npy")
        np.save(path, array, allow_pickle=False)
        self._largest[key] = max(array.nbytes, self._largest.get(key, 0))
        self.size += array.nbytes

    def get(self, batch: int, key: Key) -> NDArray[Any] | None:
        """Read the array, or None where there is none."""
        path = self._files.get((batch, key))
        if path is None:
            return None
        array: NDArray[Any] = np.load(path, allow_pickle=False)
        return array

    def has(self, key: Key) -> bool:
        """Whether the first batch has that key."""
        return (0, key) in self._files

    def largest(self, key: Key) -> int:
        """The bytes of the key's largest array."""
        return self._largest.get(key, 0)

    def drop(self, key: Key) -> None:
        """Forget what all batches have of a key."""
        for place in [place for place in self._files if place[1] == key]:
            self._files.pop(place).unlink()
