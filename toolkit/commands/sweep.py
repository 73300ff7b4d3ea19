"""Export many models to many targets by many recipes, each in a process of its own, here or on a Ray cluster."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.cli import INTERRUPTED
from toolkit.commands import example, json_option
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from toolkit.sweep.driver import Execute
    from toolkit.sweep.row import Row
    from toolkit.sweep.run import Run, Settings

_EPILOG = (
    example(
        "toolkit sweep sweep.yaml --output sweeps/first --dry-run",
        "toolkit sweep sweep.yaml --output sweeps/first --timeout 600",
        "toolkit sweep vit.yaml minilm.yaml --output sweeps/nightly --ray auto --ray-cpus 4",
    )
    + "\n\nExit codes: 5 where a run failed or ran out of time, else 6 where one drifted too far, else 0; "
    "4 where every run is refused, 130 where the sweep was interrupted."
)


@click.command(epilog=_EPILOG)
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--output",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for rows, logs and bundles; one that holds rows is gone on with.",
)
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time; default: one for every two cores.")
@click.option("--ray", "address", metavar="auto|HOST:PORT", help="Run on that Ray cluster instead.")
@click.option("--ray-cpus", "cpus", type=click.IntRange(min=1), help="CPUs that Ray keeps free for a run; default 2.")
@click.option("--timeout", "seconds", type=click.FloatRange(min=1), help="Seconds that one run may take.")
@click.option("--memory", type=click.IntRange(min=1), help="MiB that one run may take.")
@click.option(
    "--retry-failed/--no-retry-failed",
    "retry",
    default=True,
    show_default=True,
    help="Whether runs that failed before run again.",
)
@click.option("--dry-run", is_flag=True, help="List the runs and what is to come of each, and stop.")
@click.option("--offline", is_flag=True, help="Never ask the Hub.")
@click.option("--trust-remote-code", is_flag=True, help="Let models run code of their own repositories.")
@json_option
def command(
    files: tuple[Path, ...], retry: bool, dry_run: bool, as_json: bool, output: Path, memory: int | None, **options: Any
) -> None:
    """Export many models to many targets by many recipes, each in a process of its own, here or on a Ray cluster.

    A FILE is a sweep or a recipe. Each run leaves a row, a log and its bundle under --output; the same command
    skips what passed, drifted or is refused, and does the rest. An export uses all cores that it is given.
    """
    from toolkit.sweep.expand import runs_of
    from toolkit.sweep.run import Settings

    execute = _executor(options.pop("address"), options.pop("cpus"), options.pop("jobs"))
    runs = runs_of(files)
    settings = Settings(output=output.absolute(), memory=memory and memory << 20, **options)
    if dry_run:
        _list(runs, settings, retry, as_json)
        return
    rows = _run(runs, settings, execute, retry)
    _finish(rows, output, as_json)


def _executor(address: str | None, cpus: int | None, jobs: int | None) -> Execute:
    from toolkit.sweep.cluster import ray_executor
    from toolkit.sweep.local import default_jobs, run_here

    if address is None:
        if cpus:
            raise UsageError("--ray-cpus is for --ray", hint="Give --ray auto too, or --jobs instead.")
        return partial(run_here, count=jobs or default_jobs())
    if jobs:
        raise UsageError(
            "--jobs is for this machine", hint="With --ray, Ray decides; --ray-cpus says what a run needs."
        )
    return ray_executor(address, cpus or 2)


def _list(runs: Sequence[Run], settings: Settings, retry: bool, as_json: bool) -> None:
    from toolkit import console
    from toolkit.sweep.driver import outlook
    from toolkit.sweep.row import read_rows
    from toolkit.sweep.table import OUTLOOK, outlook_cells

    cells = outlook_cells(outlook(runs, settings, read_rows(settings.output), retry=retry))
    if as_json:
        console.emit_json({"runs": [dict(zip(OUTLOOK, line, strict=True)) for line in cells]})
    else:
        console.print_table(cells, *OUTLOOK)


def _run(runs: Sequence[Run], settings: Settings, execute: Execute, retry: bool) -> tuple[Row, ...]:
    from toolkit.sweep.driver import sweep

    try:
        return sweep(runs, settings, execute, _teller(), retry=retry)
    except KeyboardInterrupt:
        click.echo("\ninterrupted; what was finished is kept, and the same command does the rest", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


def _teller() -> Callable[[Row], None]:
    from toolkit import console
    from toolkit.sweep.table import sentence

    out = console.progress()
    return lambda row: out.print(sentence(row), soft_wrap=True)


def _finish(rows: Sequence[Row], output: Path, as_json: bool) -> None:
    from toolkit import console
    from toolkit.sweep.row import ROWS, TABLE
    from toolkit.sweep.table import COLUMNS, cells, counts, raise_if_not_all_passed

    if as_json:
        files = {"rows_file": output / ROWS, "table_file": output / TABLE}
        console.emit_json({"counts": counts(rows), **files, "rows": [row.model_dump(mode="json") for row in rows]})
    else:
        console.print_table(cells(rows), *COLUMNS)
        click.echo(", ".join(f"{count} {status}" for status, count in counts(rows).items()) + f"; {output / TABLE}")
    raise_if_not_all_passed(rows, output)
