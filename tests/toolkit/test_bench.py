"""Benchmarks run for real, on tiny bundles; what is tested is the accounting, never the time."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundles import image_bundle, text_bundle

from toolkit import bench_worker, commands
from toolkit.bench import (
    RUNS_PER_TURN,
    BenchReport,
    Contender,
    Result,
    Settings,
    bench,
    bench_bundle,
    on_device,
    sized_inputs,
)  # fmt: skip
from toolkit.bench_worker import peak_rss, pin
from toolkit.cli import main
from toolkit.errors import StageError, UsageError
from toolkit.types import DeviceMemory, Dim, TensorSpec

FACTORY = """
import torch
from tiny_bundles import image_weights


class Negated(torch.nn.Module):
    def forward(self, pixel_values):
        first, second = (torch.from_numpy(array) for array in image_weights())
        return {"logits": -(pixel_values.flatten(1) @ first).relu() @ second}


def make():
    return Negated(), {"pixel_values": torch.zeros(2, 1, 8, 8)}
"""

SETTINGS = Settings(runs=7, warmup=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    image_bundle(folder / "image")
    image_bundle(folder / "other")
    text_bundle(folder / "text")
    return folder


def test_two_bundles_run_in_turn_on_the_same_inputs(root):
    report = bench_bundle(root / "image", str(root / "other"), {"batch": 3}, SETTINGS)
    assert report.sizes == {"batch": 3}
    assert report.runs == 2 * RUNS_PER_TURN
    assert [one.label for one in report.results] == ["image", "other"]
    for one in report.results:
        assert 0 < one.min_ms <= one.median_ms <= one.p90_ms
        assert len(one.rounds_ms) == 2
        assert 0 < one.memory < one.peak
        assert "CPUExecutionProvider" in one.ran_on
        assert one.samples_per_second == pytest.approx(3000 / one.median_ms)
        assert one.device is None
    first, second = (np.array(one.rounds_ms) for one in report.results)
    assert report.ratio is not None
    assert report.ratio.median == pytest.approx(np.median(second / first))
    assert report.ratio.p10 <= report.ratio.median <= report.ratio.p90
    assert report.cosine == {"logits": pytest.approx(1.0)}


def test_pytorch_runs_the_model_that_the_bundle_was_made_from(root, tmp_path, monkeypatch):
    (tmp_path / "tiny_factory.py").write_text(FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    bundle = image_bundle(tmp_path / "bundle", family="module", source_name="tiny_factory:make")
    report = bench_bundle(bundle, "torch", {"batch": 3}, Settings(runs=1, warmup=0))
    assert [one.label for one in report.results] == ["bundle", "PyTorch"]
    assert "torch" in report.results[1].ran_on
    # The factory's module negates the logits, so that the comparison is seen to be a real one.
    assert report.cosine == {"logits": pytest.approx(-1.0)}


def test_one_bundle_alone_has_no_ratio(root):
    report = bench_bundle(root / "text", None, {"sequence": 16}, SETTINGS)
    assert report.sizes == {"batch": 2, "sequence": 16}
    assert report.ratio is None
    assert report.cosine is None


def test_the_command_prints_and_answers_json(root):
    arguments = ["bench", str(root / "image"), "--vs", str(root / "other"), "--runs", "5", "--warmup", "0"]
    shown = CliRunner().invoke(main, arguments)
    assert shown.exit_code == 0, shown.output
    assert "times as fast as other" in shown.stdout
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout)
    assert found["sizes"] == {"batch": 2}
    assert len(found["results"]) == 2


@pytest.mark.parametrize(
    ("bundle", "vs", "wanted", "words"),
    [
        ("image", None, {"sequence": 8}, "no dimension 'sequence'"),
        ("image", None, {"batch": 5}, "batch 5 is outside its range"),
        ("image", "text", {}, "'pixel_values' is unknown"),
        ("image", "nowhere", {}, "is not a bundle"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_it_runs(root, bundle, vs, wanted, words):
    with pytest.raises(UsageError, match=words):
        bench_bundle(root / bundle, vs and str(root / vs), wanted, SETTINGS)


def test_a_workers_error_is_raised_as_what_it_was(root):
    contender = Contender("image", "bundle", root / "image")
    with pytest.raises(UsageError, match=r"image: .*pixel_values"):
        bench([contender], {"wrong": np.zeros(1, np.float32)}, {}, SETTINGS)


def test_a_worker_that_dies_is_named_with_its_last_words(root, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os\nos.write(2, b'last words')\nos._exit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(StageError, match="image stopped with exit code 3: last words"):
        bench([Contender("image", "bundle", root / "image")], {}, {}, SETTINGS)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are pinned on Linux only")
class OnSomeDevice:
    """A session whose work lies in a device's own memory."""

    ran_on = "a device"

    def run(self, inputs):
        return {"y": inputs["x"]}

    def device_memory(self):
        return DeviceMemory(total=3 << 20, context=2 << 20, buffers=1 << 10)

    def close(self): ...


