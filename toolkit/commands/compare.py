"""Say which PyTorch module moved: two sides of a model compared layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.commands import example, json_option

if TYPE_CHECKING:
    from toolkit.compare.result import Comparison


@click.command(
    epilog=example(
        "toolkit compare reference bundles/vit-digits-ort-cpu-int8",
        "toolkit compare reference recipe.yaml@quantize --stages",
        "toolkit compare bundles/mine-ort-cpu-fp32 bundles/mine-ort-cpu-int8 --top 10 --output comparison.json",
        "toolkit compare a.onnx b.onnx --inputs tensors.npz --fail",
    )
)
@click.argument("reference")
@click.argument("candidate")
@click.option("--stages", is_flag=True, help="Measure the candidate's modules after each stage of its line too.")
@click.option("--threshold", type=float, metavar="DB", help="SQNR below which a module is bad; else the gate's, or 20.")
@click.option("--module", "pattern", default="*", metavar="PATTERN", help="Only modules of that path, as '*.mlp.*'.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Show only the N modules that add most noise.")
@click.option("--inputs", type=click.Path(path_type=Path, dir_okay=False, exists=True), help="An .npz to compare on.")
@click.option("--target", default="", help="Which of the recipe's targets to compare.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the comparison as JSON.")
@click.option("--fail", is_flag=True, help="Exit with 6 where a module is bad.")
@json_option
def command(
    reference: str,
    candidate: str,
    stages: bool,
    threshold: float | None,
    pattern: str,
    top: int | None,
    inputs: Path | None,
    target: str,
    output: Path | None,
    fail: bool,
    as_json: bool,
) -> None:
    """Say which module moved: two sides of a model compared layer by layer, in PyTorch module names.

    REFERENCE is the word reference (the eager fp32 PyTorch model of the other side), or whatever CANDIDATE may be: a
    bundle's folder, a recipe file, or a graph (.onnx). A bundle or a recipe may be followed by @export, @quantize,
    @lower or @engine; what ships is the default. A recipe needs no bundle: its line is run in a scratch folder.
    """
    from toolkit import console
    from toolkit.compare.result import write_comparison
    from toolkit.compare.run import compare
    from toolkit.progress import Rows, Silent

    comparison = compare(
        reference,
        candidate,
        stages=stages,
        threshold=threshold,
        module=pattern,
        inputs=inputs,
        target=target,
        watch=Silent() if as_json else Rows(console.progress()),
    )
    if output is not None:
        write_comparison(comparison, output)
    if as_json:
        console.emit_json(comparison.model_dump(mode="json"))
    else:
        _print(comparison, top)
    if fail:
        _raise_if_bad(comparison)


def _print(comparison: Comparison, top: int | None) -> None:
    from toolkit.compare import table
    from toolkit.console import print_table

    click.echo(table.verdict(comparison) + "\n")
    print_table(table.module_rows(comparison, top), *table.COLUMNS)
    if comparison.stages:
        columns = [f">after {stage.stage}, dB" for stage in comparison.stages]
        print_table(table.stage_rows(comparison), "module", *columns, ">candidate, dB")
    if comparison.skipped and top is None:
        print_table(comparison.skipped.items(), "not compared", "why")
    click.echo(f"reference ran on {comparison.reference_ran_on}; candidate on {comparison.candidate_ran_on}")


def _raise_if_bad(comparison: Comparison) -> None:
    from toolkit.compare.table import verdict
    from toolkit.errors import DriftError

    if comparison.first_bad is not None:
        raise DriftError(verdict(comparison), hint="Without --fail the exit code is 0.")
