"""Sessions over an engine up to the device: buffers, profiles, recordings, and runs on host memory in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from host_program import HostMemory, HostProgram
from hypothesis import given
from hypothesis import strategies as st

from runtimes._tensorrt.memory import Buffer, Staging
from runtimes._tensorrt.profile_choice import Ranges, choose_profile
from runtimes._tensorrt.replay import Replay
from runtimes._tensorrt.session import EngineSession
from toolkit.errors import StageError, UsageError
from toolkit.types import OnDevice, Session

GRAPH = """
<ir_version: 10, opset_import: ["": 21]>
g (float16[batch, n] x, bool[batch, n] mask) => (float16[batch, n] kept, int64[batch] count)
{
    single = Constant <value_float = 0.0> ()
    zero = Cast <to = 10> (single)
    kept = Where(mask, x, zero)
    whole = Cast <to = 7> (mask)
    axes = Constant <value_ints = [1]> ()
    count = ReduceSum <keepdims = 0> (whole, axes)
}
"""
HOLDS = {"x": ((1, 1), (2, 8), (4, 16)), "mask": ((1, 1), (2, 8), (4, 16))}


@pytest.fixture
def program(tmp_path: Path) -> HostProgram:
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "model.onnx")
    return HostProgram(tmp_path / "model.onnx", (HOLDS,))


def feeds(rows: int, width: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(rows * width)
    return {"x": random.standard_normal((rows, width)).astype(np.float16), "mask": random.random((rows, width)) < 0.5}


def test_a_session_answers_what_the_graph_does(program: HostProgram) -> None:
    session: Session = EngineSession(program)
    for rows, width in ((2, 8), (4, 16), (1, 1), (2, 8)):
        given_ = feeds(rows, width)
        got = session.run(given_)
        np.testing.assert_array_equal(got["kept"], np.where(given_["mask"], given_["x"], np.float16(0)))
        np.testing.assert_array_equal(got["count"], given_["mask"].sum(axis=1))
        assert (got["kept"].dtype, got["count"].dtype) == (np.float16, np.int64)


def test_answers_are_the_callers_own(program: HostProgram) -> None:
    session = EngineSession(program)
    first = session.run(feeds(2, 8))["kept"]
    before = first.copy()
    session.run(feeds(2, 7))
    np.testing.assert_array_equal(first, before)


def test_buffers_are_allocated_once_and_grow(program: HostProgram) -> None:
    session = EngineSession(program)
    session.run(feeds(1, 2))
    first = program.memory.allocations
    session.run(feeds(2, 2))
    assert program.memory.allocations == first
    session.run(feeds(4, 16))
    assert program.memory.allocations == first  # all within the 512 bytes that the first run took
    assert isinstance(session, OnDevice)
    assert session.device_memory().buffers == 4 * 512


def test_views_that_are_not_dense_arrive_whole(program: HostProgram) -> None:
    wide = feeds(4, 16)
    strided = {name: array[::2, ::2] for name, array in wide.items()}
    got = EngineSession(program).run(strided)["kept"]
    np.testing.assert_array_equal(got, np.where(strided["mask"], strided["x"], np.float16(0)))


def test_shapes_and_dtypes_that_the_engine_does_not_take(program: HostProgram) -> None:
    session = EngineSession(program)
    with pytest.raises(UsageError, match=r"the shape \[2, 17\] of 'x' is outside") as caught:
        session.run(feeds(2, 17))
    assert "[1, 1] to [4, 16]" in caught.value.hint
    with pytest.raises(UsageError, match="'x' is float32, not float16"):
        session.run({**feeds(2, 8), "x": np.zeros((2, 8), np.float32)})


def test_closing_frees_everything_also_after_a_failure(program: HostProgram) -> None:
    session = EngineSession(program)
    session.run(feeds(2, 8))
    program.fails = True
    with pytest.raises(StageError, match="did not run"):
        session.run(feeds(2, 8))
    program.fails = False
    assert session.run(feeds(2, 8))["count"].shape == (2,)
    session.close()
    session.close()
    assert program.closed
    assert program.memory.held == {}


def test_a_full_device_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "model.onnx")
    program = HostProgram(tmp_path / "model.onnx", most=3 * 512)
    session = EngineSession(program)
    with pytest.raises(StageError, match="cudaErrorMemoryAllocation"):
        session.run(feeds(2, 8))
    session.close()
    assert program.memory.held == {}


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, np.float16, np.bool_, np.int64])
def test_every_dtype_goes_there_and_back(dtype: Any) -> None:
    staging = Staging(HostMemory())
    array = np.arange(12).reshape(3, 4).astype(dtype)
    staging.send("x", array)
    staging.prepare("x", array.nbytes)
    staging.fetch("x", array.nbytes)
    got = staging.read("x", np.dtype(dtype).name, array.shape)
    assert got.dtype == array.dtype
    np.testing.assert_array_equal(got.view(np.uint8), array.view(np.uint8))


def test_an_empty_tensor_has_an_address_all_the_same() -> None:
    memory = HostMemory()
    staging = Staging(memory)
    assert staging.send("past", np.zeros((1, 2, 0, 4), np.float16)) in memory.held
    assert memory.copied == 0
    assert staging.read("past", "float16", (1, 2, 0, 4)).shape == (1, 2, 0, 4)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=40), st.integers(0, 5000))
def test_a_buffer_holds_what_was_asked_for_and_never_shrinks(sizes: list[int], most: int) -> None:
    memory = HostMemory()
    buffer, largest = Buffer(memory.allocate, memory.free), 0
    for size in sizes:
        address = buffer.require(size, most)
        assert memory.held[address].nbytes == buffer.size >= max(size, largest, 1)
        assert len(memory.held) == 1
        largest = buffer.size
    assert largest <= max(*sizes, most, 1) + 511
    buffer.close()
    assert memory.held == {}


def test_what_grows_step_by_step_is_allocated_a_few_times() -> None:
    memory = HostMemory()
    buffer = Buffer(memory.allocate, memory.free)
    for size in range(1, 1 << 20, 1 << 10):
        buffer.require(size, 1 << 20)
    assert memory.allocations <= 12


def decoder_profiles() -> tuple[Ranges, ...]:
    def one(new: tuple[int, ...], past: tuple[int, ...]) -> Ranges:
        ids = tuple((rows, length) for rows, length in zip((1, 1, 8), new, strict=True))
        cache = tuple((rows, 2, length, 16) for rows, length in zip((1, 1, 8), past, strict=True))
        return {"input_ids": ids, "past": cache}  # type: ignore[dict-item]

    return one((1, 16, 64), (0, 0, 0)), one((1, 16, 32), (1, 16, 32)), one((1, 1, 1), (1, 31, 63))


@pytest.mark.parametrize(
    ("new", "past", "wanted"),
    [(40, 0, 0), (1, 0, 0), (7, 20, 1), (2, 1, 1), (1, 1, 2), (1, 20, 2), (1, 63, 2)],
)
def test_single_tokens_get_the_decode_profile_and_chunks_their_own(new: int, past: int, wanted: int) -> None:
    assert choose_profile(decoder_profiles(), {"input_ids": (2, new), "past": (2, 2, past, 16)}) == wanted


def test_no_profile_for_it() -> None:
    with pytest.raises(UsageError, match=r"\[9, 1\] of 'input_ids'") as caught:
        choose_profile(decoder_profiles(), {"input_ids": (9, 1), "past": (9, 2, 0, 16)})
    assert "[1, 1] to [8, 64] or [1, 1] to [8, 32]" in caught.value.hint
    with pytest.raises(UsageError, match=r"of 'past'"):
        choose_profile(decoder_profiles(), {"input_ids": (1, 1), "past": (1, 2, 64, 16)})


class Stream:
    """Records as CUDA does: what is enqueued while recording does not run."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.ran, self.graphs = refuses, list[str](), list[Any]()
        self.recording: list[str] | None = None

    def put(self, what: str) -> None:
        (self.ran if self.recording is None else self.recording).append(what)

    def record(self, enqueue: Any) -> list[str]:
        self.recording = []
        enqueue()
        recorded, self.recording = self.recording, None
        if self.refuses:
            raise StageError("run", self.refuses)
        self.graphs.append(recorded)
        return recorded

    def launch(self, graph: list[str]) -> None:
        assert any(graph is one for one in self.graphs)
        self.ran.extend(graph)

    def drop(self, graph: list[str]) -> None:
        self.graphs = [one for one in self.graphs if one is not graph]


