"""Run a bundle on images, texts or raw tensors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit.commands import example, json_option

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from toolkit.types import ModelSpec

_CLASSIFY = ("image-classification", "text-classification")


@click.command(
    epilog=example(
        "toolkit run bundles/vit-digits-ort-cpu-int8 seven.png --top-k 3",
        'toolkit run bundles/minilm-ort-cpu-int8 "a cat on a mat" "a dog on a log"',
        "toolkit run bundles/minilm-ort-cpu-int8 @lines.txt --output embeddings.npz",
        "toolkit run bundles/my-model-ort-cpu-fp32 inputs.npz --output outputs.npz",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--top-k", type=click.IntRange(min=1), default=5, show_default=True, help="How many labels to show.")
@click.option("--output", type=click.Path(path_type=Path), help="Write all outputs to this .npz file.")
@click.option("--on-cpu", is_flag=True, help="Run the engine's graph on ONNX Runtime's CPU provider instead.")
@json_option
def command(
    *, bundle: Path, inputs: tuple[str, ...], top_k: int, output: Path | None, on_cpu: bool, as_json: bool
) -> None:
    """Run a bundle on images, texts or raw tensors.

    INPUT is one or more image files for a vision model; texts, @file or - (one text a line) for a text encoder;
    or one .npz file with a tensor for each input. All go through in one batch. Needs no PyTorch.
    """
    from toolkit.answers import save_npz
    from toolkit.bundle.read import open_bundle
    from toolkit.inputs import read_inputs
    from toolkit.sessions import open_engine, open_graph

    opened = open_bundle(bundle)
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
    answer = {"bundle": str(bundle), "ran_on": session.ran_on, **_answer(spec, names, outputs, top_k)}
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
