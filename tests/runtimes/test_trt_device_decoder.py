"""A language model's cache on the device, run on host memory: the same answers as through the host, in place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from decoder_pair import ROWS, SPEC, Pair
from host_program import CONTEXT, HEADS, LAYERS, SIZE, VOCABULARY, HostProgram, language_graph

from runtimes._tensorrt.decoder import EngineDecoder
from toolkit.errors import StageError, UsageError
from toolkit.generation.generate import Generation, generate
from toolkit.types import Decoder, DecoderSpec, OnDevice


@pytest.fixture(params=["float", "float16"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    return Pair(language_graph(tmp_path / "model.onnx", request.param))


@pytest.fixture(params=["concat-float", "concat-float16", "static-float", "static-float16"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Pair:
    """A pair of either form of the cache."""
    form, dtype = request.param.split("-")
    return Pair(language_graph(tmp_path / "model.onnx", dtype, form))


def test_a_prompt_then_tokens_one_by_one(either: Pair) -> None:
    either.start(1)
    for steps in (7, 1, 1, 1, 5, 1, 30, 1):
        either.forward(steps, [steps])


def test_ragged_rows_have_their_next_token_behind_their_last(either: Pair) -> None:
    either.start(3)
    either.forward(6, [6, 2, 4])
    either.forward(1, [1, 1, 1])
    either.forward(4, [1, 4, 2])
    for _ in range(4):
        either.forward(1, [1, 1, 1])
    either.forward(5, [3, 1, 5], every=True)
    either.forward(1, [1, 1, 1])


def test_padding_may_pass_the_end_of_the_cache(either: Pair) -> None:
    either.start(3)
    either.forward(50, [50, 10, 30])
    either.forward(20, [3, 20, 9])
    either.forward(1, [1, 1, 1])


def test_going_back_and_starting_anew(either: Pair) -> None:
    either.start(2)
    either.forward(9, [9, 9])
    for length in (5, 3, 0):
        either.rewind(length)
        either.forward(2, [2, 2])
    either.start(1)
    either.forward(4, [4], every=True)
    either.start(3)
    either.forward(4, [4, 1, 2])
    with pytest.raises(UsageError, match="cannot go back"):
        either.device.rewind(1)


def test_what_a_step_wrote_is_what_the_next_reads(pair: Pair) -> None:
    pair.start(1)
    pair.forward(4, [4])
    bound = dict(pair.program.addresses)
    pair.forward(1, [1])
    again = dict(pair.program.addresses)
    for part in ("key", "value"):
        past, present = f"past_key_values.0.{part}", f"present.0.{part}"
        assert again[past] == bound[present]
        assert again[present] != again[past]
    pair.forward(1, [1])
    assert pair.program.addresses["past_key_values.0.key"] == again["present.0.key"]


def test_only_tokens_go_in_and_only_logits_come_out(pair: Pair) -> None:
    pair.start(1)
    pair.forward(20, [20])
    before = pair.program.memory.copied
    pair.forward(1, [1])
    width = np.dtype(pair.program.outputs[0].dtype).itemsize
    into = 8 * (1 + 21 + 1)  # a token, its mask and its position, int64
    assert pair.program.memory.copied - before == into + VOCABULARY * width


def test_buffers_grow_a_few_times_and_never_beyond_the_limit(tmp_path: Path) -> None:
    program = HostProgram(language_graph(tmp_path / "model.onnx"))
    limit = 1000
    decoder = EngineDecoder(program, SPEC, limit=limit, rows=1)
    counts = set()
    for step in range(limit):
        if step % 40 == 39:
            decoder.start(1)
        decoder.forward(np.zeros((1, 1), np.int64), np.ones(1, np.int64))
        counts.add(program.memory.allocations)
        if step > 60:
            break
    assert len(counts) <= 3
    cache = 2 * 2 * LAYERS * HEADS * SIZE * 4
    assert decoder.device_memory().buffers <= cache * limit + 6 * 512
    decoder.close()


def test_the_same_text_as_through_the_host(either: Pair) -> None:
    prompts = [np.array([1, 2, 3, 4, 5]), np.array([7]), np.array([9, 8])]
    settings = Generation(max_new_tokens=12)
    texts = []
    for decoder in (either.device, either.host):
        texts.append([(event.row, event.token) for event in generate(decoder, prompts, settings)])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 36


def test_a_step_that_fails_can_be_asked_again(either: Pair) -> None:
    either.start(1)
    either.forward(5, [5])
    either.program.fails = True
    with pytest.raises(StageError):
        either.device.forward(np.ones((1, 2), np.int64), np.array([2]))
    either.program.fails = False
    either.forward(3, [3])


def test_closing_frees_everything(either: Pair) -> None:
    assert isinstance(either.device, OnDevice)
    either.forward(5, [5, 3, 4])
    either.device.close()
    either.device.close()
    assert either.program.closed
    assert either.program.memory.held == {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda decoder: decoder.start(ROWS + 1), "4 rows"),
        (lambda decoder: decoder.forward(np.zeros((3, 65), np.int64), np.full(3, 65)), "the cache holds 64"),
        (lambda decoder: decoder.forward(np.full((3, 1), VOCABULARY), np.ones(3, np.int64)), "not in the vocabulary"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[Decoder], None], words: str, tmp_path: Path) -> None:
    decoder = EngineDecoder(HostProgram(language_graph(tmp_path / "model.onnx")), SPEC, limit=CONTEXT, rows=ROWS)
    with pytest.raises(UsageError, match=words):
        call(decoder)


def test_a_graph_without_a_cache_is_no_decoder(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="2 cache inputs for 7 layers"):
        EngineDecoder(HostProgram(language_graph(tmp_path / "model.onnx")), DecoderSpec(7, 29, 64), limit=8, rows=1)
