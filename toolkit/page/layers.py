"""Comparing a bundle with its reference module by module while the page is made, where that can be done here."""

from __future__ import annotations

from toolkit.compare.result import Comparison
from toolkit.page.sources import Subject

__all__ = ["compare_subject"]


def compare_subject(subject: Subject) -> Comparison | str:
    """The comparison, or why there is none."""
    del subject
    return "give what toolkit compare wrote with --compare FILE"
