"""Search precisions per layer under a drift budget, for speed or size as measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import example, json_option
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from toolkit.plan import Request
    from toolkit.tune.result import TuneResult
    from toolkit.tune.search import Search


class _Size(click.ParamType[Any]):
    name = "NAME=N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        """`sequence=128` → ("sequence", 128)."""
        name, equals, text = str(value).partition("=")
        if not (name and equals and text.isdecimal() and int(text)):
            self.fail(f"'{value}' is not of the form NAME=N, as in sequence=128", param, ctx)
        return name, int(text)


@click.command(
    epilog=example(
        "toolkit tune --model minilm --runtime ort-cpu --drift-gate sqnr=20 --minutes 10",
        "toolkit tune --model ./my-vit --runtime ort-cpu --objective both --shape batch=8 --output tuned/my-vit",
        "toolkit tune --recipe recipe.yaml --runtime trt --objective size --json",
        "toolkit export --recipe tuned/my-vit/recipe.yaml",
    )
)
@click.option("--model", help="Short name, Hub id, Hugging Face folder, .gguf file, or module:factory.")
@click.option(
    "--recipe",
    "file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A recipe file in place of --model: its model, dims, data and gate; its precisions are what is searched.",
)
@click.option("--runtime", help="Whose schemes are tried; default: that of the recipe's first target, or ort-cpu.")
@click.option("--objective", type=click.Choice(["speed", "size", "both"]), default="speed", show_default=True)
@click.option("--drift-gate", help="The drift that is allowed, over int8's own gate: as sqnr=25,cosine=0.995.")
@click.option("--minutes", type=click.FloatRange(min=0), default=20, show_default=True, help="No trial begins later.")
@click.option("--trials", type=click.IntRange(min=1), help="No more trials than that in all.")
@click.option("--batch", type=click.IntRange(min=1), help="Rows that are timed; default: what engines are tuned for.")
@click.option("--shape", "sizes", type=_Size(), multiple=True, help="Another size that is timed, as sequence=128.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("tuned"),
    show_default=True,
    help="Folder for tune.json, recipe.yaml and pareto.svg; an unfinished search in it is continued.",
)
@click.option("--calibration", metavar="DIR|FILE|N", help="What to calibrate on, or how many of the family's samples.")
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--weights", type=click.Choice(["pretrained", "random"]))
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of random weights.")
@click.option("--offline", is_flag=True, help="Never ask the Hub.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model run code of its own repository.")
@json_option
def command(*, minutes: float, trials: int | None, as_json: bool, output: Path, **options: Any) -> None:
    """Search precisions per layer under a drift budget, for speed or size as measured on this machine.

    Tries whole schemes, their knobs and mixes by module. What breaks the drift gate is not timed; what holds it runs
    in turn with fp32. A precision wins only where it gains: else the answer is fp32.
    """
    from toolkit import console
    from toolkit.cli import INTERRUPTED
    from toolkit.progress import Rows, Silent

    found = _search(output, options)
    watch = Silent() if as_json else Rows(console.progress())
    try:
        result = found.run(watch, minutes=minutes, trials=trials)
    except KeyboardInterrupt:
        click.echo(f"\ninterrupted; what was tried is in {output}, the same command continues", err=True)
        click.get_current_context().exit(INTERRUPTED)
    if as_json:
        console.emit_json(result.model_dump(mode="json"))
    else:
        _print(result, output)


def _search(output: Path, options: dict[str, Any]) -> Search:
    from toolkit.tune.search import prepare

    sizes = dict(options["sizes"]) | ({"batch": options["batch"]} if options["batch"] else {})
    request = _request(output, options)
    runtime = options["runtime"] or _runtime_of(request.targets)
    return prepare(request, runtime, options["objective"], sizes)


def _request(output: Path, options: dict[str, Any]) -> Request:
    from toolkit.data_source import source_or_count
    from toolkit.plan import Request
    from toolkit.recipe.document import Data
    from toolkit.recipe.file import read_recipe
    from toolkit.recipe.request import request_of

    file, model = options["file"], options["model"]
    if bool(file) == bool(model):
        raise UsageError("tune takes a model or a recipe file", hint="Give one of --model NAME and --recipe FILE.")
    flags = {name: options[name] for name in ("revision", "weights", "seed", "drift_gate") if options[name] is not None}
    flags |= {"output": output, "offline": options["offline"], "trust_remote_code": options["trust_remote_code"]}
    if options["calibration"] is not None:
        source, count = source_or_count(options["calibration"])
        flags["calibration"] = Data(source=source, count=count)
    make: Callable[..., Request] = Request
    if file:
        return request_of(read_recipe(file), folder=file.parent, **flags)
    return make(model=model, targets=(), **flags)


def _runtime_of(targets: Any) -> str:
    from toolkit.target import parse_target

    return parse_target(targets[0]).runtime if targets else "ort-cpu"


def _print(result: TuneResult, output: Path) -> None:
    from toolkit import console
    from toolkit.tune.record import PLOT, RECIPE
    from toolkit.tune.table import COLUMNS, rows

    title = f"{result.model} on {result.runtime}, for {result.objective}; {result.shape}; {result.ran_on}"
    click.echo()
    console.print_table(rows(result), *COLUMNS, title=title)
    click.echo(result.verdict)
    if result.winner is not None:
        click.echo(f"Export it: toolkit export --recipe {output / RECIPE}   (plot: {output / PLOT})")
    if not result.finished:
        click.echo("The same command continues the search.")
