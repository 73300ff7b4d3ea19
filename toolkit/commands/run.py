"""Run a bundle on images, texts or raw tensors, or let a language model continue a prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import example, json_option

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle


@click.command(
    epilog=example(
        "toolkit run bundles/vit-digits-ort-cpu-int8 seven.png --top-k 3",
        'toolkit run bundles/minilm-ort-cpu-int8 "a cat on a mat" "a dog on a log"',
        "toolkit run bundles/minilm-ort-cpu-int8 @lines.txt --output embeddings.npz",
        'toolkit run bundles/my-qa-ort-cpu-int8 --question "Who sat on the mat?" "The cat sat on the mat."',
        "toolkit run bundles/segformer-b0-ade-ort-cpu-int8 street.jpg --output classes.png",
        "toolkit run bundles/my-model-ort-cpu-fp32 inputs.npz --output outputs.npz",
        'toolkit run bundles/smollm2-135m-instruct-ort-cpu-int4 --prompt "What is gravity?" --stream',
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="How many labels, words or answers to show (default 5); of a language model, draw from so many tokens.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write all outputs to this .npz file, or the classes of pixels to this .png file.",
)
@click.option("--question", metavar="TEXT", help="What the texts are to answer.")
@click.option("--on-cpu", is_flag=True, help="Run the engine's graph on ONNX Runtime's CPU provider instead.")
@click.option(
    "--prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="What a language model is to answer; @file and - (standard input) are read whole. Repeat for a batch.",
)
@click.option("--system", metavar="TEXT", help="What stands before the prompt as the system's message.")
@click.option("--raw", is_flag=True, help="Send the prompt as it is, without the model's chat template.")
@click.option("--stream", is_flag=True, help="Print text as it comes.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="When to end.")
@click.option("--stop", metavar="TEXT", multiple=True, help="End where this text would come.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 takes the likeliest token."
)
@click.option(
    "--top-p",
    type=click.FloatRange(0, 1, min_open=True),
    default=1.0,
    show_default=True,
    help="Draw from the likeliest tokens that together have this probability.",
)
@click.option(
    "--repetition-penalty",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Above 1, tokens that were there already are less likely.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="For drawing tokens.")
@click.option(
    "--context",
    type=click.IntRange(min=1),
    help="Positions that the cache holds; default: what prompt and new tokens need.",
)
@click.option(
    "--draft",
    metavar="BUNDLE",
    type=click.Path(path_type=Path),
    help="A smaller model with the same tokens, which proposes what this one then checks: the same text, sooner.",
)
@json_option
def command(*, bundle: Path, inputs: tuple[str, ...], on_cpu: bool, as_json: bool, **options: Any) -> None:
    """Run a bundle on images, texts or raw tensors, or let a language model continue a prompt.

    INPUT is one or more image files for a vision model; texts, @file or - (one text a line) for a text encoder;
    or one .npz file with a tensor for each input (for a language model `input_ids`, with an `attention_mask` where
    rows are padded on the right). All go through in one batch. Needs no PyTorch.
    """
    from toolkit.bundle.read import open_bundle

    opened = open_bundle(bundle)
    decodes = opened.manifest.model.kind == "decoder"
    _refuse(_given(_OTHERS if decodes else _DECODER), opened.manifest.model.kind)
    if decodes:
        from toolkit.generation.command import run

        run(opened, inputs, on_cpu=on_cpu, as_json=as_json, **options)
        return
    _run(opened, inputs, options, on_cpu=on_cpu, as_json=as_json)


_OTHERS = ("output", "question")
_DECODER = (
    "prompts", "system", "raw", "stream", "max_new_tokens", "stop", "temperature", "top_p", "repetition_penalty",
    "seed", "context", "draft",
)  # fmt: skip


def _given(names: Sequence[str]) -> list[str]:
    """Those of the options that were typed, as they were."""
    context = click.get_current_context()
    spelled = {option.name: option.opts[0] for option in context.command.params}
    default = click.core.ParameterSource.DEFAULT
    return [spelled[name] for name in names if context.get_parameter_source(name) is not default]


def _refuse(options: Sequence[str], kind: str) -> None:
    from toolkit.errors import UsageError

    if not options:
        return
    if kind == "decoder":
        raise UsageError(f"{', '.join(options)}: not for a language model", hint="Give --prompt TEXT.")
    raise UsageError(
        f"{', '.join(options)}: for language models only, this bundle's kind is {kind}",
        hint="Give image files, texts or one .npz file as INPUT.",
    )


def _run(opened: Bundle, inputs: Sequence[str], options: Mapping[str, Any], *, on_cpu: bool, as_json: bool) -> None:
    from toolkit.errors import UsageError
    from toolkit.inputs import read_inputs
    from toolkit.sessions import open_engine, open_graph
    from toolkit.task_answers import Asked, answer, save

    if not inputs:
        raise UsageError("there is no INPUT", hint="Give image files, texts, or one .npz file.")
    spec = opened.manifest.spec()
    question, output = options["question"], options["output"]
    if question is not None and spec.task != "question-answering":
        raise UsageError(f"--question: this bundle's task is {spec.task}", hint="Leave --question out.")
    assets = opened.assets if opened.assets.is_dir() else None
    names, tensors = read_inputs(inputs, spec, assets, question)
    session = open_graph(opened) if on_cpu else open_engine(opened)
    try:
        outputs = session.run(tensors)
    finally:
        session.close()
    asked = Asked(spec, names, outputs, options["top_k"] or 5, question, assets)
    found = answer(asked)
    if output:
        save(output, asked)
    _show({"bundle": str(opened.folder), "ran_on": session.ran_on, **found}, output, as_json=as_json)


def _show(answer: dict[str, Any], output: Path | None, *, as_json: bool) -> None:
    from toolkit import console

    if as_json:
        console.emit_json({**answer, "output": str(output) if output else None})
        return
    for row in answer.get("rows", ()):
        click.echo(_line(row))
    if "cosine" in answer:
        click.echo("cosine similarity")
        for similarities in answer["cosine"]:
            click.echo("  " + "  ".join(f"{value:7.4f}" for value in similarities))
    if "outputs" in answer:
        rows = [[*entry.values()] for entry in answer["outputs"]]
        console.print_table(rows, "output", "dtype", "shape", ">min", ">max", ">mean", ">not finite")
    if output:
        click.echo(f"wrote {output}")
    click.echo(f"ran on {answer['ran_on']}", err=True)


def _line(row: Mapping[str, Any]) -> str:
    name = textwrap.shorten(str(row["input"]), 60, placeholder="…")
    shown = _chosen(row)
    if shown is not None:
        return f"{name}: {shown}"
    vector = row["embedding"]
    first = ", ".join(f"{value:.4f}" for value in vector["first"])
    return f"{name}: {vector['dims']} dims, norm {vector['norm']:.4f}: [{first}, …]"


def _chosen(row: Mapping[str, Any]) -> str | None:
    """What was found and its share, several side by side; None for an embedding."""
    if "labels" in row:
        return _shares(row["labels"], "label")
    if "tokens" in row:
        return "  ".join(f"{each['text']} {each['label']} {each['probability']:.2%}" for each in row["entities"]) or "-"
    if "masks" in row:
        return " | ".join(_shares(best, "label") for best in row["masks"])
    if "answers" in row:
        return _shares(row["answers"], "answer") or "-"
    if "classes" in row:
        return "  ".join(f"{each['label']} {each['share']:.2%}" for each in row["classes"])
    return None


def _shares(entries: Sequence[Mapping[str, Any]], key: str) -> str:
    return "  ".join(f"{entry[key]} {entry['probability']:.2%}" for entry in entries)
