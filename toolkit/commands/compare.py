"""Say which PyTorch module moved: two sides of a model compared layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import example, json_option
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.bisect.result import BisectResult
    from toolkit.compare.result import Comparison
    from toolkit.progress import Watch


@click.command(
    epilog=example(
        "toolkit compare reference bundles/vit-digits-ort-cpu-int8",
        "toolkit compare reference recipe.yaml@quantize --stages",
        "toolkit compare bundles/mine-ort-cpu-fp32 bundles/mine-ort-cpu-int8 --top 10 --output comparison.json",
        "toolkit compare a.onnx b.onnx --inputs tensors.npz --fail",
        "toolkit compare reference recipe.yaml --bisect --write-recipe passing.yaml",
    )
)
@click.argument("reference")
@click.argument("candidate")
@click.option("--stages", is_flag=True, help="Measure the candidate's modules after each stage of its line too.")
@click.option("--threshold", type=float, metavar="DB", help="SQNR below which a module is bad; else the gate's, or 20.")
@click.option("--module", default="*", metavar="PATTERN", help="Only modules of that path, as '*.mlp.*'.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the N modules that add most noise.")
@click.option("--attention", is_flag=True, help="Compare attention maps too, head by head.")
@click.option("--picture", default="", metavar="INPUT", help="Draw them for a row of the inputs, a text or an image.")
@click.option("--bisect", is_flag=True, help="Find the fewest layers that must not be quantized to pass the gate.")
@click.option("--write-recipe", type=click.Path(path_type=Path, dir_okay=False), help="Write what --bisect found.")
@click.option("--inputs", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="An .npz to compare on.")
@click.option("--target", default="", help="Which of the recipe's targets to compare.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison as JSON.")
@click.option("--fail", is_flag=True, help="Exit with 6 where a module is bad.")
@json_option
def command(
    reference: str,
    candidate: str,
    top: int | None,
    bisect: bool,
    write_recipe: Path | None,
    output: Path | None,
    fail: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Say which module moved: two sides of a model compared layer by layer, in PyTorch module names.

    REFERENCE is the word reference (the eager fp32 PyTorch model of the other side), or whatever CANDIDATE may be: a
    bundle's folder, a recipe file, or a graph (.onnx). A bundle or a recipe may be followed by @export, @quantize,
    @lower or @engine; what ships is the default. A recipe needs no bundle: its line is run in a scratch folder.
    """
    from toolkit import console
    from toolkit.compare.result import write_comparison
    from toolkit.compare.run import Asked, compare
    from toolkit.progress import Rows, Silent

    if write_recipe is not None and not bisect:
        raise UsageError("--write-recipe writes what --bisect finds", hint="Give both, or neither.")
    watch = Silent() if as_json else Rows(console.progress())
    comparison = compare(reference, candidate, Asked(**asked), watch=watch)
    if output is not None:
        write_comparison(comparison, output)
    if not as_json:
        _print(comparison, top)
    found = _bisect(candidate, asked["target"], comparison, write_recipe, watch) if bisect else None
    if as_json:
        more = {"bisection": found.model_dump(mode="json")} if found else {}
        console.emit_json(comparison.model_dump(mode="json") | more)
    elif found:
        _print_bisection(found)
    if fail:
        _raise_if_bad(comparison)


def _bisect(candidate: str, target: str, comparison: Comparison, recipe: Path | None, watch: Watch) -> BisectResult:
    from toolkit.bisect.result import recipe_of_bisection
    from toolkit.compare.bisected import bisected
    from toolkit.recipe.file import write_recipe

    found, request = bisected(candidate, target, comparison.guilty, watch)
    if recipe is not None:
        write_recipe(recipe_of_bisection(found, request), recipe, found.verdict())
    return found


def _print(comparison: Comparison, top: int | None) -> None:
    from toolkit.compare import table
    from toolkit.console import print_table

    click.echo(table.verdict(comparison) + "\n")
    print_table(table.module_rows(comparison, top), *table.COLUMNS)
    if comparison.stages:
        columns = [f">after {stage.stage}, dB" for stage in comparison.stages]
        print_table(table.stage_rows(comparison), "module", *columns, ">candidate, dB")
    if comparison.attention:
        print_table(table.head_rows(comparison, top), *table.HEAD_COLUMNS)
    if comparison.skipped and top is None:
        print_table(comparison.skipped.items(), "not compared", "why")
    click.echo(f"reference ran on {comparison.reference_ran_on}; candidate on {comparison.candidate_ran_on}")


def _print_bisection(found: BisectResult) -> None:
    from toolkit.console import print_table

    heading, *rows = found.rows()
    click.echo("")
    print_table(rows, *heading)
    click.echo(found.verdict())


def _raise_if_bad(comparison: Comparison) -> None:
    from toolkit.compare.table import verdict
    from toolkit.errors import DriftError

    if comparison.first_bad is not None:
        raise DriftError(verdict(comparison), hint="Without --fail the exit code is 0.")
