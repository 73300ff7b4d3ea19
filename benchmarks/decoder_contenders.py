"""One contender of `decoders.py` in a process of its own: requests on standard input, answers on standard output.

A request is a line of JSON, `{"prompt": 128, "tokens": 64}`; the answer holds `ttft_ms` and `itl_ms` (one a token).
Every contender is given the same token ids and picks the most likely token from the logits.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from turns import Answer, pin, serve

SEED = 7
SMALLEST_VOCABULARY = 32000
Tokens = NDArray[np.int64]
Generate = Callable[[Tokens, int], Iterator[None]]
"""Consumes a prompt and yields once for each new token, right after it is known."""


def bundle(folder: Path, limit: int, threads: int) -> Generate:
    """A bundle of this toolkit, through the same decoder as `toolkit run`; the process is pinned to the threads."""
    read, sessions = import_module("toolkit.bundle.read"), import_module("toolkit.sessions")
    MEMORY.rest()
    decoder = sessions.open_decoder(read.open_bundle(folder), limit=limit, rows=1)

    def generate(prompt: Tokens, count: int) -> Iterator[None]:
        decoder.start(1)
        tokens = prompt[np.newaxis]
        for _ in range(count):
            logits = decoder.forward(tokens, np.array([tokens.shape[1]]))
            tokens = logits.argmax(axis=-1)[:, np.newaxis]
            yield

    return generate


def llama_cpp(file: Path, limit: int, threads: int) -> Generate:
    """A GGUF file in llama.cpp, through its C functions, so that Python's wrapper costs next to nothing."""
    api = import_module("llama_cpp")
    quiet = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    MEMORY.rest()
    model = api.llama_model_load_from_file(str(file).encode(), api.llama_model_default_params())
    params = api.llama_context_default_params()
    params.n_ctx, params.n_batch = limit, limit
    params.n_threads = params.n_threads_batch = threads
    context = api.llama_init_from_model(model, params)
    size = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))

    def generate(prompt: Tokens, count: int) -> Iterator[None]:
        # The closure keeps the callback alive: llama.cpp holds a bare pointer to it.
        _ = quiet
        api.llama_memory_clear(api.llama_get_memory(context), True)
        tokens = [int(token) for token in prompt]
        for _ in range(count):
            held = (ctypes.c_int32 * len(tokens))(*tokens)
            if status := api.llama_decode(context, api.llama_batch_get_one(held, len(tokens))):
                raise RuntimeError(f"llama_decode answered {status}")
            logits = np.ctypeslib.as_array(api.llama_get_logits_ith(context, -1), (size,))
            tokens = [int(logits.argmax())]
            yield

    return generate


def genai(folder: Path, limit: int, threads: int) -> Generate:
    """A folder of onnxruntime-genai's model builder, in onnxruntime-genai."""
    api = import_module("onnxruntime_genai")
    MEMORY.rest()
    config = api.Config(str(folder))
    options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = api.Model(config)

    def generate(prompt: Tokens, count: int) -> Iterator[None]:
        params = api.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + count + 1, min_length=len(prompt) + count, do_sample=False)
        generator = api.Generator(model, params)
        generator.append_tokens(prompt.astype(np.int32))
        for _ in range(count):
            generator.generate_next_token()
            yield

    return generate


def torch(folder: Path, limit: int, threads: int) -> Generate:
    """A Transformers folder in eager fp32 PyTorch with the dynamic cache."""
    api, transformers = import_module("torch"), import_module("transformers")
    api.set_num_threads(threads)
    MEMORY.rest()
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=api.float32).eval()

    def generate(prompt: Tokens, count: int) -> Iterator[None]:
        with api.inference_mode():
            cache, tokens = None, api.from_numpy(prompt)[None]
            for _ in range(count):
                answer = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, tokens = answer.past_key_values, answer.logits[:, -1:].argmax(-1)
                yield

    return generate


CONTENDERS: dict[str, Callable[[Path, int, int], Generate]] = {
    "bundle": bundle,
    "llama.cpp": llama_cpp,
    "genai": genai,
    "torch": torch,
}


class Memory:
    """Peak resident memory above what was resident at rest: libraries imported, no model read yet."""

    def __init__(self) -> None:
        """Take all memory as the model's until `rest` is called."""
        self._resting = 0

    def rest(self) -> None:
        """Remember what is resident now, and start the peak anew."""
        self._resting = self._status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        """Bytes of the highest peak since."""
        return self._status("VmHWM") - self._resting

    def _status(self, field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


MEMORY = Memory()


def _timed(generate: Generate, prompt: Tokens, count: int) -> dict[str, Any]:
    stamps = [time.perf_counter()]
    for _ in generate(prompt, count):
        stamps.append(time.perf_counter())
    steps = np.diff(stamps) * 1e3
    return {"ttft_ms": float(steps[0]), "itl_ms": steps[1:].tolist(), "memory": MEMORY.peak()}


def main() -> None:
    """Serve `KIND PATH LIMIT THREADS` until standard input ends."""
    kind, path, limit, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    pin(threads)

    def load() -> Answer:
        generate = CONTENDERS[kind](path, limit, threads)
        return lambda request: _answer(generate, request)

    serve(load)


def _answer(generate: Generate, request: dict[str, Any]) -> dict[str, Any]:
    prompt = np.random.default_rng(SEED).integers(100, SMALLEST_VOCABULARY, request["prompt"], dtype=np.int64)
    return _timed(generate, prompt, request["tokens"])


if __name__ == "__main__":
    main()
