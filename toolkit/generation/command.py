"""`toolkit run` for a language model: from its options to what is printed."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from toolkit import console
from toolkit.bundle.read import open_bundle
from toolkit.errors import UsageError
from toolkit.generation.generate import Generation
from toolkit.generation.request import Answer, Request, complete
from toolkit.generation.sampling import Sampling
from toolkit.inputs import read_npz, read_text

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle

__all__ = ["run"]

_PROMPT = "Give --prompt TEXT; again for each further prompt."


def run(bundle: Bundle, inputs: Sequence[str], *, as_json: bool, **options: Any) -> None:
    """Complete what `--prompt`, or one .npz of tokens, asks for, and print it; `options` are the command's own."""
    request = _request(bundle, inputs, options)
    rows = len(request.prompts) or len(request.tokens)
    if options["stream"] and (as_json or rows != 1):
        raise UsageError("--stream shows one text as it comes", hint="Leave it out for --json and for several prompts.")
    sampling = Sampling(
        **{name: options[name] for name in ("temperature", "top_k", "top_p", "repetition_penalty", "seed")}
    )
    settings = Generation(options["max_new_tokens"], sampling, stop=tuple(options["stop"]))
    draft = open_bundle(options["draft"]) if options["draft"] else None
    show = _write if options["stream"] else None
    answer = complete(bundle, request, settings, draft=draft, on_cpu=options["on_cpu"], show=show)
    if as_json:
        console.emit_json({"bundle": bundle.folder, **asdict(answer)})
        return
    _print(answer, streamed=options["stream"])


def _request(bundle: Bundle, inputs: Sequence[str], options: dict[str, Any]) -> Request:
    if inputs and (options["prompts"] or len(inputs) != 1 or not inputs[0].endswith(".npz")):
        raise UsageError(f"a language model takes no INPUT such as {inputs[0]}", hint=_PROMPT)
    if not inputs and not options["prompts"]:
        raise UsageError("there is no prompt", hint=_PROMPT)
    return Request(
        prompts=tuple(read_text(prompt) for prompt in options["prompts"]),
        tokens=_tokens(bundle, Path(inputs[0])) if inputs else (),
        system=options["system"],
        raw=options["raw"],
        context=options["context"],
    )


def _tokens(bundle: Bundle, path: Path) -> tuple[NDArray[np.int64], ...]:
    """Rows of `input_ids` [rows, n], each as long as its `attention_mask` has ones."""
    inputs = [item for item in bundle.manifest.inputs if item.name in {"input_ids", "attention_mask"}]
    arrays = read_npz(path, inputs)
    tokens = arrays.get("input_ids", np.zeros(0))
    mask = arrays.get("attention_mask", np.ones_like(tokens))
    if tokens.ndim != 2 or tokens.dtype != np.int64 or not tokens.size or mask.shape != tokens.shape:
        raise UsageError(
            f"{path} holds no tokens", hint="Give input_ids, int64 [rows, n], and an attention_mask of the same shape."
        )
    lengths = (mask != 0).sum(axis=1)
    if (np.arange(tokens.shape[1]) < lengths[:, None]).tolist() != (mask != 0).tolist():
        raise UsageError(f"{path} has padding that is not on the right", hint="Put each row's tokens first.")
    return tuple(row[:length] for row, length in zip(tokens, lengths, strict=True))


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _print(answer: Answer, *, streamed: bool) -> None:
    several = len(answer.completions) > 1
    for index, row in enumerate(answer.completions):
        if several:
            about = textwrap.shorten(row.prompt or f"{row.prompt_tokens} tokens", 60, placeholder="…")
            click.echo(f"{index + 1}. {about}")
        click.echo("" if streamed else row.text or " ".join(map(str, row.tokens if row.prompt is None else ())))
        if several:
            click.echo()
    click.echo(_summary(answer), err=True)


def _summary(answer: Answer) -> str:
    """As `eos after 42 tokens, 23.1 tokens/s, the first after 84 ms`."""
    ends = ", ".join(f"{row.finish} after {len(row.tokens)} tokens" for row in answer.completions)
    rate = f", {answer.tokens_per_second:.1f} tokens/s" if answer.tokens_per_second else ""
    taken = f", {answer.accepted:.0%} of drafted tokens taken" if answer.accepted is not None else ""
    return f"{ends}{rate}, the first after {answer.ttft_ms:.0f} ms{taken}; ran on {answer.ran_on}"
