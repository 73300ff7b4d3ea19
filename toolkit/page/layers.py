"""Comparing a bundle with its reference module by module while the page is made, where that can be done here."""

from __future__ import annotations

from toolkit.compare.result import Comparison
from toolkit.errors import ToolkitError
from toolkit.page.sources import Subject

__all__ = ["compare_subject"]


def compare_subject(subject: Subject, picture: str = "0") -> Comparison | str:
    """What ships against the eager fp32 PyTorch model, by module and attention head; or why that was not done.

    `picture` is the input that attention is drawn for, as `toolkit compare --picture` takes it.

    A model that is Python code is not imported because a bundle names it: `toolkit compare` does that when asked to.
    """
    model, folder = subject.bundle.manifest.model, subject.bundle.folder
    if "module" in (model.kind, model.family):
        return (
            f"its model is Python code ({model.source}), which a page does not run. If you trust it: toolkit compare "
            f"reference {folder} --output FILE, and --compare FILE here"
        )
    try:
        from toolkit.compare.run import Asked, compare

        return compare("reference", str(folder), Asked(attention=True, picture=picture))
    except ToolkitError as error:
        return str(error)
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed"
