"""The Node program: it passes on sound bundles, and says what is wrong with the others."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from js_programs import (
    NODE,
    node_modules,
    pixels_bundle,
    run_node,
    signed,
    values_of,
    word_tokenizer,
    words_bundle,
    written,
)
from onnx import helper, numpy_helper
from tiny_bundles import image_bundle, image_weights

from runtimes._onnxruntime.kernels.build import SWITCH
from runtimes.ort_portable import RUNTIME
from toolkit.answers import top_labels
from toolkit.bundle.read import open_bundle
from toolkit.cli import main
from toolkit.pipeline import export
from toolkit.plan import Request, plan

pytestmark = pytest.mark.skipif(not NODE, reason="there is no node here")
TARGETS = ("ort-cpu-fp32", "ort-cpu-int8")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Bundles of vit-digits by target, their drift measured without the own kernels, which Node has not either."""
    output = tmp_path_factory.mktemp("digits") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, "0")
        folders = export(plan(Request(model="vit-digits", targets=list(TARGETS), output=output, dims={})))
    return dict(zip(TARGETS, folders, strict=True))


@pytest.fixture(scope="module")
def program(digits, tmp_path_factory):
    folder = written("node", digits.values(), tmp_path_factory.mktemp("node") / "program")
    node_modules(folder, "node", "web")
    return folder


@pytest.fixture
def spoilt(digits, tmp_path):
    """A copy of the int8 bundle, to be changed."""
    return shutil.copytree(digits["ort-cpu-int8"], tmp_path / "spoilt")


def numbers(line):
    return [float(each) for each in re.findall(r"-?\d+\.\d+(?:e[+-]\d+)?", line)]


@pytest.mark.parametrize("target", TARGETS)
def test_it_passes_on_a_sound_bundle_and_measures_what_the_toolkit_does(program, digits, target):
    done = run_node(program, "selftest.mjs", digits[target])
    manifest = open_bundle(digits[target]).manifest
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert lines[0] == f"bundle vit-digits {target}, made by toolkit {manifest.toolkit}"
    assert lines[1] == f"files {len(manifest.files)} unchanged"
    assert re.fullmatch(r"runtime onnxruntime \d+\.\d+\.\d+ CPUExecutionProvider, onnxruntime-node on .*", lines[2])
    output = re.fullmatch(
        r"output logits: SQNR (\S+) dB, cosine (\S+), relative L2 (\S+), max abs (\S+): pass", lines[3]
    )
    worst = manifest.drift.worst["engine"]
    assert float(output[1]) == pytest.approx(worst.sqnr_db, abs=1.5)
    assert float(output[2]) == pytest.approx(worst.cosine, abs=1e-4)
    assert lines[-1] == "selftest passed"


def _flip(bundle):
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[1000] ^= 1
    (bundle / "model.onnx.data").write_bytes(bytes(data))


def _edit(change):
    def spoil(bundle):
        path = bundle / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8"))
        change(manifest)
        path.write_text(json.dumps(manifest), encoding="utf-8")

    return spoil


def _escape(manifest):
    manifest["files"]["../evil"] = {"sha256": "0" * 64, "bytes": 1}


def _link_out(bundle):
    (bundle.parent / "outside").write_bytes((bundle / "recipe.yaml").read_bytes())
    (bundle / "recipe.yaml").unlink()
    (bundle / "recipe.yaml").symlink_to(bundle.parent / "outside")


def _golden(array):
    def spoil(bundle):
        path = bundle / "test_data_set_0" / "input_0.pb"
        path.write_bytes(numpy_helper.from_array(array, "pixel_values").SerializeToString())
        signed(bundle)

    return spoil


def _cut_golden(bundle):
    path = bundle / "test_data_set_0" / "input_0.pb"
    path.write_bytes(path.read_bytes()[:-7])
    signed(bundle)


