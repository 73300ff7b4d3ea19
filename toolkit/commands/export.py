"""Export a model to one or more targets and verify every stage against fp32 PyTorch."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from toolkit.types import Dim

_EPILOG = """\b
Examples:
  toolkit export --model vit-digits --target trt-int8 --target ort-cpu-int8
  toolkit export --model vit-base --weights random --target trt-fp16
  toolkit export --model ./my-bert --target ort-cpu-int8 --calibration texts.jsonl
  toolkit export --model mypackage.models:make --target ort-cpu-fp32 --dim batch=1:8:64

Exit codes: 0 done, 2 wrong input, 3 a library is missing, 4 not supported, 5 a stage failed, 6 drifted too far.
"""


class _DimRange(click.ParamType[Any]):
    name = "NAME=MIN:OPT:MAX"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Dim]:
        """`batch=1:8:64` → ("batch", Dim(1, 8, 64)); `batch=4` fixes all three."""
        from toolkit.types import Dim

        name, equals, text = str(value).partition("=")
        numbers = text.split(":")
        if not (name and equals and len(numbers) in {1, 3} and all(number.isdecimal() for number in numbers)):
            self.fail(f"'{value}' is not of the form NAME=MIN:OPT:MAX, as in batch=1:8:64", param, ctx)
        sizes = [int(number) for number in numbers]
        return name, Dim(*(sizes if len(sizes) == 3 else sizes * 3))


@click.command(epilog=_EPILOG)
@click.option("--model", required=True, help="Short name, Hub id, local Hugging Face folder, or module:factory.")
@click.option("--target", "targets", required=True, multiple=True, help="<runtime>-<scheme>, as trt-int8; repeatable.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bundles"),
    show_default=True,
    help="Folder for the bundles, each in <model>-<target>.",
)
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--weights", type=click.Choice(["pretrained", "random"]), default="pretrained", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of random weights.")
@click.option(
    "--calibration",
    metavar="DIR|FILE|N",
    help="Images, text, JSONL or .npz to calibrate on; or how many of the family's own samples.",
)
@click.option("--dim", "dims", type=_DimRange(), multiple=True, help="Range of a dynamic dimension; repeatable.")
@click.option("--opset", type=int, help="ONNX opset of the canonical graph.")
@click.option("--drift-gate", default="", help="Bounds that replace the scheme's, as sqnr=30,cosine=0.99.")
@click.option("--allow-unfused", is_flag=True, help="Export attention that cannot be fused, and record it.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--offline", is_flag=True, help="Never ask the Hub.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model run code of its own repository.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def command(dims: tuple[tuple[str, Dim], ...], as_json: bool, dry_run: bool, **options: Any) -> None:
    """Export a model to one or more targets and verify every stage against fp32 PyTorch."""
    from toolkit.pipeline import export
    from toolkit.plan import Request, plan
    from toolkit.progress import progress

    request = Request(**_calibration(options), dims=dict(dims), command=_command_line())
    the_plan = plan(request)
    if dry_run:
        click.echo(json.dumps(the_plan.as_json(), indent=2) if as_json else the_plan.describe())
        return
    with progress(quiet=as_json) as watch:
        bundles = export(the_plan, watch)
    if as_json:
        click.echo(json.dumps({"bundles": [_summary(folder) for folder in bundles]}, indent=2))
    else:
        _print_bundles(bundles)


def _calibration(options: dict[str, Any]) -> dict[str, Any]:
    text = options.pop("calibration")
    if text is None:
        return options
    return options | ({"calibration_count": int(text)} if text.isdecimal() else {"calibration": Path(text)})


def _command_line() -> str:
    return shlex.join(["toolkit", *sys.argv[1:]])


def _summary(folder: Path) -> dict[str, Any]:
    from toolkit.bundle.read import open_bundle

    manifest = open_bundle(folder).manifest
    return {
        "path": str(folder),
        "target": f"{manifest.target.runtime}-{manifest.target.scheme}",
        "status": manifest.engine.status,
        "drift": json.loads((folder / "drift.json").read_text(encoding="utf-8")),
    }


def _print_bundles(bundles: tuple[Path, ...]) -> None:
    for folder in bundles:
        click.echo(f"{folder}  (verify it any time: toolkit check {shlex.quote(str(folder))})")
