"""Programs for Android and iOS: what is written, the Kotlin one compiled and run, the Swift one parsed."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from tiny_bundles import image_bundle, text_bundle
from tiny_phone import nearest, phone_bundle

from toolkit.bundle.read import open_bundle, verify_hashes
from toolkit.cli import main
from toolkit.hashing import file_sha256

ROOT = Path(__file__).parents[2]
PROJECTS = ROOT / "toolkit" / "projects"
KOTLIN = PROJECTS / "kotlin/templates/bundle/src/main/kotlin"
SWIFT = PROJECTS / "swift/templates"
BRIDGE = Path(__file__).parent / "kotlin"
ASSETS = {"kotlin": "bundle/src/main/assets/bundles", "swift": "Sources/ExportedBundle/bundles"}
BINDING = "libonnxruntime4j_jni.so"
TESTED = {"kotlin": "bundle/src/androidTest/assets/bundles", "swift": "Tests/ExportedBundleTests/bundles"}


def native(part: str) -> Path:
    """A folder that scripts/fetch_native.py brought; skips where it is not here."""
    spec = importlib.util.spec_from_file_location("fetch_native", ROOT / "scripts" / "fetch_native.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder: Path = module.default_folder() / part
    if not folder.is_dir():
        pytest.skip(f"{part} is not here: run python scripts/fetch_native.py {part}")
    return folder


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def said(*command: str | Path) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return phone_bundle(tmp_path_factory.mktemp("phone") / "tiny-mobile", after=nearest())


@pytest.mark.parametrize("language", ["kotlin", "swift"])
def test_an_app_gets_what_it_opens_and_the_test_gets_all(phone: Path, language: str, tmp_path: Path) -> None:
    cpu = text_bundle(tmp_path / "tiny-cpu")
    output = tmp_path / "app"
    result = CliRunner().invoke(main, ["bundle", str(phone), str(cpu), "--lang", language, "--output", str(output)])
    assert result.exit_code == 0, result.output
    shipped = {path.relative_to(output / ASSETS[language]).as_posix() for path in files(output / ASSETS[language])}
    assert shipped == {
        "tiny-mobile/manifest.json", "tiny-mobile/model.ort", "tiny-mobile/postprocess.onnx",
        "tiny-cpu/manifest.json", "tiny-cpu/model.onnx", "tiny-cpu/model.onnx.data",
    }  # fmt: skip
    for name in ("tiny-mobile", "tiny-cpu"):
        assert verify_hashes(open_bundle(output / TESTED[language] / name)) == []
    again = CliRunner().invoke(main, ["bundle", str(phone), "--lang", language, "--output", str(output), "--json"])
    assert "self-test" in json.loads(again.output)["next"][0]
    assert not (output / ASSETS[language] / "tiny-cpu").exists()


@pytest.mark.parametrize("language", ["kotlin", "swift"])
def test_other_bundles_are_refused(language: str, phone: Path, tmp_path: Path) -> None:
    engine = image_bundle(tmp_path / "compiled", status="built", runtime="trt")
    arguments = ["--lang", language, "--output", str(tmp_path / "app")]
    refused = CliRunner().invoke(main, ["bundle", str(engine), *arguments])
    assert refused.exit_code == 4
    assert "is for trt" in refused.output
    assert "ort-mobile-int8" in refused.output
    twice = CliRunner().invoke(main, ["bundle", str(phone), str(phone), *arguments])
    assert (twice.exit_code, "two bundles are called 'tiny-mobile'" in twice.output) == (2, True)
    assert not (tmp_path / "app").exists()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[int, list[str]]]:
    """The Kotlin program, compiled against Android's own classes of ONNX Runtime.

    They have no native half for this machine, so its graphs are run by a Python process that it talks to.
    """
    java, compiler, android = tool("java"), native("kotlin") / "package", native("android")
    jar = tmp_path_factory.mktemp("kotlin") / "app.jar"
    classes = ":".join(str(path) for path in sorted(android.glob("*/classes.jar")))
    # The first tier of Java's compiler only: this is one short run.
    quick = ("-J-XX:TieredStopAtLevel=1", "-J-XX:+UseSerialGC", "-J-Xmx700m")
    command = ["bash", compiler / "bin/kotlinc", *quick, "-jvm-target", "1.8", "-cp", classes, KOTLIN, BRIDGE]
    built = subprocess.run([*map(str, command), "-d", str(jar)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    assert "warning:" not in built.stderr.replace("warning: unable to find kotlin-", ""), built.stderr

    def run(word: str, bundle: Path, extensions: str = "") -> tuple[int, list[str]]:
        path = f"{jar}:{compiler / 'lib/kotlin-stdlib.jar'}"
        arguments = [java, "-XX:TieredStopAtLevel=1", "-cp", path, "toolkit.bundle.BridgeKt", sys.executable]
        arguments += [str(BRIDGE / "bridge.py"), word, str(bundle), extensions]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        assert "Exception" not in done.stderr, done.stderr
        return done.returncode, done.stdout.splitlines()

    return run


@pytest.mark.heavy
def test_the_kotlin_self_test_passes_and_says_what_was_measured(program: Any, phone: Path) -> None:
    code, lines = program("selftest", phone)
    drift = open_bundle(phone).manifest.drift.worst["engine"]
    assert code == 0, lines
    assert lines[0].startswith("bundle tiny-text ort-mobile-fp32, made by toolkit ")
    assert re.fullmatch(r"files \d+ unchanged", lines[1])
    assert re.fullmatch(r"runtime onnxruntime [\d.]+ CPUExecutionProvider", lines[2])
    assert lines[3].startswith(f"output embedding: SQNR {drift.sqnr_db:.1f} dB, cosine 1.000000")
    assert lines[3].endswith(": pass")
    assert lines[4:] == ["postprocess 2 samples within 1.0e-05", "selftest passed"]


@pytest.mark.heavy
def test_the_kotlin_bundle_runs_from_an_app(program: Any, phone: Path) -> None:
    code, lines = program("run", phone)
    assert code == 0, lines
    assert lines[0].startswith("embedding float32 [2, 12] [")


def rewritten(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    change(manifest)
    (bundle / "manifest.json").write_text(json.dumps(manifest), "utf-8")


def change_byte(bundle: Path) -> None:
    content = bytearray((bundle / "model.ort").read_bytes())
    content[-100] ^= 1
    (bundle / "model.ort").write_bytes(content)


def forget(bundle: Path, *names: str) -> None:
    """Files and folders go, from the manifest too."""
    for name in names:
        shutil.rmtree(bundle / name) if (bundle / name).is_dir() else (bundle / name).unlink()
    rewritten(
        bundle,
        lambda manifest: manifest.update(files={k: v for k, v in manifest["files"].items() if not k.startswith(names)}),
    )


def nan_reference(bundle: Path) -> None:
    path = bundle / "test_data_set_0" / "output_0.pb"
    values = np.full((2, 12), np.nan, np.float32)
    path.write_bytes(numpy_helper.from_array(values, "embedding").SerializeToString())
    entry = {"sha256": file_sha256(path), "bytes": path.stat().st_size}
    rewritten(bundle, lambda manifest: manifest["files"].update({"test_data_set_0/output_0.pb": entry}))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no manifest": (lambda b: (b / "manifest.json").unlink(), "manifest.json: missing"),
    "broken manifest": (lambda b: (b / "manifest.json").write_text("{"), "manifest.json: broken JSON at character "),
    "newer": (
        lambda b: rewritten(b, lambda m: m.update(schema_version=2)),
        "manifest.json: schema version 2; this program reads 1",
    ),
    "a byte": (change_byte, "model.ort: changed, another SHA-256 than the manifest's"),
    "longer": (lambda b: (b / "drift.json").write_bytes(b"12"), "drift.json: changed, 2 bytes where the manifest has "),
    "missing": (lambda b: (b / "model.ort").unlink(), "model.ort: missing"),
    "leaves": (
        lambda b: rewritten(b, lambda m: m["files"].update({"../out": {"sha256": "0" * 64, "bytes": 0}})),
        "'../out' is not a relative path inside the bundle",
    ),
    "unlisted": (
        lambda b: rewritten(b, lambda m: m["engine"].update(files=["../model.ort"])),
        "../model.ort: not listed in the manifest",
    ),
    "no outputs": (
        lambda b: rewritten(b, lambda m: m.update(outputs=[])),
        "manifest.json: the model has no outputs",
    ),
    "no samples": (
        lambda b: forget(b, "postprocess_data_set_0", "postprocess_data_set_1"),
        "postprocess: the bundle holds no samples to check it on",
    ),
    "a sample without outputs": (
        lambda b: forget(b, "postprocess_data_set_0/output_0.pb"),
        "postprocess: sample 0 has no output 'axis'",
    ),
    "NaN in the reference": (nan_reference, "output 'embedding' has 24 values of the reference that are NaN, infinite"),
    "another input": (
        lambda b: rewritten(b, lambda m: m["engine"]["inputs"][0].update(name="words")),
        "the engine has no input 'words'",
    ),
    "another type": (
        lambda b: rewritten(b, lambda m: m["engine"]["inputs"][0].update(dtype="int32")),
        "input 'input_ids' of the engine is int64 [1, 8]; the manifest has int32 [1, 8]",
    ),
    "too long": (
        lambda b: rewritten(b, lambda m: m["engine"]["inputs"][0].update(shape=[1, 3])),
        "input 'input_ids' is int64 [1, 4]; the engine takes at most int64 [1, 3]",
    ),
    "another shape": (
        lambda b: rewritten(b, lambda m: m["inputs"][0].update(shape=["batch", 5])),
        "input 'input_ids' is int64 [2, 4]; the model takes int64 [batch, 5]",
    ),
}


@pytest.mark.heavy
def test_the_kotlin_self_test_says_what_is_wrong(program: Any, phone: Path, tmp_path: Path) -> None:
    for index, (name, (breaking, reason)) in enumerate(BROKEN.items()):
        bundle = Path(shutil.copytree(phone, tmp_path / f"broken-{index}"))
        breaking(bundle)
        code, lines = program("selftest", bundle)
        assert code == 1, name
        assert lines[-1].startswith(f"selftest FAILED: {reason}"), (name, lines)


@pytest.mark.heavy
def test_drift_and_different_samples_fail_it(program: Any, tmp_path: Path) -> None:
    code, lines = program("selftest", phone_bundle(tmp_path / "drifted", spoil=0.5))
    assert code == 1
    assert lines[-2].endswith(": FAIL")
    assert re.search(r"output 'embedding' drifted: SQNR [\d.-]+ dB, the gate asks for at least 40.0 dB$", lines[-1])
    code, lines = program("selftest", phone_bundle(tmp_path / "off", after=nearest(off=1)))
    assert (code, lines[-1]) == (
        1,
        "selftest FAILED: postprocess: 'axis' of sample 0 differs from the original's",
    )
    code, lines = program("selftest", phone_bundle(tmp_path / "known", after=nearest(off=1, exact=False)))
    assert (code, lines[-2]) == (0, "postprocess 2 of 2 samples differ; not exact: ")
    needing = phone_bundle(tmp_path / "needing", after=nearest(needs=("onnxruntime-extensions",)))
    code, lines = program("selftest", needing, "no extensions here")
    assert (code, lines[-2]) == (0, "postprocess skipped: no extensions here")


def test_android_libraries_have_what_the_classes_call() -> None:
    """Every native method of the classes that the program uses is a symbol of the library that Android loads."""
    android, javap, nm = native("android"), tool("javap"), tool("nm")
    libraries = android / "onnxruntime/jni/arm64-v8a"
    exported = {name.split("__")[0] for name in re.findall(r" T (Java_\w+)", said(nm, "-D", libraries / BINDING))}
    missing = []
    for name in ("OrtEnvironment", "OrtSession", "OrtSession$SessionOptions", "OnnxTensor"):
        listing = said(javap, "-p", "-cp", android / "onnxruntime/classes.jar", f"ai.onnxruntime.{name}")
        methods = re.findall(r" native .*?(\w+)\(", listing)
        assert methods
        prefix = f"Java_ai_onnxruntime_{name.replace('$', '_00024')}_"
        missing += [f"{name}.{each}" for each in methods if prefix + each not in exported]
    assert not missing
    symbols = said(nm, "-D", "--defined-only", libraries / "libonnxruntime.so")
    assert "OrtGetApiBase" in symbols
    kernels = (b"MatMulIntegerToFloat", b"BiasGelu", b"FusedMatMul", b"SkipLayerNormalization")
    content = (libraries / "libonnxruntime.so").read_bytes()
    assert [name for name in kernels if name not in content] == []
    assert "RegisterCustomOps" in said(nm, "-D", android / "onnxruntime-extensions/jni/arm64-v8a/libortextensions.so")


def test_ios_libraries_have_what_the_package_calls() -> None:
    """What the Swift binding is made on, and the function by whose name the tokenizer's operators are registered."""
    ios, nm = native("ios"), tool("llvm-nm")
    coreml = "_OrtSessionOptionsAppendExecutionProvider_CoreML"
    called = {"onnxruntime": {"_OrtGetApiBase", coreml}, "onnxruntime_extensions": {"_RegisterCustomOps"}}
    for name, wanted in called.items():
        binary = ios / f"{name}.xcframework/ios-arm64/{name}.framework/{name}"
        listing = subprocess.run(
            [nm, "--defined-only", str(binary)], capture_output=True, text=True, check=False
        ).stdout
        assert wanted <= set(re.findall(r" T (\w+)", listing))