def _no_golden(bundle):
    for folder in bundle.glob("test_data_set_*"):
        shutil.rmtree(folder)
    signed(bundle)


def _change_weights(change, wanted=lambda values: values.size > 64):
    """Change float weights, among them the scales of quantized products; the graph stays valid."""

    def spoil(bundle):
        model = onnx.load(bundle / "model.onnx")
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype == np.float32 and wanted(values):
                tensor.CopyFrom(numpy_helper.from_array(change(values), tensor.name))
        (bundle / "model.onnx.data").unlink()
        onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="model.onnx.data")
        signed(bundle)

    return spoil


def _drifted(values):
    return (values * np.random.default_rng(0).uniform(0.2, 1.8, values.shape)).astype(np.float32)


SPOILT = {
    "corrupted": (_flip, "model.onnx.data: changed, another SHA-256 than the manifest's"),
    "cut": (
        lambda bundle: (bundle / "recipe.yaml").write_bytes(b"short"),
        r"recipe.yaml: changed, 5 bytes where the manifest has \d+",
    ),
    "missing": (lambda bundle: (bundle / "model.onnx.data").unlink(), "model.onnx.data: missing"),
    "no manifest": (lambda bundle: (bundle / "manifest.json").unlink(), "manifest.json: missing"),
    "no JSON": (lambda bundle: (bundle / "manifest.json").write_text("{"), "manifest.json: no JSON, .*"),
    "newer": (_edit(lambda m: m.update(schema_version=2)), "manifest.json: schema version 2; this program reads 1"),
    "escaping": (_edit(_escape), "manifest.json: '../evil' is not a relative path inside the bundle"),
    "linked": (_link_out, "manifest.json: 'recipe.yaml' leads out of the bundle"),
    "unlisted": (_edit(lambda m: m["files"].pop("model.onnx")), "manifest.json: not listed in files: model.onnx"),
    "other type": (
        _edit(lambda m: m["inputs"][0].update(dtype="float16")),
        r"input .pixel_values. is float16 \[batch, 1, 8, 8\] in the manifest; the model takes float32 .*",
    ),
    "other name": (
        _edit(lambda m: m["outputs"][0].update(name="scores")),
        r"output 'scores' is float32 \[batch, 10\] in the manifest; the model has none of that name",
    ),
    "wrong shape": (
        _golden(np.zeros((1, 3, 8, 8), np.float32)),
        r"input 'pixel_values' is float32 \[1, 3, 8, 8\]; the model takes float32 \[batch, 1, 8, 8\]",
    ),
    "cut tensor": (_cut_golden, "test_data_set_0/input_0.pb: no ONNX tensor, it ends too early"),
    "no golden": (_no_golden, "the bundle holds no golden inputs, so there is nothing to check it on"),
    "drifted": (
        _change_weights(_drifted),
        r"output 'logits' drifted: SQNR \S+ dB, the gate asks for at least 18.0 dB",
    ),
    "NaN": (
        # Of the classifier alone: further up, the next rounding to int8 makes numbers of them again.
        _change_weights(lambda values: np.full_like(values, np.nan), lambda values: values.shape == (10,)),
        r"output 'logits' has \d+ values that are NaN, infinite or above 1e100",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_it_says_what_is_wrong_and_fails(program, spoilt, name):
    spoil, reason = SPOILT[name]
    spoil(spoilt)
    done = run_node(program, "selftest.mjs", spoilt)
    said = done.stderr.strip()
    assert re.fullmatch(reason, said), said
    assert done.stdout.splitlines()[-1] == f"selftest FAILED: {said}"
    assert done.returncode == 1


def test_called_wrongly_is_another_exit_code(program):
    for arguments in ([], ["a", "b"], ["--help"]):
        done = run_node(program, "selftest.mjs", *arguments)
        assert (done.returncode, done.stderr) == (2, "usage: node selftest.mjs BUNDLE\n")
    assert run_node(program, "embed.mjs", "somewhere").returncode == 2


def test_an_operator_that_the_runtime_lacks_is_named_with_what_to_export(program, spoilt):
    model = onnx.load(spoilt / "model.onnx", load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "LayerNormalization").domain = "not.there"
    model.opset_import.append(helper.make_opsetid("not.there", 1))
    onnx.save(model, spoilt / "model.onnx")
    signed(spoilt)
    done = run_node(program, "selftest.mjs", spoilt)
    assert done.returncode == 1
    lacking = r"model.onnx: onnxruntime-node \S+ does not run its operator not.there.LayerNormalization\. Export"
    assert re.match(lacking, done.stderr)


def test_graphs_before_and_after_the_model_are_held_to_their_samples(program, tmp_path):
    done = run_node(program, "selftest.mjs", pixels_bundle(tmp_path / "sound"))
    assert done.stdout.splitlines()[-3:] == [
        "preprocess 2 samples within 1.0e-06",
        "postprocess 1 samples within 1.0e-06",
        "selftest passed",
    ]
    other = pixels_bundle(tmp_path / "other", exact=False)
    path = other / "preprocess_data_set_1" / "output_0.pb"
    path.write_bytes(numpy_helper.from_array(np.ones((1, 1, 8, 8), np.float32), "pixel_values").SerializeToString())
    signed(other)
    done = run_node(program, "selftest.mjs", other)
    assert done.returncode == 0
    assert "preprocess 1 of 2 samples differ, which fails nothing: it is rounded" in done.stdout
    signed(other, lambda manifest: manifest["preprocess"].update(exact=True))
    done = run_node(program, "selftest.mjs", other)
    assert (done.returncode, done.stderr) == (
        1,
        "preprocess: 'pixel_values' of sample 1 differs from the processor's\n",
    )
    path.unlink()
    signed(other)
    assert run_node(program, "selftest.mjs", other).stderr == done.stderr
    signed(other, lambda manifest: manifest["files"].pop("preprocess.onnx"))
    done = run_node(program, "selftest.mjs", other)
    assert (done.returncode, done.stderr) == (1, "manifest.json: not listed in files: preprocess.onnx\n")


def test_the_tokenizer_in_javascript_is_held_to_the_original(program, tmp_path):
    bundle = words_bundle(tmp_path / "words")
    done = run_node(program, "selftest.mjs", bundle)
    assert done.stdout.splitlines()[-3:] == [
        "preprocess skipped: onnxruntime-node loads no libraries of operators, and it needs onnxruntime-extensions",
        "preprocess in JavaScript 3 samples equal",
        "selftest passed",
    ]
    tokenizer = word_tokenizer()
    tokenizer.enable_padding(pad_id=4, pad_token="[MASK]")
    tokenizer.save(str(bundle / "assets" / "tokenizer.json"))
    signed(bundle)
    done = run_node(program, "selftest.mjs", bundle)
    reason = "preprocess in JavaScript: 'input_ids' of sample 1 differs from the tokenizer's\n"
    assert (done.returncode, done.stderr) == (1, reason)


def test_the_examples_answer_what_the_toolkit_does(program, tmp_path):
    bundle = pixels_bundle(tmp_path / "pixels")
    picture = np.random.default_rng(9).integers(0, 256, (8, 8), dtype=np.uint8)
    (tmp_path / "grey.pgm").write_bytes(b"P5\n# a comment\n8 8\n255\n" + picture.tobytes())
    colour = np.repeat(picture[..., None], 3, axis=2)
    (tmp_path / "colour.ppm").write_bytes(b"P6 8 8 255\n" + colour.tobytes())
    done = run_node(program, "classify.mjs", bundle, tmp_path / "grey.pgm", tmp_path / "colour.ppm")
    first, second = image_weights()
    logits = np.maximum((picture.astype(np.float32) / 255).reshape(1, 64) @ first, 0) @ second
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    best = int(shares.argmax())
    said = [line.partition(": ")[2] for line in done.stdout.splitlines()]
    assert said[0] == said[1]
    assert said[0].startswith(f"digit {best} {100 * shares[best]:.2f}%")
    done = run_node(program, "embed.mjs", words_bundle(tmp_path / "words"), "a cat", "the mat", "a cat")
    assert [line[6:] for line in done.stdout.splitlines()] == ["  a cat", "  the mat", "  a cat"]
    assert numbers(done.stdout)[0] == numbers(done.stdout)[2] == 1.0
    assert abs(numbers(done.stdout)[1]) < 0.99


def test_a_picture_goes_through_the_graphs_that_export_makes(program, digits, tmp_path):
    bundle = open_bundle(digits["ort-cpu-fp32"])
    picture = np.random.default_rng(9).integers(0, 256, (20, 30, 1), dtype=np.uint8)
    (tmp_path / "grey.pgm").write_bytes(b"P5 30 20 255\n" + picture.tobytes())
    done = run_node(program, "classify.mjs", bundle.folder, tmp_path / "grey.pgm")
    assert done.returncode == 0, done.stderr
    given = {"image": picture, "orientation": np.array(1)}
    for graph in ("preprocess.onnx", bundle.manifest.graph):
        session = ort.InferenceSession(bundle.path(graph))
        given = dict(zip([one.name for one in session.get_outputs()], session.run(None, given), strict=True))
    labels = bundle.manifest.model.labels
    best = ", ".join(
        f"{each['label']} {100 * each['probability']:.2f}%" for each in top_labels(given["logits"], labels, 5)[0]
    )
    assert done.stdout == f"{tmp_path / 'grey.pgm'}: {best}\n"


def test_what_cannot_run_there_is_refused_when_the_program_is_written(tmp_path):
    bundle = image_bundle(tmp_path / "engine", status="built", runtime="trt")
    for language in ("node", "web"):
        arguments = ["bundle", str(bundle), "--lang", language, "--output", str(tmp_path / language)]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 4
        assert "its engine is engine.plan" in result.output
        assert not (tmp_path / language).exists()


@pytest.mark.heavy
def test_trained_embeddings_pass_and_are_near_for_near_texts(program, minilm_folder, tmp_path):
    (bundle,) = export(plan(Request(str(minilm_folder), ["ort-cpu-int8"], tmp_path / "out", dims={})))
    done = run_node(program, "selftest.mjs", bundle)
    assert done.returncode == 0, done.stderr
    said = run_node(
        program, "embed.mjs", bundle, "A cat sat on the mat", "a kitten rests on a rug", "stock prices fell"
    )
    same, near, far = (float(line.split()[0]) for line in said.stdout.splitlines())
    assert (same, near > 0.5, far < 0.3) == (1.0, True, True)


@pytest.mark.heavy
def test_a_language_model_passes_and_generates_what_it_does_in_python(program, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=300, intermediate_size=128, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    (bundle,) = export(plan(Request(str(tmp_path / "model"), ["ort-portable-fp32"], tmp_path / "out", dims={})))
    done = run_node(program, "selftest.mjs", bundle)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stdout.splitlines() if line.endswith(": pass")]) == 5
    session, tokens = RUNTIME.session(bundle, {"graph": "model.onnx"}), [5, 250, 17]
    expected = []
    for _ in range(6):
        whole = np.array([[*tokens, *expected]], np.int64)
        empty = {
            f"past_key_values.{i}.{part}": np.zeros((1, 2, 0, 16), np.float32)
            for i in (0, 1)
            for part in ("key", "value")
        }
        feeds = {"input_ids": whole, "attention_mask": np.ones_like(whole), "position_ids": np.arange(whole.size)[None]}
        expected.append(int(session.run(feeds | empty)["logits"][0, -1].argmax()))
    session.close()
    assert values_of(program, "js_decoder.mjs", bundle) == expected
