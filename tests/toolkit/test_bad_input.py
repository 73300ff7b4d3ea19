"""What a user with bad luck meets: each failure says what was wrong and what to type, and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_bundles import image_bundle
from transformers import (
    BertConfig,
    BertModel,
    Data2VecVisionConfig,
    Data2VecVisionModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTModel,
)

from toolkit.cli import main

ROOT = Path(__file__).parents[2]
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
WORDS = {"vocab_size": 60, "max_position_embeddings": 48}
MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**SIZES, image_size=16, patch_size=4)),
    "bert": lambda: BertModel(BertConfig(**SIZES, **WORDS)),
    "data2vec": lambda: Data2VecVisionModel(Data2VecVisionConfig(**SIZES, image_size=16, patch_size=4)),
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ),
}

OPTION = "--provider-option"
BOTH = ("ort-cuda-fp32", "--target", "ort-trt-fp32", "--target", "ort-cpu-fp32")
PROVIDER_OPTIONS = [
    ("ort-cuda-fp32", OPTION, "use_tf23=1", "ort-cuda: CUDAExecutionProvider has no option 'use_tf23'", "use_tf32"),
    ("ort-cuda-fp32", OPTION, "gpu_mem_limit=1e9", "ort-cuda: '1e9' is no gpu_mem_limit", "a whole number from 1"),
    ("ort-trt-fp32", OPTION, "trt_builder_optimization_level=9", "ort-trt: '9' is no trt_builder", "0 to 5"),
    ("ort-trt-fp32", OPTION, "trt_fp16_enable=1", "ort-trt: trt_fp16_enable is not offered", "The target says"),
    ("ort-trt-fp32", OPTION, "device=1", "TensorrtExecutionProvider and CUDAExecutionProvider have no", "use_tf32"),
    (*BOTH, OPTION, "trt_max_workspace_size=1", "ort-cuda: CUDAExecutionProvider has no option", "gpu_mem_limit"),
    ("ort-cuda-fp32", OPTION, "device_id", "'device_id' is not of the form KEY=VALUE", "--help"),
    ("ort-cuda-fp32", OPTION, "use_tf32=0", OPTION, "use_tf32=1", "use_tf32 is given 2 times", "once"),
    ("ort-cpu-fp32", OPTION, "device_id=1", "--provider-option is not for ort-cpu-fp32", "runtimes ort-cuda, ort-trt"),
]
"""A target, what is typed after it, what is said and what is hinted."""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    for name, make in MODELS.items():
        make().save_pretrained(folder / name)
    return folder


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """The current folder: it holds `vit`, a model of its own to damage, and whatever the test puts there."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "place"
    place.mkdir()
    for name in MODELS:
        shutil.copytree(models / name, place / name)
    monkeypatch.chdir(place)
    return place


