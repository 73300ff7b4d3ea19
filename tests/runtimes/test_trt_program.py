"""The engine's program against stand-ins for CUDA and TensorRT: profiles, recordings, errors, what is given back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_program import CONTEXT, HEADS, LAYERS, SIZE, VOCABULARY, language_graph
from stand_in import CudaRuntime, TensorRT

from runtimes import portable_session
from runtimes._tensorrt.decoder import EngineDecoder
from runtimes._tensorrt.devices import Device
from runtimes._tensorrt.profile_choice import Ranges
from runtimes._tensorrt.program import CUDA_GRAPHS, EngineProgram
from runtimes._tensorrt.session import EngineSession
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.types import DecoderSpec

SPEC = DecoderSpec(LAYERS, VOCABULARY, CONTEXT)
Range = tuple[int, int]


def profile(new: Range, past: Range) -> Ranges:
    """Of up to 4 rows, so many new tokens behind so many."""
    tokens = ((1, new[0]), (1, new[1]), (4, new[1]))
    mask = ((1, new[0] + past[0]), (1, new[1] + past[1]), (4, new[1] + past[1]))
    cache = tuple((rows, HEADS, length, SIZE) for rows, length in ((1, past[0]), (1, past[1]), (4, past[1])))
    pasts = {f"past_key_values.0.{part}": cache for part in ("key", "value")}
    return {"input_ids": tokens, "position_ids": tokens, "attention_mask": mask, **pasts}  # type: ignore[dict-item]


PROFILES = (profile((1, 32), (0, 0)), profile((1, 16), (1, 48)), profile((1, 1), (1, 63)))


class Machine:
    """A machine with both stand-ins and an engine file."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, **odd: Any) -> None:
        self.graph = language_graph(folder / "model.onnx")
        self.cuda = CudaRuntime()
        self.trt = TensorRT(self.cuda, PROFILES, **odd)
        monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", self.cuda)  # type: ignore[arg-type]
        monkeypatch.setitem(sys.modules, "tensorrt", self.trt)  # type: ignore[arg-type]
        self.plan = folder / "engine-sm89.plan"
        self.plan.write_bytes(str(self.graph).encode())

    def open(self, **options: Any) -> EngineProgram:
        return EngineProgram(self.plan, "tensorrt", Device("Some GPU", "sm89"), **options)

    def is_empty(self) -> bool:
        return not self.cuda.handles and not self.cuda.memory.held


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def step(new: int, past: int, rows: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(new + past)
    cache = {
        f"past_key_values.0.{part}": random.standard_normal((rows, HEADS, past, SIZE)).astype(np.float32)
        for part in ("key", "value")
    }
    return {
        "input_ids": random.integers(0, VOCABULARY, (rows, new)),
        "position_ids": np.tile(np.arange(past, past + new), (rows, 1)),
        "attention_mask": np.ones((rows, past + new), np.int64),
        **cache,
    }


def test_a_session_answers_as_the_graph_and_gives_everything_back(machine: Machine) -> None:
    session, graph = EngineSession(machine.open()), portable_session(machine.graph)
    assert session.ran_on == "tensorrt 11.stand-in Some GPU"
    # The mask is [1, 6] in the second and the third, of different profiles.
    for feeds in (step(5, 0, 2), step(6, 0), step(1, 5), step(3, 4), step(1, 5)):
        got, expected = session.run(feeds), graph.run(feeds)
        for name, array in expected.items():
            np.testing.assert_array_equal(got[name], array)
    assert session.device_memory().context == 4096
    assert session.device_memory().total > session.device_memory().buffers > 0
    session.close()
    session.close()
    assert machine.is_empty()
    with pytest.raises(UsageError, match="closed"):
        session.run(step(1, 1))


def test_the_decoder_switches_profiles_once(machine: Machine) -> None:
    session = portable_session(machine.graph)
    inputs = session.inputs  # type: ignore[attr-defined]
    device = EngineDecoder(machine.open(), SPEC, limit=CONTEXT, rows=2)
    host = SessionDecoder(session, inputs, SPEC, limit=CONTEXT, rows=2)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (2, 30))
    for one in (device, host):
        one.start(2)
    for begin, end in ((0, 9), *((at, at + 1) for at in range(9, 20))):
        got, expected = (one.forward(tokens[:, begin:end], np.full(2, end - begin)) for one in (device, host))
        np.testing.assert_array_equal(got, expected)
    assert machine.trt.contexts[0].switches == 1
    assert machine.trt.contexts[0].profile == 2
    device.close()
    assert machine.is_empty()


