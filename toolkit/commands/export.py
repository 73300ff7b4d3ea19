"""Export a model to one or more targets and verify every stage against fp32 PyTorch."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from toolkit.errors import UsageError
from toolkit.garbage import spared

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle
    from toolkit.plan import Request
    from toolkit.types import Dim

Value = TypeVar("Value")

_EPILOG = """\b
Examples:
  toolkit export --model vit-digits --target trt-int8 --target ort-cpu-int8
  toolkit export --model vit-base --weights random --target trt-fp16
  toolkit export --model ./my-bert --target ort-cpu-int8 --calibration texts.jsonl
  toolkit export --model ./my-vit --target ort-cpu-int8 --calibration train/ --evaluation val/ --evaluation-count 500
  toolkit export --model roberta-base --task features --target ort-cpu-int8
  toolkit export --model mypackage.models:make --target ort-cpu-fp32 --dim batch=1:8:64
  toolkit export --model vit-digits --target ort-cpu-int8 --recipe 'layers=*.fc2:fp32' --write-recipe vit.yaml
  toolkit export --recipe vit.yaml --target trt-int8

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


class _Architectures(click.ParamType[Any]):
    name = "SM[,SM…]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """`sm80,SM89` → ("sm80", "sm89")."""
        names = [name.strip().lower() for name in str(value).split(",")]
        if odd := [name for name in names if not (name.startswith("sm") and name[2:].isdecimal())]:
            self.fail(f"'{odd[0]}' is no GPU architecture; give them as sm80,sm89", param, ctx)
        return tuple(dict.fromkeys(names))


class _Setting(click.ParamType[Any]):
    name = "KEY=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """`device_id=1` → ("device_id", "1"); a value may hold further equals signs."""
        key, equals, text = str(value).partition("=")
        if not (key.strip() and equals and text.strip()):
            self.fail(f"'{value}' is not of the form KEY=VALUE, as in device_id=1", param, ctx)
        return key.strip(), text.strip()


class _Named(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As click's, but an empty text, as of an unset shell variable, is not the current folder."""
        if not str(value).strip():
            what = "a folder, or . for this one" if self.dir_okay else "a file, or - for standard output"
            self.fail(f"the name is empty; give {what}", param, ctx)
        return super().convert(value, param, ctx)


