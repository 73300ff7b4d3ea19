"""What a page is drawn from: whole bundles, what was measured again on them, comparisons and searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from toolkit.bundle.check import require_unchanged
from toolkit.bundle.manifest import MANIFEST
from toolkit.bundle.read import Bundle, open_bundle, report
from toolkit.compare.result import Comparison
from toolkit.drift.report import DriftReport
from toolkit.errors import UsageError
from toolkit.inspection import Inspection, inspect_graph
from toolkit.page.rerun import Rerun, rerun
from toolkit.tune.result import TuneResult, read_tuning

__all__ = ["Sources", "Subject", "is_of", "open_subjects", "open_tuning"]

_TUNING = "tune.json"


@dataclass(frozen=True, slots=True)
class Subject:
    """A bundle as the page shows it: `label` is unique in the page, `drift` what it was written with."""

    label: str
    bundle: Bundle
    drift: DriftReport
    graph: Inspection
    rerun: Rerun

    @property
    def target(self) -> str:
        """Runtime and scheme, as `trt-int8`."""
        target = self.bundle.manifest.target
        return f"{target.runtime}-{target.scheme}"

    @property
    def passed(self) -> bool:
        """Whether every gate holds, in the drift report and now."""
        here = self.rerun.drift
        return self.drift.passed and (here is None or here.passed)


@dataclass(frozen=True, slots=True)
class Sources:
    """Everything that the page shows.

    `unmeasured` says of which bundle modules were not compared, `undrawn` of which no attention was drawn, and why.
    """

    subjects: tuple[Subject, ...]
    comparisons: tuple[Comparison, ...] = ()
    tunings: tuple[TuneResult, ...] = ()
    unmeasured: tuple[tuple[str, str], ...] = ()
    undrawn: tuple[tuple[str, str], ...] = ()

    def title(self, comparison: Comparison) -> str:
        """Both sides, without the folders that they lie in where that leaves no doubt."""
        short = _short(comparison)
        alike = {(each.reference, each.candidate) for each in self.comparisons if _short(each) == short}
        return short if len(alike) < 2 else f"{comparison.candidate} against {comparison.reference}"


def is_of(subject: Subject, comparison: Comparison) -> bool:
    """Whether the candidate is this bundle: its very folder where that is here, else one of that name elsewhere."""
    folder = subject.bundle.folder.resolve()
    here = _bundle_here(comparison.candidate)
    return here == folder if here else _last(comparison.candidate) == folder.name


def open_subjects(folders: Sequence[Path]) -> tuple[Subject, ...]:
    """Each bundle once, its hashes verified before anything of it runs.

    Raises UsageError for what is no whole bundle, as `toolkit check` does, and for a bundle that is given twice.
    """
    places = [folder.resolve() for folder in folders]
    twice = [str(folder) for folder, place in zip(folders, places, strict=True) if places.count(place) > 1]
    if twice:
        raise UsageError(f"{twice[0]} is given twice", hint="Give each bundle once.")
    bundles = [open_bundle(folder) for folder in folders]
    for bundle in bundles:
        require_unchanged(bundle)
    return tuple(map(_subject, bundles, _labels(folders)))


def open_tuning(path: Path) -> TuneResult:
    """A search's result, by its file or its folder. Raises UsageError where there is none."""
    return read_tuning(path / _TUNING if path.is_dir() else path)


def _short(comparison: Comparison) -> str:
    return f"{_last(comparison.candidate)} against {_last(comparison.reference)}"


def _bundle_here(path: str) -> Path | None:
    try:
        return Path(path).resolve() if (Path(path) / MANIFEST).is_file() else None
    except (OSError, ValueError):
        # It comes from a file, which may say anything.
        return None


def _last(path: str) -> str:
    return Path(path).name or Path(path).absolute().name or path


def _subject(bundle: Bundle, label: str) -> Subject:
    graph = inspect_graph(bundle.path(bundle.manifest.graph))
    return Subject(label, bundle, report(bundle), graph, rerun(bundle))


def _labels(folders: Sequence[Path]) -> list[str]:
    names = [folder.resolve().name for folder in folders]
    counts = Counter(names)
    return [name if counts[name] == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
