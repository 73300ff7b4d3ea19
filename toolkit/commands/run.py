"""Run a bundle on images, texts or raw tensors, or let a language model continue a prompt."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import example, json_option

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from toolkit.bundle.read import Bundle
    from toolkit.types import ModelSpec

_CLASSIFY = ("image-classification", "text-classification")


@click.command(
    epilog=example(
        "toolkit run bundles/vit-digits-ort-cpu-int8 seven.png --top-k 3",
        'toolkit run bundles/minilm-ort-cpu-int8 "a cat on a mat" "a dog on a log"',
        "toolkit run bundles/minilm-ort-cpu-int8 @lines.txt --output embeddings.npz",
        "toolkit run bundles/my-model-ort-cpu-fp32 inputs.npz --output outputs.npz",
        'toolkit run bundles/smollm2-135m-instruct-ort-cpu-int4 --prompt "What is gravity?" --stream',
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="[INPUT]...", nargs=-1)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    help="How many labels to show (default 5); of a language model, draw from that many likeliest tokens.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write all outputs to this .npz file.")
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
    _run(opened, inputs, options["top_k"] or 5, options["output"], on_cpu=on_cpu, as_json=as_json)


_OTHERS = ("output",)
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


def _run(
    opened: Bundle, inputs: Sequence[str], top_k: int, output: Path | None, *, on_cpu: bool, as_json: bool
) -> None:
    from toolkit.answers import save_npz
    from toolkit.errors import UsageError
    from toolkit.inputs import read_inputs
    from toolkit.sessions import open_engine, open_graph

    if not inputs:
        raise UsageError("there is no INPUT", hint="Give image files, texts, or one .npz file.")
    spec = opened.manifest.spec()
    assets = opened.assets if opened.assets.is_dir() else None
    names, tensors = read_inputs(inputs, spec, assets)
    session = open_graph(opened) if on_cpu else open_engine(opened)
    try:
        outputs = session.run(tensors)
    finally:
        session.close()
    if output:
        save_npz(output, outputs)
    answer = {"bundle": str(opened.folder), "ran_on": session.ran_on, **_answer(spec, names, outputs, top_k)}
    _show(answer, output, as_json=as_json)


def _answer(spec: ModelSpec, names: Sequence[str], outputs: Mapping[str, NDArray[Any]], top_k: int) -> dict[str, Any]:
    from toolkit import answers
    from toolkit.drift.measure import task_output

    main = outputs[task_output(spec)]
    if spec.task in _CLASSIFY and main.ndim == 2:
        return _rows(names, "labels", answers.top_labels(main, spec.labels, top_k))
    if spec.task == "embedding" and main.ndim == 2:
        similar = {"cosine": answers.cosines(main)} if len(main) > 1 else {}
        return {**_rows(names, "embedding", answers.embeddings(main)), **similar}
    return {"outputs": answers.summaries(outputs)}


def _rows(names: Sequence[str], key: str, values: Sequence[Any]) -> dict[str, Any]:
    called = names or [f"row {index}" for index in range(len(values))]
    return {"rows": [{"input": name, key: value} for name, value in zip(called, values, strict=True)]}


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
    if "labels" in row:
        best = "  ".join(f"{entry['label']} {entry['probability']:.2%}" for entry in row["labels"])
        return f"{name}: {best}"
    vector = row["embedding"]
    first = ", ".join(f"{value:.4f}" for value in vector["first"])
    return f"{name}: {vector['dims']} dims, norm {vector['norm']:.4f}: [{first}, …]"
