"""Writing a bundle, opening it again, and noticing everything that changed since."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.atomic import publish
from toolkit.bundle.check import check, describe_status
from toolkit.bundle.manifest import CHECK, MANIFEST, SCHEMA_VERSION, Manifest, relative_path
from toolkit.bundle.read import Bundle, evaluation, golden, is_bundle, open_bundle, report, verify_hashes
from toolkit.bundle.write import Contents, write_bundle
from toolkit.drift.measure import measure, observe
from toolkit.drift.report import DriftReport
from toolkit.errors import UsageError
from toolkit.target import Target
from toolkit.types import (
    Calibration,
    Dim,
    Engine,
    Evaluation,
    Gate,
    LoweredGraph,
    ModelSpec,
    Step,
    Tensors,
    TensorSpec,
)

ROOT = Path(__file__).parents[2]
GATE = Gate(min_sqnr_db=30, max_accuracy_drop=1)
COMMAND = "toolkit export --model 'my model' --target ort-cpu-int8"

SPEC = ModelSpec(
    name="tiny",
    family="test",
    kind="module",
    task="image-classification",
    source="tests:tiny",
    architecture="Tiny",
    inputs=(TensorSpec("x", "float32", ("batch", 4)), TensorSpec("shift", "int64", ())),
    outputs=(TensorSpec("logits", "float32", ("batch", 3)),),
    dims={"batch": Dim(1, 2, 8)},
    revision="0123abc",
    labels=("cat", "dog", "eel"),
)


class Linear:
    """A model in numpy behind the toolkit's own Session interface; `noise` is what a scheme would do to it."""

    ran_on = "numpy on the CPU"

    def __init__(self, noise: float = 0.0) -> None:
        generator = np.random.default_rng(5)
        self.weight = generator.standard_normal((4, 3)) + noise * generator.standard_normal((4, 3))

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return {"logits": (inputs["x"] @ self.weight + inputs["shift"]).astype(np.float32)}

    def close(self) -> None:
        pass


def batch(seed: int, rows: int) -> dict[str, np.ndarray]:
    x = np.random.default_rng(seed).standard_normal((rows, 4)).astype(np.float32)
    return {"x": x, "shift": np.array(seed, np.int64)}


GOLDEN = (batch(1, 2), batch(2, 3))
HELD_OUT = (batch(3, 20), batch(4, 12))


def labelled() -> Evaluation:
    answers = observe(Linear(), HELD_OUT)
    labels = np.concatenate([answer["logits"].argmax(1) for answer in answers]).astype(np.int64)
    return Evaluation("accuracy", HELD_OUT, labels)


def drift(noise: float) -> DriftReport:
    reference = observe(Linear(), GOLDEN)
    stages = [
        measure(name, Linear.ran_on, reference, observe(Linear(amount), GOLDEN), SPEC, gate=GATE)
        for name, amount in (("export", 0.0), ("build", noise))
    ]
    return DriftReport.of("torch 2.13 CPU fp32", stages)


def contents(work: Path, noise: float = 1e-4, **engine: Any) -> Contents:
    graph = work / "model.onnx"
    graph.write_bytes(b"graph")
    (work / "model.onnx.data").write_bytes(bytes(range(256)) * 64)
    (work / "engine-sm89.plan").write_bytes(b"plan")
    (work / "tokenizer.json").write_text("{}")
    lowered = LoweredGraph(graph, SPEC, (Step("quantize", "Linear", 4, "int8"),), "int8", "ort-cpu")
    given = {"status": "executed", "builder": "numpy 2.0", "files": (Path("engine-sm89.plan"),)} | engine
    return Contents(
        spec=SPEC,
        target=Target("ort-cpu", "int8"),
        engine=Engine(lowered, **given),
        report=drift(noise),
        golden=GOLDEN,
        golden_reference=observe(Linear(), GOLDEN),
        evaluation=labelled(),
        evaluation_reference=observe(Linear(), HELD_OUT),
        assets=(work / "tokenizer.json",),
        calibration=Calibration(lambda: iter(GOLDEN), 2, "digits", "ab" * 32),
        calibration_method="minmax",
        allow_unfused=("encoder.layer.3",),
    )


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.fixture
def folder(tmp_path: Path, work: Path) -> Path:
    with publish(tmp_path / "bundle") as place:
        write_bundle(place, contents(work), command=COMMAND)
    return tmp_path / "bundle"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads((folder / MANIFEST).read_text())
    change(data)
    (folder / MANIFEST).write_text(json.dumps(data))


