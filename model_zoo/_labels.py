"""From what a data set calls its classes to the numbers that the model has for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_zoo._samples import Sample
from toolkit import plugins
from toolkit.errors import UsageError

__all__ = ["class_indices"]

_SHOWN = 8


def class_indices(samples: Sequence[Sample], names: Sequence[str]) -> NDArray[np.int64] | None:
    """The class of each sample, int64 [n], for a model with these class names; None where no sample has one.

    A class is a number, or a name: as the model spells it, or without regard to case, spaces, hyphens and underscores,
    or one of several that the model joins with commas, as ImageNet's do. A name in digits is a number where no class
    of the model is called by digits. Raises UsageError for a class that the model has not, for a name that two classes
    share, and where only some samples have one.
    """
    bare = [sample for sample in samples if sample.label is None]
    if len(bare) == len(samples):
        return None
    if bare:
        raise UsageError(
            f"{len(bare)} of {len(samples)} samples have no class, the first at {bare[0].where}",
            hint="Give all of them a class, or none.",
        )
    known = _Names(names)
    return np.array([known.index(sample) for sample in samples], np.int64)


class _Names:
    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._exact: dict[str, list[int]] = {}
        self._plain: dict[str, list[int]] = {}
        self._parts: dict[str, list[int]] = {}
        for index, name in enumerate(names):
            self._exact.setdefault(name, []).append(index)
            self._plain.setdefault(_plain(name), []).append(index)
            for part in name.split(","):
                self._parts.setdefault(_plain(part), []).append(index)
        self._numbered = not any(name.isdecimal() for name in names)

    def index(self, sample: Sample) -> int:
        label = sample.label
        if isinstance(label, str):
            found = self._exact.get(label) or self._plain.get(_plain(label)) or self._parts.get(_plain(label), [])
            if len(found) > 1:
                both = " and ".join(f"{index} ({self._names[index]})" for index in found)
                raise UsageError(f"{sample.where}: '{label}' may be class {both}", hint="Give the class's number.")
            if found:
                return found[0]
            label = int(label) if self._numbered and label.isdecimal() else None
        if label is None or not 0 <= label < len(self._names):
            raise UsageError(f"{sample.where}: the model has no class '{sample.label}'", hint=self._hint(sample.label))
        return label

    def _hint(self, label: object) -> str:
        more = f" and {len(self._names) - _SHOWN} more" if len(self._names) > _SHOWN else ""
        return (
            f"{plugins.nearest(str(label), self._names)}Its classes: {', '.join(self._names[:_SHOWN])}{more}. "
            "Without classes (images straight in the folder, texts without label) agreement is measured."
        )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " -_")
