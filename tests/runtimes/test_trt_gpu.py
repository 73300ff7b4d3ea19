"""What only a GPU can show: engines answer as their graphs do, recordings as plain runs, and memory comes back."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from test_trt_api import HAS_CUDA
from test_trt_decoder import Exported, exported_from, lowered
from tiny_decoders import MakeTiny
from trt_graphs import FEEDS, SPEC, Block, quantized

from quantize import quantize
from runtimes import portable_decoder, portable_session
from runtimes._tensorrt.cuda import Cuda
from runtimes._tensorrt.decoder import EngineDecoder, open_decoder
from runtimes._tensorrt.devices import devices
from runtimes._tensorrt.in_place import InPlaceDecoder
from runtimes._tensorrt.program import EngineProgram
from runtimes._tensorrt.runtime import TensorRT
from runtimes._tensorrt.session import EngineSession
from runtimes.trt import RUNTIME as TRT
from runtimes.trt_rtx import RUNTIME
from toolkit.cache_names import is_past, present_of
from toolkit.cli import main
from toolkit.errors import StageError, UsageError
from toolkit.generation.static_cache import growing, has_static_cache
from toolkit.types import Calibration, Decoder, Engine, ExportedGraph, QuantizedGraph, TargetOptions

DEVICES, NO_DEVICE = devices()
HAS_RTX, HAS_TENSORRT = (importlib.util.find_spec(name) is not None for name in ("tensorrt_rtx", "tensorrt"))


WHY_NOT = NO_DEVICE or ("" if HAS_RTX and HAS_CUDA else "the extra rtx is not installed (pip install '.[rtx]')")
pytestmark = [
    pytest.mark.requires_gpu,
    pytest.mark.requires_rtx,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "nothing is missing"),
]


def plan_of(engine: Engine) -> Path:
    return engine.graph.path.parent / f"engine-{DEVICES[0].architecture}.plan"


def program(engine: Engine, **options: Any) -> EngineProgram:
    return EngineProgram(plan_of(engine), engine.details["library"], DEVICES[0], **options)


def built(folder: Path, scheme: str, runtime: TensorRT = RUNTIME) -> Engine:
    graph = half(folder / "q") if scheme == "fp16" else quantized(folder / "q", scheme)
    engine = runtime.build(runtime.lower(graph, folder / "lowered"))
    assert engine.status == "executed", engine.reason
    return engine


def half(folder: Path) -> QuantizedGraph:
    folder.mkdir()
    ir.save(Block(int8=False).model(), folder / "source.onnx")
    graph = ExportedGraph(folder / "source.onnx", SPEC)
    calibration = Calibration(lambda: iter([FEEDS]), 1, "the test's own input")
    return quantize(graph, "fp16", calibration, folder / "half", packed={})


def noise(got: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.linalg.norm(got.astype(np.float64) - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return built(tmp_path_factory.mktemp("int8"), "int8")


@pytest.fixture(scope="module")
def exported(tiny: MakeTiny) -> Exported:
    return exported_from(tiny)


@pytest.fixture(scope="module", params=["concat", "static"])
def language(request: pytest.FixtureRequest, exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder, options = tmp_path_factory.mktemp("language"), TargetOptions(cache=request.param)
    engine = RUNTIME.build(lowered(exported, "fp16", folder, options), options)
    assert engine.status == "executed", engine.reason
    return engine


@pytest.fixture
def decoders(exported: Exported, language: Engine) -> Iterator[tuple[Decoder, Decoder]]:
    """The engine with its cache on the device, and the graph it was compiled from on the processor."""
    spec = exported.spec.decoder
    assert spec is not None
    device = open_decoder(program(language), spec, limit=64, rows=3)
    assert isinstance(device, InPlaceDecoder if has_static_cache(language.graph.spec.inputs) else EngineDecoder)
    host = portable_decoder(language.graph.path, spec, limit=64, rows=3)
    yield device, host
    device.close()
    host.close()


@pytest.mark.parametrize("scheme", ["fp32", "fp16", "int8"])
def test_an_engine_answers_as_its_graph_does_at_every_size(scheme: str, tmp_path: Path) -> None:
    engine = built(tmp_path, scheme)
    session, graph = EngineSession(program(engine)), portable_session(engine.graph.path)
    for rows, width in ((2, 6), (1, 1), (4, 32), (2, 6)):
        feeds = {"x": np.resize(FEEDS["x"], (rows, width, 32)), "mask": np.ones((rows, 1, 1, width), np.bool_)}
        assert noise(session.run(feeds)["y"], graph.run(feeds)["y"]) < 0.02
    session.close()


def recordings_answer_as_plain_runs_do(engine: Engine) -> EngineProgram:
    """Changing data with unchanged shapes, and changing shapes between them; answers the program that recorded."""
    recorded = program(engine, graphs=True)
    session, plain = EngineSession(recorded), EngineSession(program(engine, graphs=False))
    other = {"x": -FEEDS["x"], "mask": FEEDS["mask"]}
    short = {"x": FEEDS["x"][:1], "mask": FEEDS["mask"][:1]}
    for feeds in (FEEDS, FEEDS, other, FEEDS, short, short, other, FEEDS, other):
        # Not to the bit: TensorRT-RTX takes faster kernels for a shape once it has compiled them.
        assert noise(session.run(feeds)["y"], plain.run(feeds)["y"]) < 0.02
    for one in (session, plain):
        one.close()
    return recorded


def test_graphs_that_tensorrt_rtx_records_answer_as_plain_runs_do(int8: Engine) -> None:
    assert "records CUDA graphs itself" in recordings_answer_as_plain_runs_do(int8).replay.reason


@pytest.mark.skipif(not HAS_TENSORRT, reason="tensorrt is not installed (pip install '.[tensorrt]')")
def test_graphs_that_we_record_answer_as_plain_runs_do(tmp_path: Path) -> None:
    replay = recordings_answer_as_plain_runs_do(built(tmp_path, "int8", TRT)).replay
    # FEEDS and other share a shape, in runs of 4 and 3: all but the first of each, and one of the two short ones.
    assert (replay.replays, replay.reason) == (6, "")


def test_every_profile_of_a_language_model_answers(exported: Exported, language: Engine) -> None:
    opened = program(language)
    pasts = [spec.name for spec in opened.inputs if is_past(spec.name) and has_static_cache(opened.inputs)]
    assert opened.aliases == {present_of(past): past for past in pasts}
    session, graph = growing(EngineSession(opened)), portable_session(language.graph.path)
    for feeds in (*exported.golden, *exported.golden):
        got, expected = session.run(feeds), graph.run(feeds)
        assert noise(got["logits"], expected["logits"]) < 0.02
        assert noise(got["present.1.value"], expected["present.1.value"]) < 0.02
    session.close()


def test_the_cache_on_the_device_gives_the_logits_of_the_processor(decoders: tuple[Decoder, Decoder]) -> None:
    tokens = np.random.default_rng(5).integers(3, 96, (3, 40))
    for one in decoders:
        one.start(3)
    at = 0
    for steps, lengths in ((9, (9, 4, 6)), (1, (1, 1, 1)), (1, (1, 1, 1)), (4, (2, 4, 1)), (1, (1, 1, 1))):
        got, expected = (one.forward(tokens[:, at : at + steps], np.array(lengths)) for one in decoders)
        at += steps
        assert noise(got, expected) < 0.02
    for one in decoders:
        one.start(1)
        one.forward(tokens[:1, :9], np.array([9]))
        one.rewind(4)
    got, expected = (one.forward(tokens[:1, 9:12], np.array([3])) for one in decoders)
    assert noise(got, expected) < 0.02


def test_rows_near_the_end_of_the_cache_go_one_by_one(decoders: tuple[Decoder, Decoder]) -> None:
    """An engine whose cache is in place has no room for padding there; each row is bound where it begins."""
    tokens = np.random.default_rng(6).integers(3, 96, (3, 50))
    for one in decoders:
        one.start(3)
    for steps, lengths in ((50, (50, 10, 30)), (20, (3, 20, 9)), (1, (1, 1, 1))):
        got, expected = (one.forward(tokens[:, :steps], np.array(lengths)) for one in decoders)
        assert noise(got, expected) < 0.02


def test_greedy_tokens_are_those_of_the_processor_but_for_ties(decoders: tuple[Decoder, Decoder]) -> None:
    device, host = decoders
    tokens, lengths = np.array([[5, 6, 7, 8], [9, 0, 0, 0], [20, 21, 0, 0]]), np.array([4, 1, 2])
    for one in decoders:
        one.start(3)
    for _ in range(17):
        got, expected = (one.forward(tokens, lengths) for one in (device, host))
        chosen = got.argmax(axis=1)
        behind = expected.max(axis=1) - expected[np.arange(3), chosen]
        # In half precision the best of two nearly equal logits may be either.
        assert behind.max() <= 0.02 * np.abs(expected).max()
        tokens, lengths = chosen[:, None], np.ones(3, np.int64)


def test_memory_comes_back(int8: Engine) -> None:
    cuda = Cuda()
    free = []
    for _ in range(20):
        session = EngineSession(program(int8))
        session.run(FEEDS)
        held = session.device_memory()
        assert held.buffers > 0
        session.close()
        free.append(cuda.free_bytes())
    # The first openings load what the process keeps; CUDA gives memory out in pieces of 2 MiB.
    assert free[2] - free[-1] < 8 << 20
    cuda.close()


def test_what_the_engine_does_not_take(int8: Engine, tmp_path: Path) -> None:
    session = EngineSession(program(int8))
    with pytest.raises(UsageError, match="outside what the engine was built for"):
        session.run({"x": np.zeros((5, 6, 32), np.float32), "mask": np.ones((5, 1, 1, 6), np.bool_)})
    assert session.run(FEEDS)["y"].shape == (2, 6, 32)
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(FEEDS)
    (tmp_path / "broken.plan").write_bytes(plan_of(int8).read_bytes()[:1000])
    with pytest.raises(StageError, match="does not load") as caught:
        EngineProgram(tmp_path / "broken.plan", "tensorrt_rtx", DEVICES[0])
    assert "logged no reason" not in str(caught.value)


def test_cudas_own_name_reaches_the_user() -> None:
    cuda = Cuda()
    with pytest.raises(StageError, match="cudaMalloc answered cudaErrorMemoryAllocation"):
        cuda.allocate(1 << 50)
    cuda.free(cuda.allocate(1 << 10))
    cuda.close()


@pytest.mark.heavy
def test_export_check_and_bench_run_the_engine(tmp_path: Path) -> None:
    def toolkit(*arguments: str) -> dict[str, Any]:
        done = CliRunner().invoke(main, [*arguments, "--json"])
        assert done.exit_code == 0, done.output
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    answer = toolkit("export", "--model", "vit-digits", "--target", "trt-rtx-int8", "--output", str(tmp_path))
    assert answer["bundles"][0]["engine"]["status"] == "executed"
    bundle = str(tmp_path / "vit-digits-trt-rtx-int8")
    assert DEVICES[0].name in toolkit("check", bundle)["ran_on"]
    result = toolkit("bench", bundle, "--runs", "10")["results"][0]
    assert DEVICES[0].name in result["ran_on"]
    assert result["samples_per_second"] > 0
    assert result["device"]["total"] > 0