def test_the_layout(folder: Path) -> None:
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        "assets/tokenizer.json",
        "drift.json",
        "engine-sm89.plan",
        "evaluation.safetensors",
        "manifest.json",
        "model.onnx",
        "model.onnx.data",
        "test_data_set_0/input_0.pb",
        "test_data_set_0/input_1.pb",
        "test_data_set_0/output_0.pb",
        "test_data_set_1/input_0.pb",
        "test_data_set_1/input_1.pb",
        "test_data_set_1/output_0.pb",
    ]


def test_the_manifest_says_how_it_was_made(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    assert manifest.command == COMMAND
    assert manifest.spec() == SPEC
    assert (manifest.target.runtime, manifest.target.scheme) == ("ort-cpu", "int8")
    assert manifest.engine_mapping()["graph"] == manifest.graph == "model.onnx"
    assert manifest.engine_mapping()["files"] == ["engine-sm89.plan"]
    assert manifest.steps == (Step("quantize", "Linear", 4, "int8"),)
    assert manifest.check_gate == GATE
    assert set(manifest.gates) == {"export", "build", CHECK}
    assert manifest.drift.worst["build"] == report(Bundle(folder, manifest)).stages[1].worst()
    assert manifest.calibration is not None
    assert (manifest.calibration.method, manifest.calibration.sha256) == ("minmax", "ab" * 32)
    assert manifest.allow_unfused == ("encoder.layer.3",)
    assert {"python", "numpy", "onnx"} <= set(manifest.libraries)
    assert manifest.created.utcoffset() is not None


def test_the_manifest_survives_json(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest


def test_weights_are_linked_and_assets_copied(folder: Path, work: Path) -> None:
    for name in ("model.onnx", "model.onnx.data", "engine-sm89.plan"):
        assert (folder / name).samefile(work / name)
    assert not (folder / "assets" / "tokenizer.json").samefile(work / "tokenizer.json")


def test_weights_are_copied_from_another_disk(tmp_path: Path, work: Path) -> None:
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    target = elsewhere / f"bundle-{os.getpid()}-{tmp_path.name}"
    try:
        with publish(target) as place:
            write_bundle(place, contents(work), command=COMMAND)
        assert verify_hashes(open_bundle(target)) == []
        assert (work / "model.onnx.data").exists()
    finally:
        shutil.rmtree(target, ignore_errors=True)


def test_a_graph_that_is_already_in_place_stays(tmp_path: Path) -> None:
    with publish(tmp_path / "bundle") as place:
        whole = contents(place)
        (place / "tokenizer.json").unlink()
        write_bundle(place, replace(whole, assets=()), command=COMMAND)
    assert verify_hashes(open_bundle(tmp_path / "bundle")) == []


def test_details_of_the_engine_become_plain_json(tmp_path: Path, work: Path) -> None:
    details = {"architectures": ("sm80", "sm89"), "seconds": 1.5, "log": Path("build.log")}
    tmp_path.joinpath("b").mkdir()
    manifest = write_bundle(tmp_path / "b", contents(work, details=details), command=COMMAND)
    assert manifest.engine.details == {"architectures": ["sm80", "sm89"], "seconds": 1.5, "log": "build.log"}


def test_assets_must_be_there_and_have_their_own_names(tmp_path: Path, work: Path) -> None:
    whole = contents(work)
    for assets, message in (((work / "no.json",), "not a file"), ((work / "tokenizer.json",) * 2, "two assets")):
        place = tmp_path / message.replace(" ", "-")
        place.mkdir()
        with pytest.raises(UsageError, match=message):
            write_bundle(place, replace(whole, assets=assets), command=COMMAND)


def test_golden_and_evaluation_come_back(folder: Path) -> None:
    bundle = open_bundle(folder)
    inputs, outputs = golden(bundle)
    assert [list(given) for given in inputs] == [["x", "shift"]] * 2
    for given, wrote in zip(inputs, GOLDEN, strict=True):
        for name, value in wrote.items():
            assert given[name].dtype == value.dtype
            assert given[name].shape == value.shape
            np.testing.assert_array_equal(given[name], value)
    np.testing.assert_array_equal(outputs[1]["logits"], Linear().run(GOLDEN[1])["logits"])
    found = evaluation(bundle)
    assert found is not None
    held_out, reference = found
    np.testing.assert_array_equal(held_out.labels, labelled().labels)
    np.testing.assert_array_equal(held_out.batches[1]["x"], HELD_OUT[1]["x"])
    assert held_out.batches[1]["shift"].shape == ()
    np.testing.assert_array_equal(reference[0]["logits"], Linear().run(HELD_OUT[0])["logits"])


def test_onnx_reads_the_golden_tensors(folder: Path) -> None:
    import onnx

    tensor = onnx.load_tensor(folder / "test_data_set_1" / "input_0.pb")
    assert tensor.name == "x"
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), GOLDEN[1]["x"])


