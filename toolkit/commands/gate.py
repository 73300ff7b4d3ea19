"""Hold recipes and bundles to their budgets and to a committed baseline, for CI."""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.commands import json_option
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.gate.measure import Choices
    from toolkit.gate.run import Against

_EPILOG = """\b
Examples:
  toolkit gate recipes/*.yaml --baseline drift-baseline.json --update
  toolkit gate recipes/*.yaml --baseline drift-baseline.json --junit reports/drift.xml
  toolkit gate bundles/vit-digits-ort-cpu-int8 --baseline drift-baseline.json --tolerance sqnr=1,size=5

Exit codes, the first that holds for any subject: 5 a stage failed, 3 a library is missing, 4 not supported, 2 wrong
input, 6 a gate or the baseline does not hold, 0 all hold.
"""


@click.command(epilog=_EPILOG)
@click.argument("paths", metavar="RECIPE.yaml|BUNDLE...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--baseline", type=click.Path(path_type=Path, dir_okay=False), help="What was accepted last, as JSON.")
@click.option("--update", is_flag=True, help="Record what runs now in the baseline, unless it breaks its gate.")
@click.option("--tolerance", default="", help="How much worse passes, as sqnr=1,size=5; --update stores it.")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="Write JUnit XML there.")
@click.option("--summary", type=click.Path(path_type=Path, dir_okay=False), help="Write the summary, Markdown, there.")
@click.option("--github", is_flag=True, help="Print annotations; usual where GITHUB_ACTIONS is set.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), help="Keep the recipes' bundles there.")
@click.option("--on-cpu", is_flag=True, help="Measure the graphs of given bundles on the CPU, not their engines.")
@click.option("--offline", is_flag=True, help="Never ask the Hub.")
@click.option("--trust-remote-code", is_flag=True, help="Let a model run code of its own repository.")
@json_option
def command(
    paths: tuple[Path, ...],
    baseline: Path | None,
    update: bool,
    tolerance: str,
    junit: Path | None,
    summary: Path | None,
    github: bool,
    output: Path | None,
    as_json: bool,
    on_cpu: bool,
    offline: bool,
    trust_remote_code: bool,
) -> None:
    """Hold recipes and bundles to their budgets and to a committed baseline, for CI.

    A recipe is taken through the whole line, a bundle is measured again as `toolkit check` does. Each must keep its
    gates, and may be worse than the baseline by no more than the tolerances, so that a slow creep is caught as well.
    Subjects that fail never keep the others from running.
    """
    from toolkit import console
    from toolkit.gate.run import run
    from toolkit.gate.tell import Reports, tell
    from toolkit.progress import Rows, Silent

    against = _against(baseline, update, tolerance)
    with _output(output) as place:
        choices = _choices(place, output is None, on_cpu, offline, trust_remote_code)
        result = run(paths, choices, against, Silent() if as_json else Rows(console.progress()))
    code = tell(result, against, Reports(junit, summary, github, as_json))
    click.get_current_context().exit(code)


def _against(file: Path | None, update: bool, tolerance: str) -> Against:
    from toolkit.gate.run import Against, against_file

    if file is not None:
        return against_file(file, tolerance, accept=update)
    if update or tolerance:
        raise UsageError("--update and --tolerance are for a baseline", hint="Give --baseline drift-baseline.json.")
    return Against()


def _choices(place: Path, temporary: bool, on_cpu: bool, offline: bool, trust_remote_code: bool) -> Choices:
    from toolkit.gate.measure import Choices

    return Choices(place, temporary, on_cpu, offline, trust_remote_code, shlex.join(["toolkit", *sys.argv[1:]]))


@contextmanager
def _output(given: Path | None) -> Iterator[Path]:
    if given is not None:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="toolkit-gate-") as place:
        yield Path(place)