@click.command(epilog=_EPILOG)
@click.option("--model", help="Short name, Hub id, Hugging Face folder, .gguf file, or module:factory.")
@click.option("--target", "targets", multiple=True, help="<runtime>-<scheme>, as trt-int8; repeatable.")
@click.option(
    "--output",
    type=_Named(path_type=Path, file_okay=False),
    default=Path("bundles"),
    show_default=True,
    help="Folder for the bundles, each in <model>-<target>.",
)
@click.option(
    "--task",
    metavar="NAME",
    help="Another task than the checkpoint's own, as features for the encoder without its head.",
)
@click.option("--revision", help="Branch, tag or commit of a Hub model.")
@click.option("--weights", type=click.Choice(["pretrained", "random"]), default="pretrained", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Seed of random weights.")
@click.option(
    "--calibration",
    metavar="DIR|FILE|N|datasets:NAME",
    help="Images, text, JSONL or .npz to calibrate on; or how many of the family's own samples.",
)
@click.option("--calibration-count", type=click.IntRange(min=1), help="How many samples to calibrate on; default 64.")
@click.option(
    "--evaluation",
    metavar="DIR|FILE|datasets:NAME|none",
    help="Held-out images, text, JSONL or .npz that stages are judged on; with classes, accuracy. none: golden inputs "
    "alone.",
)
@click.option(
    "--evaluation-count",
    type=click.IntRange(min=1),
    help="How many samples to judge on; default 256, less for large inputs, 8 windows of text.",
)
@click.option(
    "--data-seed",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Seed of the samples drawn where a set has more.",
)
@click.option("--dim", "dims", type=_DimRange(), multiple=True, help="Range of a dynamic dimension; repeatable.")
@click.option("--opset", type=int, help="ONNX opset of the canonical graph.")
@click.option("--drift-gate", default="", help="Bounds that replace the scheme's, as sqnr=30,cosine=0.99.")
@click.option(
    "--last-logits", is_flag=True, help="A language model answers only the last token's logits: faster prefill."
)
@click.option(
    "--recipe",
    "recipes",
    metavar="FILE|KEY=VALUE,…",
    multiple=True,
    help="A recipe file, which flags override; or changes to the scheme's recipe, as block-size=64; repeatable.",
)
@click.option(
    "--write-recipe",
    "recipe_file",
    metavar="FILE|-",
    type=_Named(path_type=Path, dir_okay=False, allow_dash=True),
    help="Write the recipe that stands for all of this, and stop.",
)
@click.option("--arch", "architectures", type=_Architectures(), help="GPU architectures, one engine each: sm80,sm89.")
@click.option(
    "--require-engine", is_flag=True, help="Fail where no engine can be built here, rather than ship a graph."
)
@click.option("--build-timeout", "seconds", type=click.FloatRange(min=1), help="Seconds that one build may take.")
@click.option("--build-memory", "memory", type=click.IntRange(min=1), help="MiB that one build may take.")
@click.option(
    "--kv-cache",
    "cache",
    type=click.Choice(["concat", "static"]),
    help="A language model's cache: appended to, or one buffer of full length written in place.",
)
@click.option(
    "--provider-option",
    "provider",
    type=_Setting(),
    multiple=True,
    help="An option of ONNX Runtime's CUDA or TensorRT provider; repeatable.",
)
@click.option("--allow-unfused", is_flag=True, help="Export attention that cannot be fused, and record it.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and stop.")
@click.option("--offline", is_flag=True, help="Never ask the Hub.")
@click.option("--trust-remote-code", is_flag=True, help="Let the model run code of its own repository.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.pass_context
def command(
    context: click.Context,
    /,
    recipes: tuple[str, ...],
    recipe_file: Path | None,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Export a model to one or more targets and verify every stage against fp32 PyTorch."""
    from toolkit import console
    from toolkit.pipeline import export
    from toolkit.progress import Rows, Silent
    from toolkit.recipe.command import located, plan_of

    given = {name: value for name, value in options.items() if _is_given(context, name)}
    with spared():
        the_plan = plan_of(recipes, _fields(given))
    if recipe_file:
        _write_recipe(the_plan.request, recipe_file, as_json=as_json)
    elif dry_run and as_json:
        console.emit_json(the_plan.as_json())
    elif dry_run:
        click.echo(the_plan.describe())
    else:
        with located(recipes):
            bundles = export(the_plan, Silent() if as_json else Rows(console.progress()))
        (_emit if as_json else _print)(bundles)


def _is_given(context: click.Context, name: str) -> bool:
    """Whether the user set the option: only that may override what a recipe file says."""
    return context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT


def _fields(given: dict[str, Any]) -> dict[str, Any]:
    """Fields of the request, of those options that were given."""
    chosen = _options(given)
    if "dims" in given:
        given["dims"] = _once("dim", given["dims"])
    return {**_data(given), "options": chosen, "command": _command_line()}


def _write_recipe(request: Request, path: Path, *, as_json: bool) -> None:
    from toolkit import console
    from toolkit.recipe.file import dump_recipe, write_recipe
    from toolkit.recipe.request import anchored, recipe_of

    shown = str(path) == "-"
    recipe = anchored(recipe_of(request), Path() if shown else path.parent)
    if not shown:
        write_recipe(recipe, path)
    if as_json:
        console.emit_json({"recipe": recipe.model_dump(mode="json", by_alias=True), "path": None if shown else path})
    elif shown:
        click.echo(dump_recipe(recipe), nl=False)
    else:
        click.echo(f"Export by it at any time: toolkit export --recipe {shlex.quote(str(path))}")


def _once(flag: str, given: tuple[tuple[str, Value], ...]) -> dict[str, Value]:
    """What a repeatable option says of each name. Raises UsageError where it says two things of one."""
    names = [name for name, _ in given]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(
            f"--{flag} {twice[0]} is given {names.count(twice[0])} times", hint=f"Give --{flag} {twice[0]} once."
        )
    return dict(given)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Takes out of `given` what says how engines are compiled, as fields of TargetOptions."""
    names = ("architectures", "seconds", "memory", "cache", "provider")
    chosen = {name: given.pop(name) for name in names if name in given}
    if "provider" in chosen:
        chosen["provider"] = _once("provider-option", chosen["provider"])
    if "memory" in chosen:
        chosen["memory"] <<= 20
    return chosen


def _data(given: dict[str, Any]) -> dict[str, Any]:
    """The same with fields of the sections `calibration` and `evaluation` in place of the five options on data."""
    from toolkit.data_source import source_or_count

    names = ("calibration", "calibration_count", "evaluation", "evaluation_count", "data_seed")
    source, count, held_out, held_out_count, seed = (given.pop(name, None) for name in names)
    if held_out is not None and not held_out.strip():
        raise UsageError("--evaluation is empty", hint="Give a folder, a file or datasets:NAME, or leave it out.")
    if source is not None:
        source, count = source_or_count(source, count)
    sections = {
        "calibration": {"source": source, "count": count, "seed": seed},
        "evaluation": {"source": held_out, "count": held_out_count, "seed": seed},
    }
    for section, fields in sections.items():
        if chosen := {name: value for name, value in fields.items() if value is not None}:
            # A new source has columns of its own.
            given[section] = chosen if fields["source"] is None else {**chosen, "column": ""}
    return given


def _command_line() -> str:
    return shlex.join(["toolkit", *sys.argv[1:]])


def _emit(bundles: tuple[Path, ...]) -> None:
    from toolkit import console
    from toolkit.bundle.read import open_bundle, report

    opened = [open_bundle(folder) for folder in bundles]
    _warn(opened)
    console.emit_json(
        {
            "bundles": [
                {
                    "path": bundle.folder,
                    "target": bundle.manifest.target.model_dump(),
                    "engine": bundle.manifest.engine.model_dump(mode="json"),
                    "drift": report(bundle).model_dump(mode="json"),
                }
                for bundle in opened
            ]
        }
    )


def _print(bundles: tuple[Path, ...]) -> None:
    from toolkit import console
    from toolkit.bundle.read import open_bundle

    opened = [open_bundle(folder) for folder in bundles]
    columns = ("bundle", "engine", ">size", ">SQNR dB", ">cosine", "task")
    click.echo()
    console.print_table([_row(bundle) for bundle in opened], *columns)
    for reason in dict.fromkeys(bundle.manifest.engine.reason for bundle in opened):
        if reason:
            click.echo(f"built: {reason}.")
    _warn(opened)
    click.echo(f"Verify a bundle at any time: toolkit check {shlex.quote(str(bundles[0]))}")


def _warn(opened: list[Bundle]) -> None:
    found = {bundle.manifest.overlap for bundle in opened if bundle.manifest.overlap}
    for shared in (shared for shared in found if shared.duplicates):
        click.echo(
            f"WARNING: {shared} evaluation samples are calibration samples too, so the drift looks smaller than it is. "
            "Take other data for one of the two sets.",
            err=True,
        )


def _row(bundle: Bundle) -> tuple[str, ...]:
    from toolkit.bundle.read import report
    from toolkit.console import byte_size
    from toolkit.drift.table import task_words

    last = report(bundle).stages[-1]
    worst, files = last.worst(), bundle.manifest.files.values()
    return (
        str(bundle.folder),
        bundle.manifest.engine.status,
        byte_size(sum(entry.bytes for entry in files)),
        f"{worst.sqnr_db:.1f}",
        f"{worst.cosine:.6f}",
        task_words(last.task),
    )