def test_an_untouched_bundle_passes(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert verify_hashes(bundle) == []
    checked = check(bundle, Linear)
    assert checked.passed
    assert checked.reference == "torch 2.13 CPU fp32"
    (stage,) = checked.stages
    assert (stage.stage, stage.ran_on, stage.gate) == ("check", "numpy on the CPU", GATE)
    assert stage.task is not None
    assert (stage.task.count, stage.task.candidate_accuracy) == (32, 100)


def test_check_fails_under_the_gate_and_names_the_metric(folder: Path) -> None:
    checked = check(open_bundle(folder), lambda: Linear(noise=1.0))
    assert not checked.passed
    assert checked.moved == "check"
    assert any("SQNR" in sentence for sentence in checked.stages[0].failures)
    assert any("accuracy drop" in sentence for sentence in checked.stages[0].failures)


class Broken(Linear):
    def __init__(self, answer: dict[str, np.ndarray]) -> None:
        self.answer = answer

    def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "missing"),
        ({"logits": np.full((2, 3), np.nan, np.float32)}, "NaN"),
        ({"logits": np.zeros((2, 2), np.float32)}, "shape"),
    ],
)
def test_check_fails_on_a_broken_answer(folder: Path, answer: dict[str, np.ndarray], message: str) -> None:
    checked = check(open_bundle(folder), lambda: Broken(answer))
    assert not checked.passed
    assert message in checked.stages[0].failures[0]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)


def test_one_changed_bit_anywhere_is_found(folder: Path) -> None:
    names = list(open_bundle(folder).manifest.files)
    assert len(names) == 12
    for name in names:
        path = folder / name
        before = path.read_bytes()
        flip(path)
        assert verify_hashes(open_bundle(folder)) == [f"{name}: changed, another SHA-256 than the manifest's"]
        path.write_bytes(before)
    assert verify_hashes(open_bundle(folder)) == []


def test_check_refuses_a_changed_bundle_before_it_runs_anything(folder: Path) -> None:
    flip(folder / "model.onnx.data")
    (folder / "engine-sm89.plan").unlink()
    (folder / "assets" / "evil.py").touch()
    with pytest.raises(UsageError) as caught:
        check(open_bundle(folder), lambda: pytest.fail("a session was opened"))
    for words in (
        "model.onnx.data: changed",
        "engine-sm89.plan: missing",
        "assets/evil.py: not listed in the manifest",
    ):
        assert words in str(caught.value)


def test_a_longer_file_a_folder_and_a_pipe_are_found(folder: Path) -> None:
    with (folder / "drift.json").open("a") as stream:
        stream.write(" ")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").mkdir()
    (folder / "engine-sm89.plan").unlink()
    os.mkfifo(folder / "engine-sm89.plan")
    found = verify_hashes(open_bundle(folder))
    assert any(sentence.startswith("drift.json: changed, ") and "bytes" in sentence for sentence in found)
    assert "model.onnx: not a regular file" in found
    assert "engine-sm89.plan: not a regular file" in found


