"""Say what is installed and what each runtime can do on this machine, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import example, json_option

if TYPE_CHECKING:
    from toolkit.machine import Library


@click.command("doctor", epilog=example("toolkit doctor", "toolkit doctor --json"))
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Say what is installed and what each runtime can do here, and why not.

    Each runtime is tried, not guessed from version numbers. Nothing is fetched. Exit code 3 if a library that
    the toolkit needs is missing, else 0.
    """
    from toolkit import console, machine

    found: dict[str, Any] = {
        "machine": machine.machine(Path.cwd()),
        "libraries": machine.libraries(),
        "runtimes": machine.runtimes(),
        "conflicts": machine.conflicts(),
    }
    if as_json:
        console.emit_json(found)
    else:
        _print(found)
    missing = [library.name for library in found["libraries"] if library.required and not library.version]
    if missing:
        click.echo(f"error: missing: {', '.join(missing)}\nhint: pip install {' '.join(missing)}", err=True)
        context.exit(3)


def _print(found: dict[str, Any]) -> None:
    from toolkit import console

    console.print_table(_machine_rows(found["machine"]), "machine", "")
    console.print_table(map(_library_row, found["libraries"]), "library", "version", "")
    console.print_table(map(_runtime_row, found["runtimes"]), "runtime", "builds", "runs", "version", "device")
    for entry in found["runtimes"]:
        if why := entry["error"] or entry["reason"]:
            click.echo(f"{entry['name']}: {why}")
    for conflict in found["conflicts"]:
        console.results().print(f"conflict: {conflict}")


def _machine_rows(machine: dict[str, Any]) -> list[tuple[str, object]]:
    from toolkit.console import byte_size

    return [
        ("Python", f"{machine['python']} ({machine['executable']})"),
        ("system", machine["os"]),
        ("processor", machine["cpu"]),
        ("instructions", ", ".join(machine["cpu_features"]) or "unknown"),
        ("cores", f"{machine['cores']} physical, {machine['usable_cpus']} usable threads"),
        ("memory", f"{byte_size(machine['memory_available'])} free of {byte_size(machine['memory'])}"),
        ("disk", f"{byte_size(machine['disk_free'])} free here"),
    ]


def _library_row(library: Library) -> tuple[str, str, str]:
    state = "" if library.version else ("MISSING" if library.required else "optional")
    return library.name, library.version or "-", state


def _runtime_row(entry: dict[str, Any]) -> tuple[str, ...]:
    yes = {True: "yes", False: "no"}
    return entry["name"], yes[entry["build"]], yes[entry["run"]], entry["version"], entry["device"]