def tree(folder):
    """Every path below the folder with what it holds, hidden ones too."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def names(folder):
    return [path.name for path in folder.iterdir()]


def toolkit(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


def refused(folder, arguments, code, says, hint):
    """Run it; it exits with `code`, prints the message and the hint, no traceback, and the folder stays the same."""
    before = tree(folder)
    result = toolkit(*arguments)
    assert result.exit_code == code, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    error, _, hints = result.stderr.partition("\nhint: ")
    assert "error: " in error
    assert says in error
    assert hint in hints
    assert tree(folder) == before
    return result


def export(model="vit", target="ort-cpu-fp32", *more):
    return ["export", "--model", model, "--target", target, "--output", "new/out", *more]


@pytest.mark.parametrize(
    ("arguments", "code", "says", "hint"),
    [
        (export("vit-digit"), 2, "unknown model 'vit-digit'", "Did you mean vit-digits"),
        (export(""), 2, "unknown model ''", "short names: "),
        (export("."), 2, "has no config.json", "save_pretrained(folder)"),
        (export("./nope"), 2, "there is no folder './nope'", "a folder with config.json"),
        (export("vit/config.json"), 2, "config.json is a file", "Give the folder"),
        (export("t5"), 4, "'T5ForConditionalGeneration' (t5) is no causal", "Encoders, vision models and causal"),
        (export("nosuch:make"), 2, "cannot import 'nosuch'", "Run from the folder that holds it"),
        (export("json:loads"), 5, "json:loads() raised TypeError", "called with no arguments"),
        (export("os:getcwd"), 2, "returned a str, not an nn.Module", "example_inputs"),
        (export("no/such-model", "ort-cpu-fp32", "--offline"), 2, "--offline was given", "no 'no/such-model' here"),
        (
            export("no/such-model", "ort-cpu-fp32", "--offline", "--weights", "random"),
            2, "'no/such-model': not in the cache", "a short name with `--weights random`",
        ),
        (export("vit-base", "ort-cpu-fp32", "--offline"), 2, "not in the cache", "`--weights random`"),
        (export("vit", "ort-cpu-fp32", "--revision", "main"), 2, "no revision 'main'", "Leave --revision out"),
        (export("vit", "trt"), 2, "unknown target 'trt'", "Did you mean trt-fp8, trt-int8"),
        (export("vit", "int8"), 2, "unknown target 'int8'", "ort-cpu-int8"),
        (export("vit", "ort-cpu-int9"), 2, "unknown target 'ort-cpu-int9'", "Did you mean ort-cpu-int8"),
        (
            export("vit", "ort-cuda-int8"), 4,
            "'ort-cuda' does not take scheme 'int8' for models of kind 'vision'", "takes: fp32, fp16, bf16, int4",
        ),
        (export("vit", "ort-trt-int4"), 4, "'ort-trt' does not take scheme 'int4'", "takes: fp32, fp16, bf16, int8"),
        (export("vit", ""), 2, "unknown target ''", "<runtime>-<scheme>"),
        (export("vit", "ort-cpu-fp32", "--dim", "batch=0:1:2"), 2, "must rise: 1 <= min", "batch=1:8:64"),
        (export("vit", "ort-cpu-fp32", "--dim", "batch=4:2:8"), 2, "must rise", "batch=1:8:64"),
        (export("vit", "ort-cpu-fp32", "--dim", "batch=two"), 2, "'batch=two' is not of the form", "--help"),
        (export("vit", "ort-cpu-fp32", "--dim", "bach=2"), 2, "no dimension 'bach'", "Its dimensions: batch"),
        (export("vit", "ort-cpu-fp32", "--dim", "batch=1:2:9999999999"), 2, "beyond", "2147483647 or less"),
        (export("vit", "ort-cpu-fp32", "--dim", "batch=2", "--dim", "batch=3"), 2, "given 2 times", "once"),
        *((export("vit", target, *more), 2, says, hint) for target, *more, says, hint in PROVIDER_OPTIONS),
        (export("bert", "ort-cpu-fp32", "--dim", "sequence=1:8:100000"), 2, "takes at most 48", "48 or less"),
        (export("vit", "ort-cpu-fp32", "--opset", "9"), 2, "opset 9", "--opset 20 to 25"),
        (export("vit", "ort-cpu-fp32", "--opset", "99"), 2, "opset 99", "--opset 20 to 25"),
        (export("vit", "ort-cpu-fp32", "--seed", "9" * 20), 2, "'--seed'", "--help"),
        (export("vit", "ort-cpu-fp32", "--drift-gate", "sqrn=3"), 2, "cannot read 'sqrn=3'", "Did you mean sqnr"),
        (export("vit", "ort-cpu-fp32", "--drift-gate", "sqnr=lots"), 2, "'lots' is no value", "a finite number"),
        (export("vit", "ort-cpu-int8", "--calibration", "0"), 2, "no samples", "at least one"),
        (export("vit", "ort-cpu-int8", "--calibration", "-5"), 2, "there is no -5", "an existing folder"),
        (["export", "--model", "vit", "--target", "ort-cpu-fp32", "--output", ""], 2, "name is empty", "--help"),
        (
            ["export", "--model", "vit", "--target", "ort-cpu-fp32", "--output", "vit/config.json"],
            2, "'vit/config.json' is a file", "--help",
        ),
        (
            ["export", "--model", "vit", "--target", "ort-cpu-fp32", "--output", "vit/config.json/out"],
            2, "Not a directory", "another --output",
        ),
    ],
    ids=lambda value: " ".join(value[2:3] + value[4:5] + value[7:]) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_cannot_work_is_refused_before_any_work(place, arguments, code, says, hint):
    result = refused(place, arguments, code, says, hint)
    assert "load " not in result.stderr


def _truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _corrupt(folder):
    (folder / "model.safetensors").write_bytes(b"these bytes were never tensors" * 9)


def _pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def _weight(value):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        weights["layernorm.weight"][3] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def _config(**changes):
    def damage(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


@pytest.mark.parametrize(
    ("damage", "code", "says", "hint"),
    [
        (_truncated, 2, "model.safetensors is not a whole safetensors file", "Download or save it again"),
        (_corrupt, 2, "model.safetensors is not a whole safetensors file", "Download or save it again"),
        (_pickled, 2, "pytorch_model.bin is a pickle checkpoint", "save_pretrained(folder)"),
        (_weight(float("nan")), 2, "weight 'layernorm.weight' holds NaN", "damaged"),
        (_weight(float("inf")), 2, "weight 'layernorm.weight' holds NaN or infinity", "damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), 2, "has no weights", "--weights random"),
        (lambda folder: (folder / "config.json").unlink(), 2, "has no config.json", "save_pretrained"),
        (lambda folder: (folder / "config.json").write_text("{"), 2, "is not readable JSON", "Fetch or save"),
        (_config(model_type="vitt"), 2, "no model_type 'vitt'", "Did you mean vit"),
        (_config(architectures=["ViTForNothing"]), 4, "'ViTForNothing' is not supported", "ViTModel"),
        (_config(hidden_size=24), 2, "embeddings.cls_token [1, 1, 16] for [1, 1, 24]", "belong together"),
        (_config(num_hidden_layers=2), 2, "lacks 16 of the model's weights", "They would be random"),
        (_config(num_hidden_layers=0), 2, "weights that its architecture does not use", "architectures"),
    ],
)
def test_a_damaged_model_is_named(place, damage, code, says, hint):
    damage(place / "vit")
    refused(place, export(), code, says, hint)


def test_attention_that_is_not_fused_is_named(place):
    refused(
        place, export("data2vec"), 5,
        "1 of 1 attention modules are not fused: encoder.layer.0.attention.attention", "--allow-unfused",
    )  # fmt: skip


def test_drift_past_the_gate_exits_6(place):
    refused(
        place,
        export("vit", "ort-cpu-fp32", "--drift-gate", "sqnr=200"),
        6,
        "is below the gate's 200 dB",
        "--drift-gate",
    )


@pytest.fixture
def samples(place):
    """Calibration inputs, all of them wrong."""
    for name in ("empty", "noise", "texts"):
        (place / name).mkdir()
    (place / "noise" / "a.png").write_bytes(bytes(range(256)))
    (place / "texts" / "empty.txt").write_text("\n\n")
    (place / "latin.txt").write_bytes("na\u00efve".encode("latin-1"))
    (place / "broken.jsonl").write_text('{"text": "fine"}\n{"txt": "not"}\n')
    (place / "words.npz").write_text("no arrays")
    np.savez(place / "wide.npz", pixel_values=np.zeros((2, 3, 16, 17), np.float32))
    np.savez(place / "long.npz", **{name: np.zeros((2, 49), np.int64) for name in ("input_ids", "attention_mask")})
    return place


@pytest.mark.parametrize(
    ("model", "source", "says", "hint"),
    [
        ("vit", "nowhere", "there is no nowhere", "an existing folder"),
        ("vit", "empty", "empty holds no images", ".png"),
        ("vit", "noise", "a.png is not a readable image", "Give a PNG"),
        ("vit", "latin.txt", "latin.txt is not a readable image", "Give a PNG"),
        ("vit", "words.npz", "words.npz cannot be read", "numpy.savez"),
        ("vit", "wide.npz", "'pixel_values' has shape [2, 3, 16, 17]", "This axis has to be 16"),
        ("bert", "empty", "empty holds no text", ".txt"),
        ("bert", "texts", "texts holds no text", ".txt"),
        ("bert", "latin.txt", "latin.txt cannot be read", "Check the file"),
        ("bert", "broken.jsonl", "broken.jsonl, line 2, has no text", '{"text": "…"}'),
        ("bert", "long.npz", "has no array token_type_ids", "input_ids"),
    ],
)
def test_bad_calibration_is_refused_before_the_model_is_exported(samples, model, source, says, hint):
    result = refused(samples, export(model, "ort-cpu-int8", "--calibration", source), 2, says, hint)
    assert "export " not in result.stderr


@pytest.mark.parametrize(
    ("model", "source", "code", "says", "hint"),
    [
        ("vit", "nowhere", 2, "there is no nowhere", "an existing folder"),
        ("vit", "noise", 2, "noise holds 1 samples, too few", "32 or more"),
        ("bert", "latin.txt", 2, "latin.txt cannot be read", "Check the file"),
        ("bert", "broken.jsonl#txt", 2, "broken.jsonl, line 1, has no text (key 'txt')", "FILE#KEY"),
        ("vit", "datasets:nobody/nothing", 2, "--offline forbids to ask the Hub", "datasets:FOLDER"),
    ],
)
def test_bad_evaluation_is_refused_before_the_model_is_exported(samples, model, source, code, says, hint):
    arguments = export(model, "ort-cpu-fp32", "--evaluation", source, "--offline")
    result = refused(samples, arguments, code, says, hint)
    assert "export " not in result.stderr


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_calibration_folder_that_may_not_be_read(place):
    (place / "secret").mkdir(mode=0o000)
    result = toolkit(*export("vit", "ort-cpu-int8", "--calibration", "secret"))
    (place / "secret").chmod(0o700)
    assert result.exit_code == 2
    assert "secret cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "kind", "code"),
    [
        (export("vit-digit"), "UsageError", 2),
        (export("vit", "ort-cuda-int8"), "UnsupportedError", 4),
        (export("json:loads"), "StageError", 5),
        (["check", "nowhere"], "UsageError", 2),
        (["run", "nowhere", "a.png"], "UsageError", 2),
        (["bench", "nowhere"], "UsageError", 2),
        (["inspect", "nowhere"], "UsageError", 2),
        (["list", "modles"], "UsageError", 2),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else "",
)
def test_errors_are_json_where_json_was_asked_for(place, arguments, kind, code):
    before = tree(place)
    result = toolkit(*arguments, "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.exit_code, error["exit_code"], error["type"]) == (code, code, kind)
    assert error["message"] in result.stderr
    assert error["hint"]
    assert tree(place) == before


# Bundles


def _change_a_byte(bundle):
    path = bundle / "model.onnx.data"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def _manifest(**changes):
    def damage(bundle):
        path = bundle / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def _link_out(bundle):
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").symlink_to(bundle.parent / "elsewhere")


ALL = ("check", "run", "bench")


@pytest.mark.parametrize(
    ("damage", "commands", "says", "hint"),
    [
        (_change_a_byte, ("check",), "model.onnx.data: changed", "Fetch the bundle again"),
        (lambda bundle: (bundle / "model.onnx").unlink(), ("check",), "model.onnx: missing", "Fetch the bundle again"),
        (lambda bundle: (bundle / "more").touch(), ("check",), "more: not listed", "Fetch the bundle again"),
        (lambda bundle: (bundle / "manifest.json").unlink(), ALL, "has no manifest.json", "toolkit export"),
        (lambda bundle: (bundle / "manifest.json").write_text('{"a'), ALL, "cannot read", "toolkit export"),
        (_manifest(schema_version=2), ALL, "has schema 2, this toolkit reads up to 1", "pip install --upgrade"),
        (_manifest(graph="../model.onnx"), ALL, "not a relative path inside the bundle", "toolkit export"),
        (_manifest(graph="/etc/passwd"), ALL, "not a relative path inside the bundle", "toolkit export"),
        (_link_out, ALL, "'model.onnx.data' leaves the bundle", "Do not use this bundle"),
    ],
)
def test_a_bundle_that_is_not_as_it_was_written(tmp_path, damage, commands, says, hint):
    bundle = image_bundle(tmp_path / "bundle")
    damage(bundle)
    np.savez(tmp_path / "in.npz", pixel_values=np.zeros((1, 1, 8, 8), np.float32))
    more = {"run": [tmp_path / "in.npz"]}
    for command in commands:
        refused(tmp_path, [command, bundle, *more.get(command, [])], 2, says, hint)


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_bundle_without_its_graph_neither_runs_nor_is_timed(tmp_path, command):
    bundle = image_bundle(tmp_path / "bundle")
    (bundle / "model.onnx").unlink()
    np.savez(tmp_path / "in.npz", pixel_values=np.zeros((1, 1, 8, 8), np.float32))
    more = [tmp_path / "in.npz"] if command == "run" else ["--runs", "1"]
    refused(tmp_path, [command, bundle, *more], 5, "there is no graph file", "check the path")


def test_a_bundle_past_its_gate_exits_6(tmp_path):
    bundle = image_bundle(tmp_path / "bundle", spoil=0.5)
    refused(tmp_path, ["check", bundle], 6, "is below the gate's 40 dB", "--drift-gate")


@pytest.mark.parametrize(
    ("given", "says", "hint"),
    [
        ("notes.png", "notes.png is not a readable image", "Give a PNG"),
        ("nowhere.png", "there is no", "existing image file"),
        ("many.npz", "'batch' of input 'pixel_values' is 5, outside its range 1 to 4", "--dim batch=MIN:OPT:MAX"),
        ("wide.npz", "has 9 where the model has 8", "float32 [batch, 1, 8, 8]"),
        ("notes.npz", "cannot read", "numpy.savez"),
    ],
)
def test_input_that_the_bundle_does_not_take(tmp_path, given, says, hint):
    bundle = image_bundle(tmp_path / "bundle")
    for name in ("notes.png", "notes.npz"):
        (tmp_path / name).write_text("neither an image nor arrays")
    np.savez(tmp_path / "many.npz", pixel_values=np.zeros((5, 1, 8, 8), np.float32))
    np.savez(tmp_path / "wide.npz", pixel_values=np.zeros((1, 1, 8, 9), np.float32))
    result = refused(tmp_path, ["run", bundle, tmp_path / given, "--output", tmp_path / "out.npz"], 2, says, hint)
    assert "unsafely" not in result.stderr


def test_sizes_that_the_bundle_was_not_made_for_are_not_timed(tmp_path):
    bundle = image_bundle(tmp_path / "bundle")
    refused(tmp_path, ["bench", bundle, "--batch", 5], 2, "batch 5 is outside its range", "1 to 4")
    refused(tmp_path, ["bench", bundle, "--sequence", 5], 2, "no dimension 'sequence'", "batch")
    refused(tmp_path, ["bench", bundle, "--vs", "tensorflow"], 2, "tensorflow is not a bundle", "toolkit export")


# The world around it


@contextmanager
def exporting(place, until, target="ort-cpu-fp32"):
    """A real `toolkit export` of `vit` in a process of its own, which has just shown the row of stage `until`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "toolkit", *export("vit", target)],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        shown = next((line for line in process.stderr if line.startswith(until)), "")
        assert shown, f"the stage {until} was never shown"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