def test_a_linked_folder_is_extra_and_not_entered(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "input_0.pb").touch()
    (folder / "test_data_set_2").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert verify_hashes(open_bundle(folder)) == ["test_data_set_2: not listed in the manifest"]


def test_a_link_that_leaves_the_bundle_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.onnx.data").rename(tmp_path / "outside")
    (folder / "model.onnx.data").symlink_to(tmp_path / "outside")
    with pytest.raises(UsageError, match=r"'model.onnx.data' leaves the bundle"):
        open_bundle(folder)


def test_a_link_that_stays_inside_is_fine(folder: Path) -> None:
    (folder / "model.onnx").rename(folder / "assets" / "graph")
    (folder / "model.onnx").symlink_to(Path("assets") / "graph")
    assert verify_hashes(open_bundle(folder)) == ["assets/graph: not listed in the manifest"]


LEAVING = ["../secret", "/etc/passwd", "a/../../b", "a/./b", "a//b", "C:/x", "C:x", "a\\..\\b", "", ".", "..", "a\0b"]


@pytest.mark.parametrize("path", LEAVING)
def test_a_path_that_leaves_the_bundle_is_refused(folder: Path, path: str) -> None:
    with pytest.raises(ValueError, match="not a relative path"):
        relative_path(path)
    entry = {"sha256": "0" * 64, "bytes": 1}
    edit(folder, lambda data: data["files"].update({path: entry}))
    with pytest.raises(UsageError, match="not a relative path inside the bundle"):
        open_bundle(folder)


@pytest.mark.parametrize("place", ["graph", "engine"])
def test_graph_and_engine_paths_are_held_too(folder: Path, place: str) -> None:
    def forge(path: str) -> Callable[[dict[str, Any]], object]:
        if place == "graph":
            return lambda data: data.update(graph=path)
        return lambda data: data["engine"].update(files=[path])

    edit(folder, forge("../model.onnx"))
    with pytest.raises(UsageError, match="not a relative path"):
        open_bundle(folder)
    edit(folder, forge("unlisted.onnx"))
    with pytest.raises(UsageError, match=r"not listed in files: unlisted.onnx"):
        open_bundle(folder)


def test_a_bundle_answers_no_path_outside_itself(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.path("model.onnx") == folder / "model.onnx"
    for path in LEAVING:
        with pytest.raises(UsageError, match="leaves the bundle"):
            bundle.path(path)


def test_good_paths_pass() -> None:
    for path in ("model.onnx", "assets/tokenizer.json", "a..b/..c", "test_data_set_0/input_0.pb", "ü.bin"):
        assert relative_path(path) == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, "has schema 2, this toolkit reads up to 1"),
        ({"schema_version": 0}, "not a valid manifest: schema_version"),
        ({"schema_version": "1.5"}, "not a valid manifest: schema_version"),
        ({"surprise": True}, "surprise: Extra inputs"),
        ({"dims": {"batch": {"min": 1, "opt": 2, "max": 3, "step": 1}}}, "dims.batch.step"),
        ({"graph": 3}, "graph: Input should be a valid string"),
        ({"gates": {}}, "gates must hold 'check'"),
        ({"outputs": []}, "outputs"),
        ({"created": "2026-11-22T00:00:00"}, "created"),
        ({"files": {"model.onnx": {"sha256": "x", "bytes": 1}}}, "sha256"),
    ],
)
def test_a_manifest_of_another_shape_is_refused(folder: Path, change: dict[str, Any], message: str) -> None:
    edit(folder, lambda data: data.update(change))
    with pytest.raises(UsageError, match=message):
        open_bundle(folder)


