"""A cache that the engine writes in place: one buffer for past and present, at the same address in every step."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from decoder_pair import ROWS, SPEC, Pair
from host_program import CONTEXT, HEADS, LAYERS, SIZE, VOCABULARY, HostProgram, language_graph
from stand_in import CudaRuntime, TensorRT

from runtimes import portable_decoder, portable_session
from runtimes._tensorrt.decoder import EngineDecoder, open_decoder
from runtimes._tensorrt.devices import Device
from runtimes._tensorrt.in_place import InPlaceDecoder
from runtimes._tensorrt.profile_choice import Ranges
from runtimes._tensorrt.program import EngineProgram
from runtimes._tensorrt.session import EngineSession
from toolkit.errors import StageError, UsageError
from toolkit.generation.static_cache import growing
from toolkit.types import OnDevice

ROW = HEADS * CONTEXT * SIZE * 4
"""Bytes of one row of a float32 buffer."""
PASTS = tuple(f"past_key_values.0.{part}" for part in ("key", "value"))


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return language_graph(tmp_path / "model.onnx", form="static")


@pytest.fixture
def pair(graph: Path) -> Pair:
    return Pair(graph)


def presents(addresses: dict[str, int]) -> dict[str, int]:
    return {name: addresses[name.replace("past_key_values", "present")] for name in PASTS}


def test_the_form_of_the_cache_chooses_the_decoder(graph: Path, tmp_path: Path) -> None:
    concat = language_graph(tmp_path / "concat.onnx")
    for path, kind in ((graph, InPlaceDecoder), (concat, EngineDecoder)):
        assert type(open_decoder(HostProgram(path), SPEC, limit=8, rows=1)) is kind


def test_past_and_present_are_one_buffer_that_never_moves(pair: Pair) -> None:
    pair.start(3)
    pair.forward(6, [6, 2, 4])
    first = dict(pair.program.addresses)
    assert presents(first) == {name: first[name] for name in PASTS}
    allocations = pair.program.memory.allocations
    for lengths in ([1, 1, 1], [1, 1, 1]):
        pair.forward(1, lengths)
        assert {name: pair.program.addresses[name] for name in first} == first
    pair.start(2)
    pair.forward(1, [1, 1])
    assert pair.program.addresses == first
    assert pair.program.memory.allocations == allocations


def test_only_tokens_go_in_and_only_logits_come_out(pair: Pair) -> None:
    pair.start(3)
    pair.forward(20, [20, 3, 7])
    before = pair.program.memory.copied
    pair.forward(1, [1, 1, 1])
    into = 3 * 8 * (1 + CONTEXT + 1 + 1)  # a token, the mask, its position and its place, int64
    assert pair.program.memory.copied - before == into + 3 * VOCABULARY * 4


@pytest.mark.parametrize("every", [False, True])
def test_rows_whose_padding_passes_the_end_go_one_by_one(every: bool, pair: Pair) -> None:
    pair.start(3)
    pair.forward(50, [50, 10, 30])
    runs = pair.program.runs
    pair.forward(14, [14, 1, 9])  # the last that goes at once: the longest row ends where the buffer does
    assert pair.program.runs == runs + 1
    pair.start(3)
    pair.forward(50, [50, 10, 30])
    runs = pair.program.runs
    pair.forward(15, [3, 15, 9], every=every)
    assert pair.program.runs == runs + 3
    first = pair.program.addresses["past_key_values.0.key"]
    pair.forward(1, [1, 1, 1])
    assert first == pair.program.addresses["past_key_values.0.key"] + 2 * ROW
    with pytest.raises(UsageError, match="the cache holds 64"):
        pair.forward(12, [12, 1, 1])


def test_a_limit_below_the_engines_length_bounds_the_rows_and_not_the_buffer(graph: Path) -> None:
    pair = Pair(graph, limit=20)
    pair.start(3)
    pair.forward(18, [18, 3, 5])
    runs = pair.program.runs
    # ONNX Runtime's buffers have 20 places only, so it sums fewer zeros, and in another order.
    pair.forward(10, [2, 10, 1], atol=1e-5)
    assert pair.program.runs == runs + 1
    assert pair.device.device_memory().buffers >= 2 * LAYERS * ROWS * ROW
    with pytest.raises(UsageError, match="the cache holds 20"):
        pair.forward(1, [1, 1, 1])


def test_a_limit_beyond_the_engines_length_is_refused_and_the_program_closed(graph: Path) -> None:
    program = HostProgram(graph)
    with pytest.raises(UsageError, match="65 positions, the engine's holds 64") as caught:
        open_decoder(program, SPEC, limit=CONTEXT + 1, rows=1)
    assert "--context 64" in caught.value.hint
    assert program.closed


def test_the_other_form_of_the_cache_gives_the_same_logits(pair: Pair, tmp_path: Path) -> None:
    concat = portable_decoder(language_graph(tmp_path / "concat.onnx"), SPEC, limit=CONTEXT, rows=ROWS)
    tokens = np.random.default_rng(2).integers(0, VOCABULARY, (2, 20))
    for one in (pair.device, concat):
        one.start(2)
    for steps, lengths in ((9, (9, 4)), (1, (1, 1)), (6, (2, 6)), (1, (1, 1))):
        got, expected = (one.forward(tokens[:, :steps], np.array(lengths)) for one in (pair.device, concat))
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_full_device_says_so_and_can_be_asked_again(graph: Path) -> None:
    program = HostProgram(graph, most=ROW + 2048)
    decoder = open_decoder(program, SPEC, limit=CONTEXT, rows=1)
    step = np.array([[3, 5]]), np.array([2])
    with pytest.raises(StageError, match="cudaErrorMemoryAllocation"):
        decoder.forward(*step)
    program.memory.most = 1 << 30
    np.testing.assert_array_equal(
        decoder.forward(*step), portable_decoder(graph, SPEC, limit=CONTEXT, rows=1).forward(*step)
    )
    decoder.close()
    assert program.memory.held == {}


def feeds(new: int, past: int) -> dict[str, np.ndarray]:
    """What the canonical form of the graph takes."""
    random = np.random.default_rng(new + past)
    return {
        "input_ids": random.integers(0, VOCABULARY, (2, new)),
        "position_ids": np.tile(np.arange(past, past + new), (2, 1)),
        "attention_mask": np.ones((2, past + new), np.int64),
        **{name: random.standard_normal((2, HEADS, past, SIZE)).astype(np.float32) for name in PASTS},
    }


def test_a_session_fetches_what_was_written_in_place(graph: Path, tmp_path: Path) -> None:
    program = HostProgram(graph)
    session = growing(EngineSession(program))
    concat = portable_session(language_graph(tmp_path / "concat.onnx"))
    for new, past in ((5, 0), (1, 5), (3, 9)):
        got, expected = (one.run(feeds(new, past)) for one in (session, concat))
        assert got.keys() == expected.keys()
        np.testing.assert_allclose(got["logits"], expected["logits"], atol=1e-5)
        np.testing.assert_array_equal(got["present.0.key"], expected["present.0.key"])
        np.testing.assert_allclose(got["present.0.value"], expected["present.0.value"], atol=1e-6)
    assert presents(program.addresses) == {name: program.addresses[name] for name in PASTS}
    assert isinstance(session, OnDevice)
    held = session.device_memory().buffers
    assert 4 * ROW <= held < 4 * ROW + 8 * 2048  # two rows of keys and of values, once
    session.close()
    assert program.closed
    assert program.memory.held == {}


def test_a_session_without_device_memory_claims_none(graph: Path) -> None:
    assert not isinstance(growing(portable_session(graph)), OnDevice)  # type: ignore[arg-type]


def profile(least: int, most: int) -> Ranges:
    """Of up to 4 rows, so many new tokens."""
    tokens = ((1, least), (1, least), (4, most))
    rows = {name: tuple((count, HEADS, CONTEXT, SIZE) for count in (1, 1, 4)) for name in PASTS}
    mask = tuple((count, CONTEXT) for count in (1, 1, 4))
    places = tuple((count,) for count in (1, 1, 4))
    taken = {"input_ids": tokens, "position_ids": tokens, "attention_mask": mask, "write_indices": places}
    return taken | rows  # type: ignore[return-value]


def test_an_engine_names_its_aliases_and_single_tokens_are_replayed(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for TensorRT refuses to run with past and present at two addresses."""
    cuda = CudaRuntime()
    trt = TensorRT(cuda, (profile(2, CONTEXT), profile(1, 1)))
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt", trt)  # type: ignore[arg-type]
    plan = tmp_path / "engine-sm89.plan"
    plan.write_bytes(str(graph).encode())
    program = EngineProgram(plan, "tensorrt", Device("Some GPU", "sm89"), graphs=True)
    assert program.aliases == {"present.0.key": PASTS[0], "present.0.value": PASTS[1]}
    device = open_decoder(program, SPEC, limit=CONTEXT, rows=2)
    host = portable_decoder(graph, SPEC, limit=CONTEXT, rows=2)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 30))
    for begin, end, lengths in ((0, 9, (9, 4)), *((at, at + 1, (1, 1)) for at in range(9, 20))):
        got, expected = (one.forward(tokens[:, begin:end], np.array(lengths)) for one in (device, host))
        np.testing.assert_array_equal(got, expected)
    # Eleven single tokens: one goes plainly, the second is recorded and all from there on are replayed.
    assert (program.replay.replays, program.replay.reason) == (10, "")
    assert (trt.contexts[0].switches, trt.contexts[0].profile) == (1, 1)
    device.close()
    assert not cuda.handles
    assert not cuda.memory.held