@pytest.mark.parametrize(
    ("number", "stage"), [(signal.SIGINT, "load"), (signal.SIGINT, "export"), (signal.SIGTERM, "reference")]
)
def test_an_interrupted_export_leaves_nothing(place, number, stage):
    before = tree(place)
    with exporting(place, stage, "ort-cpu-int8") as process:
        assert tree(place) != before
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted, nothing was left behind" in stderr
    assert "Traceback" not in stderr
    assert tree(place) == before


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
def test_of_two_exports_into_one_folder_the_second_is_refused(place):
    with exporting(place, "load") as first:
        first.send_signal(signal.SIGSTOP)
        refused(place, export("vit", "ort-cpu-fp32"), 2, "another export is writing", "Wait for it to end")
        first.send_signal(signal.SIGCONT)
        _, stderr = first.communicate(timeout=120)
    assert first.returncode == 0, stderr
    assert names(place / "new" / "out") == ["vit-ort-cpu-fp32"]


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
def test_what_a_killed_export_left_is_cleared_by_the_next(place):
    with exporting(place, "load") as process:
        process.kill()
        process.communicate(timeout=60)
    assert names(place / "new" / "out")
    result = toolkit(*export("vit", "ort-cpu-fp32"))
    assert result.exit_code == 0, result.output
    assert names(place / "new" / "out") == ["vit-ort-cpu-fp32"]


@pytest.fixture
def small_disk(place, request):
    """A disk of that many KiB, mounted on `new`."""
    disk = place / "new"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "none", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="needs mount")
@pytest.mark.parametrize("small_disk", [4, 32, 80], indirect=True)
def test_a_full_disk_is_said_and_cleaned(place, small_disk):
    before = shutil.disk_usage(small_disk).free
    refused(place, export("vit", "ort-cpu-int8"), 5, "disk full: ", "choose --output on another disk")
    assert shutil.disk_usage(small_disk).free == before