@pytest.mark.parametrize("asked", ["argument", "environment"])
def test_runs_are_recorded_where_asked_for(asked: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    if asked == "environment":
        monkeypatch.setenv(CUDA_GRAPHS, "1")
    program = machine.open(**({"graphs": True} if asked == "argument" else {}))
    session, graph = EngineSession(program), portable_session(machine.graph)
    for feeds in (step(1, 9), step(4, 2), step(4, 2), {**step(4, 2), "input_ids": np.zeros((1, 4), np.int64)}):
        np.testing.assert_array_equal(session.run(feeds)["logits"], graph.run(feeds)["logits"])
    assert (machine.cuda.launches, program.replay.replays, program.replay.reason) == (2, 2, "")
    session.close()
    assert machine.is_empty()


def test_a_recording_is_not_replayed_for_other_addresses(machine: Machine) -> None:
    """Each start finds the two buffers of a layer in the other order."""
    session = portable_session(machine.graph)
    inputs = session.inputs  # type: ignore[attr-defined]
    device = EngineDecoder(machine.open(graphs=True), SPEC, limit=CONTEXT, rows=1)
    host = SessionDecoder(session, inputs, SPEC, limit=CONTEXT, rows=1)
    tokens = np.random.default_rng(1).integers(0, VOCABULARY, (5, 1, 5))
    for prompt in tokens:
        for one in (device, host):
            one.start(1)
        got, expected = (one.forward(prompt, np.array([5])) for one in (device, host))
        np.testing.assert_array_equal(got, expected)
    # What the last prompt wrote must lie where the next step reads.
    got, expected = (one.forward(tokens[0][:, :1], np.array([1])) for one in (device, host))
    np.testing.assert_array_equal(got, expected)
    device.close()
    assert machine.is_empty()


def test_what_cannot_be_recorded_runs_plainly_and_says_why(machine: Machine) -> None:
    machine.cuda.uncapturable = True
    program = machine.open(graphs=True)
    session, graph = EngineSession(program), portable_session(machine.graph)
    for _ in range(4):
        np.testing.assert_array_equal(session.run(step(4, 2))["logits"], graph.run(step(4, 2))["logits"])
    assert machine.cuda.launches == 0
    assert "cudaErrorStreamCaptureInvalidated" in program.replay.reason
    session.close()
    assert machine.is_empty()


def test_a_run_that_fails_says_what_tensorrt_logged(machine: Machine) -> None:
    session = EngineSession(machine.open(graphs=True))
    session.run(step(4, 2))
    machine.trt.contexts[0].fails = True
    for _ in range(2):
        with pytest.raises(StageError, match="did not run: an illegal memory access"):
            session.run(step(4, 2))
    assert machine.cuda.recording is None
    session.close()
    assert machine.is_empty()


@pytest.mark.parametrize(
    ("odd", "kind", "words"),
    [
        ({"on_host": "input_ids"}, UnsupportedError, "'input_ids' is a tensor of sizes"),
        ({"dtype": "INT4"}, UnsupportedError, "'input_ids' is INT4, which numpy does not have"),
    ],
)
def test_an_engine_that_cannot_be_served_is_refused_and_given_back(
    odd: dict[str, Any], kind: type[Exception], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path, monkeypatch, **odd)
    with pytest.raises(kind, match=words):
        machine.open()
    assert machine.is_empty()


def test_sizes_that_hang_on_data_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = EngineSession(Machine(tmp_path, monkeypatch, data_dependent="logits").open())
    with pytest.raises(UnsupportedError, match="the size of output 'logits' depends on the inputs' values"):
        session.run(step(4, 2))


def test_a_file_that_does_not_load_says_what_tensorrt_logged(machine: Machine) -> None:
    machine.plan.write_bytes(b"not an engine")
    with pytest.raises(StageError, match=r"does not load .*: the plan is of another version") as caught:
        machine.open()
    assert "export again" in caught.value.hint
    assert machine.is_empty()


def test_cudas_own_name_and_what_to_do(machine: Machine) -> None:
    memory: Any = machine.open().memory
    with pytest.raises(StageError, match="cudaMalloc answered cudaErrorMemoryAllocation: said by") as caught:
        memory.allocate(1 << 40)
    assert "nvidia-smi" in caught.value.hint
