"""Core ML bundles end to end: the saved package is what is measured, at export and by `toolkit check`."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from mil_programs import ct
from tiny_decoders import MakeTiny
from transformers import BertConfig, BertModel

from runtimes.coreml.program import read_program
from toolkit import plugins
from toolkit.bundle.read import Bundle, golden, open_bundle
from toolkit.bundle.write import engine_mapping
from toolkit.cli import main
from toolkit.errors import UnsupportedError, UsageError
from toolkit.greedy import Greedy
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.sessions import open_engine
from toolkit.types import QuantizedGraph

SCHEMES = ("fp16", "int8", "int4", "palettized")
RAN_ON = "MIL interpreter (torch "

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    """The digits' transformer for all schemes of Core ML and, in the same run, int8 with activations."""
    targets = [*(f"coreml-{scheme}" for scheme in SCHEMES), "ort-cpu-int8"]
    folders = export(plan(Request(model="vit-digits", targets=targets, output=tmp_path_factory.mktemp("out"))))
    return {target: open_bundle(folder) for target, folder in zip(targets, folders, strict=True)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_saved_package_holds_the_schemes_gate(scheme: str, bundles: dict[str, Bundle]) -> None:
    manifest = bundles[f"coreml-{scheme}"].manifest
    assert manifest.engine.status == "built"
    assert "Apple's kernels were not run" in manifest.engine.reason
    worst = manifest.drift.worst["engine"]
    assert worst.passed
    assert worst.ran_on.startswith(RAN_ON)
    assert worst.ran_on.endswith("Apple's kernels were not run")
    # Where the weights are rounded the package is no further off than the graph that was measured before it.
    before = manifest.drift.worst["quantize"].sqnr_db
    assert worst.sqnr_db is not None
    assert before is not None
    assert worst.sqnr_db > before - 1.5


def test_attention_stays_one_operator_and_weights_small(bundles: dict[str, Bundle]) -> None:
    stored = {"int8": "constexpr_blockwise_shift_scale", "int4": "constexpr_blockwise_shift_scale",
              "palettized": "constexpr_lut_to_dense"}  # fmt: skip
    for scheme in SCHEMES:
        kinds = [each.kind for each in read_program(_package(bundles[f"coreml-{scheme}"])).operations]
        assert kinds.count("scaled_dot_product_attention") == 4
        assert kinds.count(stored.get(scheme, "")) >= (24 if scheme in stored else 0)
        assert not {"quantize", "dequantize"} & set(kinds)


def test_int8_of_two_runtimes_is_not_shared(bundles: dict[str, Bundle]) -> None:
    methods = [bundles[name].manifest.calibration for name in ("coreml-int8", "ort-cpu-int8")]
    assert [each and each.method for each in methods] == ["ranges", "minmax"]
    weights_only, both = (bundles[name].manifest.drift.worst["quantize"] for name in ("coreml-int8", "ort-cpu-int8"))
    assert (weights_only.sqnr_db or 0) > (both.sqnr_db or 0) + 3


def test_check_reads_the_package_back(bundles: dict[str, Bundle]) -> None:
    result = CliRunner().invoke(main, ["check", str(bundles["coreml-palettized"].folder)])
    assert result.exit_code == 0, result.output
    assert f"read back and run by the {RAN_ON}" in result.output
    assert "Apple's kernels were not run" in result.output
    assert "hash only" not in result.output


def test_rebuild_does_not_say_that_nothing_was_compiled(bundles: dict[str, Bundle]) -> None:
    result = CliRunner().invoke(main, ["check", "--rebuild", str(bundles["coreml-fp16"].folder)])
    assert (result.exit_code, "nothing was compiled" in result.output) == (4, False)
    assert "cannot be built again and compared: coreml has no way to" in result.output


def test_a_package_with_a_changed_weight_fails_check(bundles: dict[str, Bundle], tmp_path: Path) -> None:
    bundle = open_bundle(shutil.copytree(bundles["coreml-fp16"].folder, tmp_path / "bundle"))
    weights = _package(bundle) / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = _with_a_weight_of_zeros(bundle, weights.read_bytes())
    weights.write_bytes(data)
    result = CliRunner().invoke(main, ["check", str(bundle.folder)])
    assert result.exit_code == 2
    assert "weight.bin" in result.output

    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    entry = manifest["files"][weights.relative_to(bundle.folder).as_posix()]
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    (bundle.folder / "manifest.json").write_text(json.dumps(manifest))
    result = CliRunner().invoke(main, ["check", str(bundle.folder)])
    assert result.exit_code == 6, result.output
    assert RAN_ON in result.output


def test_the_swift_sources_are_files_of_the_bundle(bundles: dict[str, Bundle]) -> None:
    for scheme in SCHEMES:
        manifest = bundles[f"coreml-{scheme}"].manifest
        assert {"CoreMLModel.swift", "selftest.swift"} <= set(manifest.files) & set(manifest.engine.files)


@pytest.mark.skipif(ct.utils._is_macos(), reason="here Core ML itself runs")
def test_the_engine_itself_does_not_run_off_a_mac(bundles: dict[str, Bundle]) -> None:
    with pytest.raises(UnsupportedError, match="Core ML runs on Apple devices only"):
        open_engine(bundles["coreml-fp16"])


@pytest.mark.skipif(not ct.utils._is_macos(), reason="Core ML itself runs on macOS only")
def test_core_ml_itself_holds_the_gate(bundles: dict[str, Bundle]) -> None:
    for scheme in SCHEMES:
        result = CliRunner().invoke(main, ["check", str(bundles[f"coreml-{scheme}"].folder)])
        assert result.exit_code == 0, result.output
        assert "it has run here now" in result.output


def test_what_the_package_does_not_take_is_refused(bundles: dict[str, Bundle]) -> None:
    session = _interpreted(bundles["coreml-fp16"])
    image = np.zeros((1, 1, 8, 8), np.float32)
    for inputs, words in (
        ({}, "missing: pixel_values"),
        ({"pixel_values": image, "other": image}, "unknown: other"),
        ({"pixel_values": image.astype(np.int64)}, "is int64, not float32"),
        ({"pixel_values": image[0]}, r"has shape \[1, 8, 8\]"),
        ({"pixel_values": np.zeros((65, 1, 8, 8), np.float32)}, r"has shape \[65, 1, 8, 8\]"),
    ):
        with pytest.raises(UsageError, match=words):
            session.run(inputs)


def test_a_text_encoder_takes_rows_and_lengths_in_its_range(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=200, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(tmp_path / "model")
    request = Request(model=str(tmp_path / "model"), targets=["coreml-fp16"], output=tmp_path / "out")
    (folder,) = export(plan(request))
    bundle = open_bundle(folder)
    session = _interpreted(bundle)
    name = bundle.manifest.outputs[0].name
    lengths = set()
    for inputs, expected in zip(*golden(bundle), strict=True):
        lengths.add(inputs["input_ids"].shape)
        rows = session.run(inputs)[name]
        alone = session.run({key: array[:1] for key, array in inputs.items()})[name]
        np.testing.assert_allclose(rows[:1], alone, atol=2e-3)
        assert rows.shape == expected[name].shape
    assert len(lengths) > 1
    ids = np.full((1, 3), 2**40)
    with pytest.raises(UsageError, match="beyond int32"):
        session.run({item.name: ids for item in bundle.manifest.inputs})


@pytest.mark.parametrize("name", ["mistral", "gemma2"])
def test_a_language_model_with_states_writes_what_pytorch_writes(name: str, tiny: MakeTiny, tmp_path: Path) -> None:
    made, runtime = tiny(name), plugins.runtime("coreml")
    graph = made.graph
    quantized = QuantizedGraph(graph.path, graph.spec, graph.steps, "fp16")
    engine = runtime.build(runtime.lower(quantized, tmp_path / "lowered"))
    entry = engine_mapping(engine)
    session = runtime.interpret(engine.graph.path.parent, entry)  # type: ignore[attr-defined]
    for inputs, expected in zip(made.golden, made.expected, strict=True):
        answer = session.run(inputs)
        attended = inputs["attention_mask"][:, -inputs["input_ids"].shape[1] :] != 0
        assert _sqnr(expected["logits"][attended], answer["logits"][attended]) > 60
        whole = inputs["attention_mask"] != 0
        for output in expected.keys() - {"logits"}:
            kept = [each.transpose(0, 2, 1, 3)[whole] for each in (expected[output], answer[output])]
            assert _sqnr(*kept) > 60
    greedy = Greedy.of(made.eager, made.spec, made.golden)
    assert greedy is not None
    decoder = runtime.interpret_decoder(  # type: ignore[attr-defined]
        engine.graph.path.parent, entry, made.decoder, limit=greedy.positions, rows=len(greedy.prompts)
    )
    assert greedy.compare(decoder).agreement == 1.0


def test_a_decoder_rewinds_answers_every_position_and_knows_its_limit(tiny: MakeTiny, tmp_path: Path) -> None:
    made, runtime = tiny("mistral"), plugins.runtime("coreml")
    quantized = QuantizedGraph(made.graph.path, made.graph.spec, made.graph.steps, "fp16")
    engine = runtime.build(runtime.lower(quantized, tmp_path / "lowered"))
    opened: Any = runtime
    place, entry = engine.graph.path.parent, engine_mapping(engine)
    decoder = opened.interpret_decoder(place, entry, made.decoder, limit=20, rows=2)
    tokens, lengths = np.array([[5, 6, 7, 8], [9, 10, 0, 0]]), np.array([4, 2])
    every = decoder.forward(tokens, lengths, every=True)
    decoder.start(2)
    np.testing.assert_array_equal(decoder.forward(tokens, lengths), every[[0, 1], [3, 1]])
    decoder.start(1)
    decoder.forward(tokens[:1], lengths[:1])
    first = decoder.forward(np.array([[11]]), np.array([1]))
    decoder.rewind(4)
    decoder.forward(np.array([[50]]), np.array([1]))
    decoder.rewind(4)
    np.testing.assert_array_equal(decoder.forward(np.array([[11]]), np.array([1])), first)
    with pytest.raises(UsageError, match="states hold"):
        opened.interpret_decoder(place, entry, made.decoder, limit=10**6, rows=1)


def _interpreted(bundle: Bundle) -> Any:
    runtime: Any = plugins.runtime("coreml")
    return runtime.interpret(bundle.folder, bundle.manifest.engine_mapping())


def _package(bundle: Bundle) -> Path:
    return bundle.folder / "model.mlpackage"


def _with_a_weight_of_zeros(bundle: Bundle, data: bytes) -> bytes:
    """The file of weights with the first Linear's own bytes cleared; where they lie is found by what they are."""
    for operation in read_program(_package(bundle)).operations:
        for value in (each.value for bound in operation.inputs.values() for each in bound if not isinstance(each, str)):
            if isinstance(value, np.ndarray) and value.dtype == np.float16 and value.ndim == 2 and value.size > 1000:
                whole = value.tobytes()
                assert data.count(whole) == 1
                return data.replace(whole, bytes(len(whole)))
    raise AssertionError("there is no weight")


def _sqnr(reference: np.ndarray, answer: np.ndarray) -> float:
    return float(10 * np.log10(np.square(reference).sum() / np.square(reference - answer).sum()))


def test_weight_only_recipes_leave_activations_alone() -> None:
    from toolkit.recipe.own import own_recipe
    from toolkit.target import Target

    spec = plan(Request(model="vit-digits", targets=["coreml-int8"])).spec
    ours, theirs = (own_recipe(Target(runtime, "int8"), spec) for runtime in ("coreml", "ort-cpu"))
    assert (ours.weights, ours.activations, ours.calibration, ours.smoothing) == ("int8", None, "none", None)
    assert theirs == replace(theirs, activations="uint8")
