"""List what there is: models, targets, schemes or runtimes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from toolkit.commands import example, json_option

Rows = list[dict[str, Any]]


def _models() -> Rows:
    from toolkit.plugins import listing

    return [
        {"name": name, "source": source, "family": family, "family_summary": entry.summary}
        for family, entry in listing("model_zoo").items()
        for name, source in entry.literals.get("NAMES", {}).items()
    ]


def _families() -> Rows:
    from toolkit.plugins import listing

    return [
        {
            "name": name,
            "model_types": list(entry.literals.get("MODEL_TYPES", ())),
            "summary": entry.summary,
        }
        for name, entry in listing("model_zoo").items()
    ]


def _targets() -> Rows:
    from toolkit.plugins import listing
    from toolkit.target import all_targets

    schemes = listing("quantize.schemes")
    return [
        {
            "name": str(target),
            "runtime": target.runtime,
            "scheme": target.scheme,
            "summary": schemes[target.scheme].summary if target.scheme in schemes else "",
        }
        for target in all_targets()
    ]


def _schemes() -> Rows:
    from toolkit.plugins import listing
    from toolkit.target import all_targets

    return [
        {
            "name": name,
            "summary": entry.summary,
            "runtimes": [target.runtime for target in all_targets() if target.scheme == name],
        }
        for name, entry in listing("quantize.schemes").items()
    ]


def _runtimes() -> Rows:
    from toolkit.plugins import listing

    return [
        {
            "name": name,
            "summary": entry.summary,
            "schemes": list(entry.literals.get("SCHEMES", ())),
            "kinds": list(entry.literals.get("KINDS", ())),
        }
        for name, entry in listing("runtimes").items()
    ]


_LISTS: Mapping[str, Callable[[], Rows]] = {
    "models": _models,
    "families": _families,
    "targets": _targets,
    "schemes": _schemes,
    "runtimes": _runtimes,
}


@click.command(
    "list",
    epilog=example("toolkit list models", "toolkit list targets --json"),
)
@click.argument("what", type=click.Choice(list(_LISTS)))
@json_option
def command(what: str, as_json: bool) -> None:
    """List models, families, targets, schemes or runtimes.

    Reads their files without importing them; `toolkit doctor` tries what works on this machine.
    """
    from toolkit import console

    rows = _LISTS[what]()
    if as_json:
        console.emit_json(rows)
        return
    columns = [key for key in (rows[0] if rows else {}) if key != "family_summary"]
    console.print_table(([_cell(row[key]) for key in columns] for row in rows), *columns)
    if what == "models":
        console.results().print(
            "Any other Transformers encoder or vision model: its Hub id or folder. Your own: module:factory."
        )


def _cell(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value