def test_a_newer_schema_is_told_to_upgrade_whatever_else_is_in_it(folder: Path) -> None:
    (folder / MANIFEST).write_text('{"schema_version": 7, "all": "new"}')
    with pytest.raises(UsageError, match="schema 7") as caught:
        open_bundle(folder)
    assert "pip install --upgrade" in caught.value.hint


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1}'])
def test_a_broken_manifest_is_a_usage_error(folder: Path, text: bytes) -> None:
    (folder / MANIFEST).write_bytes(text)
    with pytest.raises(UsageError, match=r"manifest\.json"):
        open_bundle(folder)
    assert not is_bundle(folder)


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place, words in (
        (tmp_path, "has no manifest.json"),
        (tmp_path / "file", "not a folder"),
        (tmp_path / "no", "not a folder"),
    ):
        with pytest.raises(UsageError, match=words):
            open_bundle(place)
        assert not is_bundle(place)


def test_an_export_replaces_a_bundle_but_not_one_with_other_files_in_it(folder: Path, work: Path) -> None:
    assert is_bundle(folder)
    with publish(folder, replace=is_bundle) as place:
        write_bundle(place, contents(work), command="again")
    assert open_bundle(folder).manifest.command == "again"
    (folder / "my-notes.txt").write_text("keep me")
    assert not is_bundle(folder)
    with pytest.raises(UsageError, match="not to be replaced"), publish(folder, replace=is_bundle):
        pytest.fail("must be refused before any work")
    assert (folder / "my-notes.txt").read_text() == "keep me"


def test_a_bundle_without_an_evaluation(tmp_path: Path, work: Path) -> None:
    place = tmp_path / "bare"
    place.mkdir()
    bare = replace(contents(work), evaluation=None, evaluation_reference=(), calibration=None)
    write_bundle(place, bare, command=COMMAND)
    bundle = open_bundle(place)
    assert evaluation(bundle) is None
    assert bundle.manifest.calibration is None
    assert check(bundle, Linear).stages[0].task is None


def test_a_bundle_without_golden_inputs_cannot_pass(tmp_path: Path, work: Path) -> None:
    place = tmp_path / "bare"
    place.mkdir()
    write_bundle(place, replace(contents(work), golden=(), golden_reference=()), command=COMMAND)
    with pytest.raises(UsageError, match="no golden inputs"):
        check(open_bundle(place), Linear)


def test_check_can_hold_to_another_gate(tmp_path: Path, work: Path) -> None:
    place = tmp_path / "strict"
    place.mkdir()
    write_bundle(place, contents(work), command=COMMAND, gate=Gate(min_sqnr_db=1000))
    assert check(open_bundle(place), Linear).passed
    assert not check(open_bundle(place), lambda: Linear(1e-4)).passed


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"status": "executed"}, ("was executed", "numpy on the CPU")),
        ({"status": "built", "reason": "no GPU here"}, ("has not run (no GPU here)", "graph it was compiled from")),
        ({"status": "graph-only", "files": (), "reason": "no Mac"}, ("no engine, only its graph (no Mac)",)),
    ],
)
def test_the_status_sentence_is_honest(
    tmp_path: Path, work: Path, engine: dict[str, Any], words: tuple[str, ...]
) -> None:
    place = tmp_path / "b"
    place.mkdir()
    write_bundle(place, contents(work, **engine), command=COMMAND)
    sentence = describe_status(open_bundle(place), Linear.ran_on, executes=False)
    assert all(word in sentence for word in words)


def test_an_engine_that_runs_now_is_not_said_not_to_have_run(tmp_path: Path, work: Path) -> None:
    place = tmp_path / "b"
    place.mkdir()
    write_bundle(place, contents(work, status="built", reason="no GPU there"), command=COMMAND)
    sentence = describe_status(open_bundle(place), Linear.ran_on, executes=True)
    assert "has run here now" in sentence
    assert f"that of {Linear.ran_on}" in sentence


def test_reading_a_bundle_loads_no_heavy_library(folder: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nimport toolkit.atomic\nfrom toolkit.drift import table\n"
        "from toolkit.bundle.check import require_unchanged\nfrom toolkit.bundle.read import open_bundle\n"
        "require_unchanged(open_bundle(Path(sys.argv[1])))\n"
        "print({'torch', 'onnx', 'onnxruntime', 'transformers', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\n", done.stderr
