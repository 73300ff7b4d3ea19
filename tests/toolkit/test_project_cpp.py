"""The C++ project: built with the library that pip ships, and held to docs/selftest.md on sound and broken bundles."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from cpp_program import TEMPLATES, native, require_compiler, run
from onnx import numpy_helper
from sklearn.datasets import load_digits
from tiny_bundles import LABELS, image_bundle, image_weights, text_bundle
from tiny_lm import language_bundle

from toolkit.bundle.read import open_bundle
from toolkit.cli import main
from toolkit.errors import UnsupportedError
from toolkit.hashing import file_sha256
from toolkit.projects.cpp import PROJECT

CUDA = Path("/usr/local/cuda")


@dataclass(frozen=True)
class Program:
    """The C++ programs, run as a user would."""

    folder: Path

    def __call__(self, name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / name), *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, **environment}, timeout=300
        )


@pytest.fixture(scope="module")
def program(cpp_programs: Path) -> Program:
    return Program(cpp_programs)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_bundle(tmp_path_factory.mktemp("sound") / "tiny")


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    shutil.copytree(sound, tmp_path / "tiny")
    return tmp_path / "tiny"


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def rehash(bundle: Path, *names: str) -> None:
    """The manifest says what lies there now: only what a file holds is wrong with it."""
    entries = {name: {"sha256": file_sha256(bundle / name), "bytes": (bundle / name).stat().st_size} for name in names}
    edit(bundle, lambda manifest: manifest["files"].update(entries))


def tensor(bundle: Path, name: str, array: np.ndarray, called: str) -> None:
    (bundle / name).write_bytes(numpy_helper.from_array(array, called).SerializeToString())
    rehash(bundle, name)


def spoil_weights(bundle: Path, spoil: Callable[[np.ndarray], object]) -> None:
    path = bundle / "model.onnx.data"
    weights = np.frombuffer(path.read_bytes(), np.float32).copy()
    spoil(weights)
    path.write_bytes(weights.tobytes())
    rehash(bundle, "model.onnx.data")


def refused(program: Program, bundle: Path, reason: str) -> None:
    """The self-test fails with that reason, on both streams, and exit code 1."""
    done = program("selftest", bundle)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(reason, done.stdout.splitlines()[-1]), done.stdout
    assert done.stdout.splitlines()[-1].startswith("selftest FAILED: ")
    assert re.search(reason, done.stderr), done.stderr


def test_the_projects_own_tests_pass(program: Program) -> None:
    run("ctest", "--output-on-failure", cwd=program.folder)


def test_a_sound_bundle_passes(program: Program, sound: Path) -> None:
    done = program("selftest", sound)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "bundle tiny ort-cpu-fp32, made by toolkit 0.1.0"
    assert lines[1] == f"files {len(open_bundle(sound).manifest.files)} unchanged"
    assert lines[2] == f"runtime onnxruntime {onnxruntime.__version__} CPUExecutionProvider"
    assert re.fullmatch(r"output logits: SQNR 1\d\d\.\d dB, cosine 1\.0+, relative L2 .*, max abs .*: pass", lines[3])
    assert lines[-1] == "selftest passed"


def test_called_wrongly(program: Program, sound: Path) -> None:
    assert program("selftest").returncode == 2
    assert program("selftest", sound, sound).returncode == 2
    assert program("generate", sound, "--nonsense").returncode == 2
    assert program("embed", sound).returncode == 2


def _flip(bundle: Path) -> None:
    content = bytearray((bundle / "model.onnx.data").read_bytes())
    content[7] ^= 1
    (bundle / "model.onnx.data").write_bytes(content)


def _cut_file(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[:12])


def _cut_golden(bundle: Path) -> None:
    path = bundle / "test_data_set_0/input_0.pb"
    path.write_bytes(path.read_bytes()[:40])
    rehash(bundle, "test_data_set_0/input_0.pb")


def _link_out(bundle: Path) -> None:
    outside = bundle.parent / "outside"
    (bundle / "model.onnx").rename(outside)
    (bundle / "model.onnx").symlink_to(outside)


def _golden(shape: tuple[int, ...], dtype: type = np.float32) -> Callable[[Path], None]:
    return lambda bundle: tensor(bundle, "test_data_set_0/input_0.pb", np.zeros(shape, dtype), "pixel_values")


def _manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda bundle: edit(bundle, change)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "corrupted": (_flip, r"model\.onnx\.data: changed, another SHA-256 than the manifest's"),
    "cut": (_cut_file, r"model\.onnx: changed, 12 bytes where the manifest has \d+"),
    "missing": (lambda bundle: (bundle / "model.onnx").unlink(), r"model\.onnx: missing"),
    "no manifest": (lambda bundle: (bundle / "manifest.json").unlink(), r"manifest\.json: missing"),
    "newer": (
        _manifest(lambda it: it.update(schema_version=2)),
        r"manifest\.json: schema version 2; this program reads 1",
    ),
    "broken JSON": (
        lambda bundle: (bundle / "manifest.json").write_text('{\n"model": [1,\n', encoding="utf-8"),
        r"manifest\.json: not readable JSON: line 3",
    ),
    "leads out": (
        _manifest(lambda it: it["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}})),
        r"'\.\./x' is not a relative path inside the bundle",
    ),
    "absolute": (
        _manifest(lambda it: it["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}})),
        r"'/etc/passwd' is not a relative path",
    ),
    "graph not listed": (_manifest(lambda it: it.update(graph="other.onnx")), r"'other\.onnx' is not listed in files"),
    "engine not listed": (
        _manifest(lambda it: it["engine"].update(files=["../model.ort"])),
        r"'\.\./model\.ort' is not listed in files",
    ),
    "no gate": (_manifest(lambda it: it["gates"].clear()), r"manifest\.json: gates must hold 'check'"),
    "links out": (_link_out, r"model\.onnx: leads out of the bundle"),
    "wrong shape": (
        _golden((1, 3, 8, 8)),
        r"input 'pixel_values' is float32 \[1, 3, 8, 8\]; the model takes float32 \[batch, 1, 8, 8\]",
    ),
    "wrong type": (_golden((1, 1, 8, 8), np.float64), r"input 'pixel_values' is float64 \[1, 1, 8, 8\]"),
    "out of range": (_golden((9, 1, 8, 8)), r"input 'pixel_values' has batch 9; the model takes 1 to 4"),
    "another input": (
        lambda bundle: tensor(bundle, "test_data_set_0/input_0.pb", np.zeros(1, np.float32), "pixels"),
        r"there is no input 'pixels'; the model takes pixel_values",
    ),
    "another interface": (
        _manifest(lambda it: it["inputs"][0].update(dtype="float16")),
        r"input 'pixel_values' of the engine is float32 \[batch, 1, 8, 8\]; the manifest declares float16",
    ),
    "cut golden": (_cut_golden, r"test_data_set_0/input_0\.pb: not an ONNX tensor, or cut off"),
    "no golden": (
        lambda bundle: [(bundle / name).rename(bundle / f"x{name}") for name in ("test_data_set_0", "test_data_set_1")],
        r"test_data_set_0/input_0\.pb: missing",
    ),
    "drifted": (
        lambda bundle: spoil_weights(bundle, lambda weights: np.multiply(weights, 1.1, out=weights)),
        r"output 'logits' drifted: SQNR 13\.\d dB, the gate asks for at least 40\.0 dB",
    ),
    "not a number": (
        lambda bundle: spoil_weights(bundle, lambda weights: weights.fill(np.nan)),
        r"output 'logits' has \d+ values that are NaN, infinite or above 1e100",
    ),
    "answers another shape": (
        lambda bundle: tensor(bundle, "test_data_set_1/output_0.pb", np.zeros((1, 10), np.float32), "logits"),
        r"output 'logits' has shape \[3, 10\], the reference has \[1, 10\]",
    ),
    "no engine": (
        _manifest(lambda it: it["engine"].update(files=[], reason="no such device")),
        r"the bundle has no engine that this program runs: no such device",
    ),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_bundle_fails_with_the_reason(program: Program, bundle: Path, how: str) -> None:
    damage, reason = BROKEN[how]
    damage(bundle)
    refused(program, bundle, reason)


def test_a_bundle_for_a_gpu_needs_a_program_with_tensorrt(program: Program, bundle: Path) -> None:
    (bundle / "engine-sm89.plan").write_bytes(b"compiled elsewhere")
    rehash(bundle, "engine-sm89.plan")
    edit(bundle, lambda manifest: manifest["engine"].update(files=["engine-sm89.plan"]))
    refused(program, bundle, r"this program was built without TensorRT, which runs ort-cpu-fp32")


def test_padding_that_nobody_attends_to_is_not_drift(program: Program, tmp_path: Path) -> None:
    """The encoder with its vectors as another output, whose reference is wrong where the mask is 0, and only there."""
    folder = text_bundle(tmp_path / "text")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.output.append(onnx.helper.make_tensor_value_info("vectors", 1, ["batch", "sequence", 12]))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    rehash(folder, "model.onnx")
    opened = open_bundle(folder)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    read = {name: numpy_helper.to_array(onnx.load_tensor(folder / f"test_data_set_0/input_{index}.pb"))
            for index, name in enumerate(spec.name for spec in opened.manifest.inputs)}  # fmt: skip
    vectors = session.run(["vectors"], read)[0]
    assert (read["attention_mask"] == 0).any()
    vectors[read["attention_mask"] == 0] = 1e3
    tensor(folder, "test_data_set_0/output_1.pb", vectors, "vectors")
    spec = {"name": "vectors", "dtype": "float32", "shape": ["batch", "sequence", 12]}
    edit(folder, lambda manifest: manifest["outputs"].append(spec))
    done = program("selftest", folder)
    assert done.returncode == 0, done.stdout
    vectors[read["attention_mask"] == 1] += 1
    tensor(folder, "test_data_set_0/output_1.pb", vectors, "vectors")
    refused(program, folder, "output 'vectors' drifted")


def test_an_engine_of_one_fixed_shape_as_an_ort_file(program: Program, bundle: Path) -> None:
    """Golden inputs of one and of three rows go through an engine that takes exactly one."""
    model = onnx.load(bundle / "model.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(bundle / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    rehash(bundle, "model.ort")
    specs = {"inputs": [{"name": "pixel_values", "dtype": "float32", "shape": [1, 1, 8, 8]}],
             "outputs": [{"name": "logits", "dtype": "float32", "shape": [1, 10]}], "files": ["model.ort"]}  # fmt: skip
    edit(bundle, lambda manifest: (manifest.update(graph="model.ort"), manifest["engine"].update(specs)))
    done = program("selftest", bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    tensor(bundle, "test_data_set_0/input_0.pb", np.zeros((1, 1, 9, 8), np.float32), "pixel_values")
    refused(program, bundle, r"the model takes float32 \[batch, 1, 8, 8\]")


def _processing(bundle: Path, expected: np.ndarray, **entry: object) -> None:
    """A graph before the model that doubles bytes to floats, with one sample."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", ["image"], ["wide"], to=1),
            onnx.helper.make_node("Add", ["wide", "wide"], ["y"]),
        ],
        "doubled",
        [onnx.helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["width"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["width"])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    (bundle / "preprocess.onnx").write_bytes(model.SerializeToString())
    (bundle / "preprocess_data_set_0").mkdir(exist_ok=True)
    rehash(bundle, "preprocess.onnx")
    tensor(bundle, "preprocess_data_set_0/input_0.pb", np.array([1, 200], np.uint8), "image")
    tensor(bundle, "preprocess_data_set_0/output_0.pb", expected, "y")
    whole = {"graph": "preprocess.onnx", "inputs": [{"name": "image", "dtype": "uint8", "shape": ["width"]}],
             "outputs": [{"name": "y", "dtype": "float32", "shape": ["width"]}], "exact": True, "bound": 0.01,
             "compared": "", "reason": "", "needs": [], **entry}  # fmt: skip
    edit(bundle, lambda manifest: manifest.update(preprocess=whole))


def test_the_graph_before_the_model_is_held_to_its_samples(program: Program, bundle: Path) -> None:
    _processing(bundle, np.array([2, 400.005], np.float32))
    done = program("selftest", bundle)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preprocess 1 samples within 1.0e-02\n" in done.stdout

    _processing(bundle, np.array([2, 400.1], np.float32))
    refused(program, bundle, "preprocess: 'y' of sample 0 differs from the processor's")

    _processing(bundle, np.array([2, 400.1], np.float32), exact=False, reason="large bytes differ")
    done = program("selftest", bundle)
    assert done.returncode == 0
    assert "preprocess 1 of 1 samples differ, which fails nothing: large bytes differ\n" in done.stdout

    _processing(bundle, np.array([2, 400.1], np.float32))
    (bundle / "preprocess_data_set_0/output_0.pb").unlink()
    edit(bundle, lambda it: it["files"].pop("preprocess_data_set_0/output_0.pb"))
    refused(program, bundle, "preprocess: 'y' of sample 0 differs from the processor's")
    shutil.rmtree(bundle / "preprocess_data_set_0")
    edit(bundle, lambda it: it["files"].pop("preprocess_data_set_0/input_0.pb"))
    refused(program, bundle, "preprocess: the bundle holds no samples to check it on")

    _processing(bundle, np.array([2, 400.1], np.float32), needs=["onnxruntime-extensions"])
    done = program("selftest", bundle, TOOLKIT_EXTENSIONS="")
    assert done.returncode == 0
    assert "preprocess skipped: needs onnxruntime-extensions" in done.stdout


def _picture(path: Path, pixels: np.ndarray) -> Path:
    """A binary PGM of uint8 [height, width]."""
    height, width = pixels.shape
    path.write_bytes(b"P5\n%d %d\n255\n" % (width, height) + pixels.tobytes())
    return path


def _pixel_graph() -> onnx.ModelProto:
    """`image` uint8 [8, 8, 1] to `pixel_values` float32 [1, 1, 8, 8]."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Transpose", ["image"], ["planes"], perm=[2, 0, 1]),
        helper.make_node("Cast", ["planes"], ["wide"], to=1),
        helper.make_node("Unsqueeze", ["wide", "zero"], ["batched"]),
        helper.make_node("Div", ["batched", "most"], ["pixel_values"]),
    ]
    graph = helper.make_graph(
        nodes,
        "pixels",
        [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["height", "width", "channels"])],
        [helper.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, [1, 1, 8, 8])],
        [numpy_helper.from_array(np.array([0]), "zero"), numpy_helper.from_array(np.float32(255), "most")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_classes_of_a_picture(program: Program, bundle: Path, tmp_path: Path) -> None:
    (bundle / "preprocess.onnx").write_bytes(_pixel_graph().SerializeToString())
    rehash(bundle, "preprocess.onnx")
    entry = {"graph": "preprocess.onnx", "exact": True}
    edit(bundle, lambda manifest: manifest.update(preprocess=entry))
    pixels = np.random.default_rng(5).integers(0, 256, (8, 8), np.uint8)
    first, second = image_weights()
    logits = np.maximum(pixels.reshape(64) / np.float32(255) @ first, 0) @ second
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    done = program("classify", bundle, _picture(tmp_path / "x.pgm", pixels))
    assert done.returncode == 0, done.stderr
    wanted = "  ".join(f"{LABELS[index]} {100 * shares[index]:.2f}%" for index in np.argsort(-shares)[:5])
    assert done.stdout == f"{tmp_path / 'x.pgm'}: {wanted}\n"
    absent = program("classify", bundle, tmp_path / "no.pgm")
    assert absent.returncode == 1
    assert "no.pgm: missing" in absent.stderr
    assert "this bundle takes pictures, not texts" in program("generate", bundle, "a text").stderr


def test_vit_digits_passes(program: Program, gated_digits: Path) -> None:
    (folder,) = (path.parent for path in (gated_digits / "bundles").glob("*/manifest.json"))
    done = program("selftest", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"output logits: SQNR \d\d\.\d dB, .*: pass", done.stdout)


def test_vit_digits_reads_a_picture_as_the_toolkit_does(program: Program, gated_digits: Path, tmp_path: Path) -> None:
    (folder,) = (path.parent for path in (gated_digits / "bundles").glob("*/manifest.json"))
    preprocess = open_bundle(folder).manifest.preprocess
    if preprocess is None or preprocess.graph is None:
        pytest.skip("the bundle has no graph for pictures")
    digit = load_digits().images[17]
    path = _picture(tmp_path / "digit.pgm", np.repeat(np.repeat((digit * 15).astype(np.uint8), 5, 0), 5, 1))
    said = CliRunner().invoke(main, ["run", str(folder), str(path), "--json"])
    wanted = json.loads(said.stdout)["rows"][0]["labels"]
    done = program("classify", folder, path)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\d) (\d+\.\d\d)%", done.stdout.removeprefix(f"{path}: "))
    assert [label for label, _ in found] == [entry["label"] for entry in wanted]
    assert [float(share) / 100 for _, share in found] == pytest.approx(
        [entry["probability"] for entry in wanted], abs=2e-3
    )


def test_generation_takes_the_same_tokens_as_the_toolkit(program: Program, tmp_path: Path) -> None:
    folder = language_bundle(tmp_path / "lm")
    prompt = [40, 7, 99, 3, 12]
    np.savez(tmp_path / "tokens.npz", input_ids=np.array([prompt]), attention_mask=np.ones((1, 5), np.int64))
    arguments = [str(folder), str(tmp_path / "tokens.npz"), "--max-new-tokens", "24", "--json"]
    said = CliRunner().invoke(main, ["run", *arguments])
    assert said.exit_code == 0, said.output
    wanted = json.loads(said.stdout)["completions"][0]["tokens"]
    done = program("generate", folder, "--tokens", " ".join(map(str, prompt)), "--max-new-tokens", 24)
    assert done.returncode == 0, done.stderr
    assert [int(token) for token in done.stdout.split()] == wanted
    sampled = [
        program("generate", folder, "--tokens", "5 6", "--temperature", 2, "--seed", seed).stdout for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    full = program("generate", folder, "--tokens", "5 6 7", "--context", 2)
    assert full.returncode == 1
    assert "the cache holds 2" in full.stderr


def test_a_library_that_is_too_old_is_an_error_and_no_crash(program: Program, sound: Path, tmp_path: Path) -> None:
    """A library of 1.10, which answers newer versions with a null pointer, as the real ones do."""
    source = (
        "#include <stddef.h>\n"
        "static const void* get(unsigned version) { (void)version; return NULL; }\n"
        'static const char* version(void) { return "1.10.0"; }\n'
        "static const struct { const void* (*get)(unsigned); const char* (*version)(void); } base = {get, version};\n"
        "const void* OrtGetApiBase(void) { return &base; }\n"
    )
    (tmp_path / "old.c").write_text(source, encoding="utf-8")
    run("gcc", "-shared", "-fPIC", tmp_path / "old.c", "-o", tmp_path / "libold.so")
    objects = [
        program.folder / "CMakeFiles/selftest.dir/Unity/unity_0_cxx.cxx.o",
        program.folder / "libbundle_runtime.a",
    ]
    run("g++", *objects, tmp_path / "libold.so", "-o", tmp_path / "selftest", f"-Wl,-rpath,{tmp_path}", "-pthread")
    refused(Program(tmp_path), sound, r"onnxruntime 1\.10\.0 is too old; this program needs 1\.17 or newer")


READERS = {
    "json": ("json",),
    "tensor_proto": ("tensor_proto", "tensor", "half"),
    "image": ("image", "files", "sha256", "tensor", "half"),
}


@pytest.mark.parametrize("reader", READERS)
def test_readers_stay_in_bounds_on_broken_input(reader: str, tmp_path: Path) -> None:
    require_compiler()
    sources = [
        TEMPLATES / "tests" / f"{reader}_test.cpp",
        *(TEMPLATES / "src" / f"{name}.cpp" for name in READERS[reader]),
    ]
    flags = ["-std=c++17", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{TEMPLATES / 'src'}"]
    run("g++", *flags, *sources, "-o", tmp_path / "test")
    run(tmp_path / "test")


def test_the_engine_for_tensorrt_compiles(cpp_programs: Path, tmp_path: Path) -> None:
    """Compiled only: there is no GPU to run it on, and no libnvinfer to link."""
    headers = native("tensorrt")
    if not (CUDA / "include" / "cuda_runtime_api.h").is_file():
        pytest.skip("CUDA's headers are not here")
    include = [f"-I{TEMPLATES / 'src'}", f"-isystem{headers}", f"-isystem{CUDA / 'include'}"]
    sources = [TEMPLATES / "src" / name for name in ("trt_engine.cpp", "cuda_memory.cpp")]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-DTOOLKIT_TENSORRT"]
    run("g++", *flags, *include, *sources, cwd=tmp_path)


def test_the_readmes_program_compiles(cpp_programs: Path, tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```cpp\n(.*?)```", (TEMPLATES / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    lines = snippet.splitlines()
    body = "\n".join(line for line in lines if not line.startswith("#include"))
    source = '#include "pipeline.hpp"\n#include "report.hpp"\nint main() {\n' + body + "\nreturn outputs ? 0 : 1;\n}\n"
    (tmp_path / "app.cpp").write_text(source, encoding="utf-8")
    include = [f"-I{TEMPLATES / 'src'}", f"-I{TEMPLATES / 'apps'}"]
    run("g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", *include, tmp_path / "app.cpp")


def test_the_command_writes_the_project(sound: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bundle", str(sound), "--lang", "cpp", "--output", str(tmp_path / "app")])
    assert done.exit_code == 0, done.output
    assert f"build/selftest {sound}" in done.output
    assert (tmp_path / "app/src/selftest.cpp").read_bytes() == (TEMPLATES / "src/selftest.cpp").read_bytes()
    readme = (tmp_path / "app/README.md").read_text(encoding="utf-8")
    assert "- `tiny`: `build/classify`" in readme
    assert "@" not in readme


@pytest.mark.parametrize("file", ["model.mlpackage/Manifest.json", "openvino_model.xml"])
def test_engines_of_other_libraries_are_refused(bundle: Path, file: str) -> None:
    (bundle / file).parent.mkdir(exist_ok=True)
    (bundle / file).write_bytes(b"{}")
    rehash(bundle, file)
    edit(bundle, lambda manifest: manifest["engine"].update(files=[file]))
    with pytest.raises(UnsupportedError, match="does not run ort-cpu-fp32: its engine is") as caught:
        PROJECT.check(open_bundle(bundle))
    assert "--target ort-cpu-int8" in caught.value.hint


def test_a_cache_of_fixed_length_is_refused() -> None:
    engine = SimpleNamespace(files=("engine-sm89.plan",), inputs=(SimpleNamespace(name="write_indices"),), reason="")
    target = SimpleNamespace(runtime="trt", scheme="fp16")
    bundle: Any = SimpleNamespace(
        folder="b", manifest=SimpleNamespace(engine=engine, target=target, graph="model.onnx")
    )
    with pytest.raises(UnsupportedError, match="fixed length"):
        PROJECT.check(bundle)
