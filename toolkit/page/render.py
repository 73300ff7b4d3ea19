"""Sources to one HTML page: no script, no network, and nothing of a file that is not escaped."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files

import jinja2
from markupsafe import Markup

from toolkit import __version__
from toolkit.page.blocks import Section
from toolkit.page.sections.attention import attention
from toolkit.page.sections.bundles import bundles
from toolkit.page.sections.drift import drift
from toolkit.page.sections.error import error
from toolkit.page.sections.graphs import graphs
from toolkit.page.sections.modules import modules
from toolkit.page.sections.provenance import provenance
from toolkit.page.sections.ranges import ranges
from toolkit.page.sections.steps import steps
from toolkit.page.sections.tuning import tuning
from toolkit.page.sources import Sources
from toolkit.page.verdict import headline, verdict

__all__ = ["render", "sections"]

_TEMPLATES = "templates"
_STYLE = "page.css"


def render(sources: Sources) -> str:
    """The whole page, the same for the same sources. Raises UsageError for a picture that is none."""
    style = _text(_STYLE).strip()
    verdicts = [verdict(subject) for subject in sources.subjects]
    return _environment().get_template("page.html.j2").render(
        # Written by us and hashed for the policy as it stands in the page.
        style=Markup(style),
        policy=_policy(style),
        title=headline(verdicts),
        verdicts=verdicts,
        sections=sections(sources),
        version=__version__,
    )  # fmt: skip


def sections(sources: Sources) -> list[Section]:
    """The page's sections in the order in which they are read."""
    made = (bundles, drift, modules, attention, error, ranges, graphs, steps, tuning, provenance)
    return [section(sources) for section in made]


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_text),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _text(name: str) -> str:
    return (files(__package__ or "toolkit.page") / _TEMPLATES / name).read_text(encoding="utf-8")


def _policy(style: str) -> str:
    """Only this very style sheet and pictures inside the page: what a browser would load else, it refuses."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
