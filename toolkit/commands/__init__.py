"""The commands: one thin file each, exposing `command`; `toolkit --help` shows its docstring's first line."""

from __future__ import annotations

import click

__all__ = ["example", "json_option"]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of tables.")


def example(*lines: str) -> str:
    """An epilog that shows these command lines as they are, not rewrapped."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in lines)