SWIFT_API = {
    "ORTEnv", "ORTSession", "ORTSessionOptions", "ORTTensorElementDataType", "ORTValue", "ORTVersion",
    "inputNames", "outputNames", "registerCustomOps", "run", "shape", "elementType", "tensorData", "tensorStringData",
    "tensorTypeAndShapeInfo",
}  # fmt: skip
"""Read in objectivec/include of github.com/microsoft/onnxruntime: the framework that npm has holds no such header."""


def test_swift_calls_nothing_of_onnxruntime_but_what_its_headers_declare() -> None:
    text = (SWIFT / "Sources/ExportedBundle/OrtEngine.swift").read_text("utf-8")
    used = set(re.findall(r"\bORT\w+", text)) | set(re.findall(r"(?:session|options|value|info)\.(\w+)", text))
    assert used == SWIFT_API


def parser() -> Any:
    swift = pytest.importorskip("tree_sitter_swift", reason="tree-sitter-swift is not installed")
    tree_sitter = pytest.importorskip("tree_sitter")
    return tree_sitter.Parser(tree_sitter.Language(swift.language()))


def errors(source: bytes, reader: Any) -> list[str]:
    found, nodes = [], [reader.parse(source).root_node]
    while nodes:
        node = nodes.pop()
        found += [f"line {node.start_point[0] + 1}"] if node.type == "ERROR" or node.is_missing else []
        nodes += node.children
    return found


def test_swift_sources_parse() -> None:
    """There is no Swift compiler here: they are not compiled."""
    reader, sources = parser(), sorted(SWIFT.rglob("*.swift"))
    assert len(sources) >= 9
    for path in sources:
        assert errors(path.read_bytes(), reader) == [], path.name
        assert errors(path.read_bytes().rstrip()[:-1], reader), "what is missing at the end is found"


SHARED = (
    "changed, another SHA-256 than the manifest's",
    "this program reads 1",
    "; the model takes ",
    "the engine takes at most ",
    " that are NaN, infinite or above 1e100",
    "the gate asks for ",
    "selftest passed",
    "selftest FAILED: ",
    " unchanged",
    " drifted: ",
    " differs from the ",
)


@pytest.mark.parametrize(("folder", "suffix"), [(KOTLIN, "kt"), (SWIFT / "Sources", "swift")])
def test_both_say_the_same_words(folder: Path, suffix: str) -> None:
    text = "".join(path.read_text("utf-8") for path in sorted(folder.rglob(f"*.{suffix}")))
    assert [words for words in SHARED if words not in text] == []
