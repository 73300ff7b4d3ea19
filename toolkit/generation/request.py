"""From a bundle and prompts to completions: what `toolkit run` does with a language model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.generation.chat import render_chat
from toolkit.generation.generate import Event, Finish, Generation, generate
from toolkit.generation.speculative import Acceptance, speculate, vocabularies_differ
from toolkit.generation.text import Codec, read_codec
from toolkit.sessions import context_of, decoder_spec, longest_chunk, open_decoder

if TYPE_CHECKING:
    from toolkit.bundle.read import Bundle

__all__ = ["Answer", "Completion", "Request", "cache_limit", "complete"]

_ROUND = 64


@dataclass(frozen=True, slots=True)
class Request:
    """What to complete: `prompts`, laid out by the model's chat template unless `raw`, or `tokens` as they are.

    `context` is how many positions the cache is to hold; None takes what the prompts and the new tokens need.
    `ahead` is how many tokens a draft proposes at a time.
    """

    prompts: tuple[str, ...] = ()
    tokens: tuple[NDArray[np.int64], ...] = ()
    system: str | None = None
    raw: bool = False
    context: int | None = None
    ahead: int = 4


@dataclass(slots=True)
class Completion:
    """What one prompt was answered with; `prompt` is None where tokens were given."""

    prompt: str | None
    prompt_tokens: int
    text: str
    tokens: list[int]
    finish: Finish | None = None


@dataclass(slots=True)
class Answer:
    """All completions, and how long they took: milliseconds to the first token, then tokens a second of all rows.

    `tokens_per_second` is None where there was one token only; `accepted` is the share of drafted tokens that the
    model took, None without a draft.
    """

    ran_on: str
    context: int
    completions: list[Completion]
    ttft_ms: float
    tokens_per_second: float | None
    accepted: float | None = None


def complete(
    bundle: Bundle,
    request: Request,
    generation: Generation,
    *,
    draft: Bundle | None = None,
    on_cpu: bool = False,
    show: Callable[[str], object] | None = None,
) -> Answer:
    """Open the bundle, run the prompts as one batch, close it. `show` is handed each piece of text as it comes.

    Everything about the prompts is checked before weights are opened. Raises UsageError for what cannot be run.
    """
    spec = decoder_spec(bundle)
    codec = None if request.tokens else read_codec(_assets(bundle), spec)
    prompts = _tokens(request, codec, spec.vocabulary)
    limit = cache_limit(request.context, prompts, generation.max_new_tokens, context_of(bundle))
    settings = replace(
        generation,
        eos=codec.eos if codec else spec.eos,
        pad=codec.pad if codec else spec.pad or 0,
        prefill_chunk=min(generation.prefill_chunk, longest_chunk(bundle), longest_chunk(draft or bundle)),
    )
    if draft is not None:
        _check_draft(bundle, draft, codec, len(prompts))
    with ExitStack() as stack:
        decoder = stack.enter_context(closing(open_decoder(bundle, limit=limit, rows=len(prompts), on_cpu=on_cpu)))
        counts = Acceptance() if draft else None
        start = time.perf_counter()
        if draft is None:
            events = generate(decoder, prompts, settings, codec)
        else:
            reach = min(limit, context_of(draft))
            helper = stack.enter_context(closing(open_decoder(draft, limit=reach, rows=1, on_cpu=on_cpu)))
            start = time.perf_counter()
            events = speculate(decoder, helper, prompts[0], settings, codec, ahead=request.ahead, counts=counts)
        completions, ttft, rate = _collect(events, request, prompts, start, show)
        return Answer(decoder.ran_on, limit, completions, ttft, rate, counts.rate if counts else None)


def cache_limit(context: int | None, prompts: Sequence[NDArray[np.int64]], max_new_tokens: int, most: int) -> int:
    """How many positions the cache is to hold: those asked for, or what is needed in steps of 64, up to `most`.

    Raises UsageError for a context above `most`, and for a prompt longer than the cache.
    """
    longest = max(len(prompt) for prompt in prompts)
    if context is not None and not 1 <= context <= most:
        raise UsageError(f"context {context} is outside its range", hint=f"Allowed: 1 to {most}.")
    if longest > (context or most):
        more = f", or a context of up to {most} with --context" if context and context < most else ""
        raise UsageError(
            f"the prompt has {longest} tokens, the cache holds {context or most}",
            hint=f"Give a shorter prompt{more}.",
        )
    needed = -(-(longest + max_new_tokens) // _ROUND) * _ROUND
    return context or min(most, needed)


def _assets(bundle: Bundle) -> Path | None:
    return bundle.assets if bundle.assets.is_dir() else None


def _tokens(request: Request, codec: Codec | None, vocabulary: int) -> list[NDArray[np.int64]]:
    if codec is None:
        _check_tokens(request.tokens, vocabulary)
        return list(request.tokens)
    if request.raw or codec.template is None:
        if request.system is not None:
            why = "--raw was given" if request.raw else "the model has no chat template"
            raise UsageError(f"--system has no place: {why}", hint="Put it into the prompt itself.")
        return [codec.encode(prompt) for prompt in request.prompts]
    return [codec.encode(_chat(codec, request.system, prompt), special=False) for prompt in request.prompts]


def _check_tokens(rows: Sequence[NDArray[np.int64]], vocabulary: int) -> None:
    for row in rows:
        odd = row[(row < 0) | (row >= vocabulary)]
        if odd.size or not row.size:
            what = f"token {odd[0]} is not in the vocabulary" if odd.size else "a row has no tokens"
            raise UsageError(what, hint=f"Allowed: one token or more, each from 0 to {vocabulary - 1}.")


def _chat(codec: Codec, system: str | None, prompt: str) -> str:
    if codec.template is None:
        return prompt
    messages = [{"role": "system", "content": system}] if system is not None else []
    return render_chat(codec.template, [*messages, {"role": "user", "content": prompt}], codec.special)


def _check_draft(bundle: Bundle, draft: Bundle, codec: Codec | None, prompts: int) -> None:
    if prompts != 1:
        raise UsageError(f"--draft takes one prompt, not {prompts}", hint="Give one --prompt, or leave --draft out.")
    spec, small = decoder_spec(bundle), decoder_spec(draft)
    if spec.vocabulary != small.vocabulary:
        raise vocabularies_differ(spec.vocabulary, small.vocabulary)
    if spec.last_logits:
        raise UsageError(
            f"{bundle.folder} answers the last position's logits only, a draft needs all to be checked",
            hint="Export it without --last-logits, or leave --draft out.",
        )
    if codec is not None and not codec.same_tokens(read_codec(_assets(draft), small)):
        raise UsageError(
            f"the tokenizers of {bundle.folder} and {draft.folder} differ",
            hint="Give --draft a smaller model of the same family, with the same tokenizer.",
        )


def _collect(
    events: Iterator[Event],
    request: Request,
    prompts: Sequence[NDArray[np.int64]],
    start: float,
    show: Callable[[str], object] | None,
) -> tuple[list[Completion], float, float | None]:
    """Completions, milliseconds to the first token, and tokens a second after it."""
    texts: Sequence[str | None] = request.prompts or [None] * len(prompts)
    rows = [Completion(text, len(prompt), "", []) for text, prompt in zip(texts, prompts, strict=True)]
    first = last = start
    count = 0
    for event in events:
        last = time.perf_counter()
        first = first if count else last
        count += 1
        row = rows[event.row]
        row.tokens.append(event.token)
        row.text += event.text
        row.finish = event.finish
        if show and event.text:
            show(event.text)
    later = count - len(rows)
    rate = later / (last - first) if later > 0 and last > first else None
    return rows, 1000 * (first - start), rate
