"""Comparing a bundle with its reference module by module while the page is made, where that can be done here."""

from __future__ import annotations

from toolkit.compare.result import Comparison
from toolkit.errors import ToolkitError, UsageError
from toolkit.page.sources import Subject

__all__ = ["compare_subject"]


def compare_subject(subject: Subject, picture: str = "0") -> tuple[Comparison | None, str]:
    """What ships against the eager fp32 PyTorch model, by module and attention head; and why that was not done.

    `picture` is the input that attention is drawn for, as `toolkit compare --picture` takes it; one that this model
    does not take costs the pictures alone, and the reason is answered beside the comparison.

    A model that is Python code is not imported because a bundle names it: `toolkit compare` does that when asked to.
    """
    model, folder = subject.bundle.manifest.model, subject.bundle.folder
    if "module" in (model.kind, model.family):
        return None, (
            f"its model is Python code ({model.source}), which a page does not run. If you trust it: toolkit compare "
            f"reference {folder} --output FILE, and --compare FILE here"
        )
    try:
        return _compared(str(folder), picture)
    except ToolkitError as error:
        return None, str(error)
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed"


def _compared(folder: str, picture: str) -> tuple[Comparison, str]:
    from toolkit.compare.run import Asked, compare

    try:
        return compare("reference", folder, Asked(attention=True, picture=picture)), ""
    except UsageError as error:
        return compare("reference", folder, Asked(attention=True)), f"{error}. {error.hint}".rstrip()
