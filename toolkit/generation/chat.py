"""Chat templates: a model's own Jinja text that lays out messages, run in Jinja's sandbox.

A template comes with the model and is somebody else's code: it sees plain strings only and can change nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NoReturn

from toolkit.errors import MissingDependencyError, UsageError

__all__ = ["render_chat"]

_RAW = "Give --raw to send the prompt as it is."


def render_chat(template: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> str:
    """The messages (`role`, `content`) as the model was taught to read them, up to where its answer begins.

    The template sees what Transformers gives it: `messages`, `add_generation_prompt`, `tools`, `documents`, the
    special tokens by name, `raise_exception`, `strftime_now`. Raises UsageError where it refuses or is broken.
    """
    environment = _environment()
    from jinja2.exceptions import TemplateError

    try:
        rendered: str = environment.from_string(template).render(
            **{"bos_token": "", "eos_token": "", **special},
            messages=[dict(message) for message in messages],
            add_generation_prompt=True,
            tools=None,
            documents=None,
        )
    except (
        TemplateError,
        TypeError,
        ValueError,
        LookupError,
        ArithmeticError,
        RecursionError,
        AttributeError,
    ) as error:
        raise UsageError(f"the chat template refused the messages: {error}", hint=_RAW) from error
    return rendered


@cache
def _environment() -> Any:
    try:
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ModuleNotFoundError as error:
        raise MissingDependencyError("a chat template needs jinja2", hint=f"pip install jinja2. {_RAW}") from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _generation_tag()]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    return environment


def _generation_tag() -> Any:
    """`{% generation %}` marks the answers for training; here its text is kept as it is."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class GenerationTag(Extension):
        """The tag pair `generation` and `endgeneration`."""

        tags = {"generation"}  # noqa: RUF012 - the base class has it so

        def parse(self, parser: Any) -> Any:
            """A block that renders what stands between the tags."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return GenerationTag


def _refuse(message: str) -> NoReturn:
    from jinja2.exceptions import TemplateError

    raise TemplateError(message)


def _now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **settings: Any) -> str:
    # Jinja's own filter escapes HTML, which no model was taught on.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **settings)