def test_a_devices_own_memory_is_asked_for_and_told(tmp_path, capsys):
    np.savez(tmp_path / "inputs.npz", x=np.ones(3))
    job = {"inputs": tmp_path / "inputs.npz", "outputs": tmp_path / "outputs.npz"}
    work = bench_worker._Batch(job, OnSomeDevice())
    answer = json.loads(json.dumps(bench_worker._obey(["memory"], work, 0, 1)))
    found = on_device(answer)
    assert found == OnSomeDevice().device_memory()
    assert on_device({**answer, "device": None}) is None
    result = Result("engine", "a device", 1.0, 1.0, 1.0, 0, 0, (1.0,), 1000.0, found)
    commands.bench._print(BenchReport({"batch": 1}, 1, 5, None, (result,)))
    printed = capsys.readouterr().out
    assert "engine holds 3.1 MB of the device's memory, of which 2.1 MB for activations and 1.0 kB" in printed
    assert "1000.0" in printed


def test_threads_pins_the_workers_to_that_many_processors(root):
    report = bench_bundle(root / "image", None, {}, Settings(runs=1, warmup=0, threads=1))
    assert report.threads == 1
    with pytest.raises(UsageError, match="100000 threads"):
        bench_bundle(root / "image", None, {}, Settings(runs=1, warmup=0, threads=100_000))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors are pinned on Linux only")
def test_pinning_leaves_that_many_processors():
    before = os.sched_getaffinity(0)
    try:
        pin(1)
        assert len(os.sched_getaffinity(0)) == 1
    finally:
        os.sched_setaffinity(0, before)


def test_peak_memory_grows_with_what_is_touched():
    before = peak_rss()
    touched = np.ones(64 << 20, dtype=np.uint8)
    # Whatever else the process freed before may hide part of it, but not all of a peak above the peak.
    extra = np.ones(max(before, 64 << 20), dtype=np.uint8)
    assert peak_rss() >= before + touched.nbytes // 2
    del extra


def test_inputs_are_repeated_or_cut_to_size():
    specs = (TensorSpec("x", "int64", ("batch", "sequence", 2)),)
    sample = {"x": np.arange(2 * 3 * 2).reshape(2, 3, 2)}
    dims = {"batch": Dim(1, 1, 8), "sequence": Dim(1, 5, 8)}
    inputs, sizes = sized_inputs(specs, dims, sample, {"batch": 3})
    assert sizes == {"batch": 3, "sequence": 5}
    assert inputs["x"].shape == (3, 5, 2)
    np.testing.assert_array_equal(inputs["x"][2], inputs["x"][0])
    np.testing.assert_array_equal(inputs["x"][:, 3], inputs["x"][:, 0])
    assert inputs["x"].flags.c_contiguous