def test_the_first_run_goes_plainly_the_second_is_recorded_the_third_replayed() -> None:
    stream = Stream()
    replay = Replay(stream, wanted=True)
    for count, graphs in enumerate((0, 1, 1, 1), start=1):
        replay.run("a", lambda: stream.put("a"))
        assert (len(stream.ran), len(stream.graphs)) == (count, graphs)
    assert replay.replays == 3
    replay.run("b", lambda: stream.put("b"))
    assert (stream.ran[-1], stream.graphs) == ("b", [])
    replay.run("a", lambda: stream.put("a"))
    assert (stream.ran[-1], stream.graphs) == ("a", [])  # changed shapes must settle again
    replay.run("a", lambda: stream.put("a"))
    assert stream.graphs == [["a"]]
    replay.forget()
    assert stream.graphs == []


def test_a_recording_that_fails_is_told_and_not_tried_again() -> None:
    stream = Stream(refuses="cudaStreamEndCapture answered cudaErrorStreamCaptureInvalidated")
    replay = Replay(stream, wanted=True)
    for _ in range(4):
        replay.run("a", lambda: stream.put("a"))
    assert stream.ran == ["a"] * 4
    assert replay.replays == 0
    assert "cudaErrorStreamCaptureInvalidated" in replay.reason


def test_nothing_is_recorded_unasked() -> None:
    stream = Stream()
    replay = Replay(stream, wanted=False)
    for _ in range(3):
        replay.run("a", lambda: stream.put("a"))
    assert (stream.ran, stream.graphs) == (["a"] * 3, [])
    assert "not asked for" in replay.reason


def test_a_run_that_fails_is_no_first_run() -> None:
    stream = Stream()
    replay = Replay(stream, wanted=True)

    def fail() -> None:
        raise StageError("run", "no")

    with pytest.raises(StageError):
        replay.run("a", fail)
    replay.run("a", lambda: stream.put("a"))
    assert stream.graphs == []
