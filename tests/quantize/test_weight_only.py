"""Weight-only int4 and int8: what is written, how near it stays, and what a file's own blocks become."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from decoder_graphs import DECODER, INNER, VOCABULARY, WIDTH, decoder_model, pack, sentences, unpack
from quantize_graphs import SPEC, Builder, by_type, graph_input, images, run, save_exported, sqnr, vision_model

from quantize import quantize
from quantize.schemes.int4 import SCHEME as INT4
from quantize.schemes.int8 import SCHEME as INT8
from quantize.weight_only import quantize_weights
from toolkit.errors import StageError
from toolkit.types import PackedWeight

PLAIN = replace(INT4, max_kl=1e9)
FEED = dict(next(sentences(1, seed=99).batches()))


def using(scheme, **changes):
    return replace(scheme, config=replace(scheme.config, **changes))


def exact(model):
    """Run without ONNX Runtime's own int4 kernels, which would round activations to int8."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if not isinstance(model, ir.Model) else ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(source, options).run(["logits"], FEED)[0]


def dequantized(model, name):
    """The node that answers the weight of that name."""
    return next(node for node in by_type(model, "DequantizeLinear") if node.outputs[0].name == f"{name}_dequantized")


def array(value: ir.Value):
    return value.const_value.numpy()


def found(steps):
    return {step.what: step.count for step in steps}


@pytest.mark.parametrize("rounding", ["nearest", "hqq", "gptq", "awq"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_written_int4_graph_is_valid_runs_and_stays_near(tmp_path, monkeypatch, rounding, symmetric):
    scheme = using(PLAIN, rounding=rounding, symmetric=symmetric)
    monkeypatch.setattr("quantize.schemes.int4.SCHEME", scheme)
    exported = save_exported(decoder_model(), tmp_path / "exported", DECODER)
    made = quantize(exported, "int4", sentences(), tmp_path / "out")
    onnx.checker.check_model(made.path, full_check=True)
    assert sqnr(exact(exported.path), exact(made.path)) > 20
    assert np.isfinite(run(made.path, FEED)["logits"]).all()
    kind = "int4" if symmetric else "uint4"
    assert found(made.steps)[f"{kind} Linears"] == 14
    assert found(made.steps)["int8 embedding tables with tied heads"] == 1
    saved = made.path.with_name("model.onnx.data").stat().st_size
    assert saved < 0.3 * exported.path.with_name("exported.onnx.data").stat().st_size


def test_int8_of_a_decoder_is_weight_only_in_blocks_and_needs_no_calibration(tmp_path):
    assert INT8.recipe(DECODER).calibration == "none"
    assert INT8.recipe(SPEC).activations == "int8"
    exported = save_exported(decoder_model(), tmp_path / "exported", DECODER)
    made = quantize(exported, "int8", None, tmp_path / "out")
    onnx.checker.check_model(made.path, full_check=True)
    assert found(made.steps) == {"int8 Linears": 14, "int8 embedding tables with tied heads": 1}
    model = ir.load(made.path)
    assert not by_type(model, "QuantizeLinear")
    node = dequantized(model, "layers.0.mlp.down_proj.weight")
    assert (node.attributes.get_int("axis"), node.attributes.get_int("block_size")) == (0, 32)
    assert [value.dtype for value in node.inputs] == [ir.DataType.INT8, ir.DataType.FLOAT, ir.DataType.INT8]
    assert array(node.inputs[1]).shape == array(node.inputs[2]).shape == (INNER // 32, WIDTH)
    assert sqnr(exact(exported.path), exact(made.path)) > 38


def test_gptq_stays_nearer_than_rounding_to_nearest_on_other_data():
    reference = exact(decoder_model())
    noise = {}
    for rounding in ("nearest", "gptq"):
        model = decoder_model()
        using(PLAIN, rounding=rounding).apply(model, DECODER, sentences(16), {})
        noise[rounding] = sqnr(reference, exact(model))
    assert noise["gptq"] > noise["nearest"] + 1


def test_awq_folds_factors_into_the_norm_and_fp32_outputs_would_not_change():
    model = decoder_model()
    gains = {name: array(value).copy() for name, value in model.graph.initializers.items() if "layernorm" in name}
    steps = using(PLAIN, rounding="awq").apply(model, DECODER, sentences(), {})
    step = next(step for step in steps if step.what == "awq weights")
    changed = {name for name, gain in gains.items() if not np.array_equal(array(model.graph.initializers[name]), gain)}
    assert changed
    assert step.reason.startswith(f"{len(changed)} normalisations took factors")
    # With the folded gains, and weights times the factors in fp32, the model is the same model.
    weights = {}
    for name in changed:
        factor = gains[name] / array(model.graph.initializers[name])
        layer, _, norm = name.removesuffix(".weight").rpartition(".")
        readers = ("q_proj", "k_proj", "v_proj") if norm == "input_layernorm" else ("gate_proj", "up_proj")
        block = f"{layer}.self_attn" if norm == "input_layernorm" else f"{layer}.mlp"
        for reader in readers:
            plain = array(decoder_model().graph.initializers[f"{block}.{reader}.weight"])
            weights[f"{block}.{reader}.weight"] = (plain * factor[:, None]).astype(np.float32)
    folded = decoder_model(weights=weights)
    for name in changed:
        folded.graph.initializers[name].const_value = ir.tensor(array(model.graph.initializers[name]))
    np.testing.assert_allclose(exact(folded), exact(decoder_model()), rtol=1e-3, atol=2e-4)
    # And the integers are those of the weights times the factors.
    name = next(iter(weights))
    node = dequantized(model, name)
    back = array(node.inputs[0]).astype(np.float32) * np.repeat(array(node.inputs[1]), 32, axis=0)
    assert sqnr(weights[name], back) > 17


def test_without_calibration_data_the_log_says_that_weights_were_rounded_to_nearest():
    steps = PLAIN.apply(decoder_model(), DECODER, None, {})
    step = next(step for step in steps if step.what == "int4 Linears")
    assert step.reason == "block 32, nearest: no calibration data"


def test_the_most_sensitive_weights_take_eight_bits_until_the_expected_divergence_is_small_enough():
    reference = exact(decoder_model(tied=False))
    noise, counts = [], []
    for bound in (1e9, 0.001, 0.0):
        model = decoder_model(tied=False)
        counts.append(found(replace(INT4, max_kl=bound).apply(model, DECODER, sentences(), {})))
        noise.append(sqnr(reference, exact(model)))
    # The head is the fifteenth Linear, and of 8 bits in any case.
    assert [count.get("int4 Linears", 0) + count["int8 Linears"] for count in counts] == [15, 15, 15]
    assert [count["int8 Linears"] - 1 for count in counts] == [count["sensitive weights in int8"] for count in counts]
    assert 1 == counts[0]["int8 Linears"] < counts[1]["int8 Linears"] < counts[2]["int8 Linears"] == 15
    assert noise[0] < noise[1] < noise[2]


def test_sensitivity_is_measured_at_all_positions_though_the_graph_answers_the_last():
    steps = [
        replace(INT4, max_kl=0.001).apply(decoder_model(tied=False, last=last), DECODER, sentences(), {})
        for last in (False, True)
    ]
    first, second = (next(step for step in each if step.what == "sensitive weights in int8") for each in steps)
    assert first == second
    assert first.count


def test_a_last_linear_that_is_not_tied_is_int8_and_so_is_the_table():
    model = decoder_model(tied=False)
    steps = PLAIN.apply(model, DECODER, None, {})
    assert found(steps) == {"int4 Linears": 14, "int8 Linears": 1, "int8 embedding tables": 1}
    assert dequantized(model, "lm_head.weight").inputs[0].dtype == ir.DataType.INT8
    assert dequantized(model, "embed_tokens.weight").attributes.get_int("axis") == 1


@pytest.mark.parametrize("copied", [False, True])
def test_a_tied_table_is_stored_once_and_read_by_lookup_and_head(copied):
    model = decoder_model(copied=copied)
    INT8.apply(model, DECODER, None, {})
    node = dequantized(model, "embed_tokens.weight")
    assert (node.attributes.get_int("axis"), node.attributes.get_int("block_size")) == (1, 32)
    assert list(array(node.inputs[0]).shape) == [VOCABULARY, WIDTH]
    readers = {use.node.op_type: use.node for use in node.outputs[0].uses()}
    assert set(readers) == {"Gather", "Transpose"}
    assert [use.node.op_type for use in readers["Transpose"].outputs[0].uses()] == ["MatMul"]
    assert not {"embed_tokens.weight", "lm_head.weight"} & set(model.graph.initializers)
    assert sqnr(exact(decoder_model()), exact(model)) > 38


def packed_decoder(kind, names, *, table_kind=None):
    """A decoder whose named Linears, and table where a kind is given, hold exactly what a file's blocks mean."""
    rng, weights, packed = np.random.default_rng(5), {}, {}
    for name in names:
        rows, columns = reversed(array(decoder_model().graph.initializers[name]).shape)
        packed[name] = pack(rng, rows, columns, kind)
        weights[name] = np.ascontiguousarray(unpack(packed[name]).T)
    if table_kind is not None:
        packed["embed_tokens.weight"] = pack(rng, VOCABULARY, WIDTH, table_kind)
        weights["embed_tokens.weight"] = unpack(packed["embed_tokens.weight"])
    return weights, packed


LINEARS = sorted(name for name in decoder_model().graph.initializers if name.endswith("proj.weight"))


@pytest.mark.parametrize("scheme", [INT4, INT8], ids=["int4", "int8"])
@pytest.mark.parametrize(("kind", "table"), [("q4_0", "q8_0"), ("q4_1", "q8_0"), ("q4_1", "q4_1"), ("q4_0", "q4_0")])
def test_packed_weights_are_carried_over_without_any_rounding(scheme, kind, table):
    weights, packed = packed_decoder(kind, LINEARS, table_kind=table)
    model = decoder_model(weights=weights)
    reference = exact(model)
    steps = scheme.apply(model, DECODER, sentences(), packed)
    bits = 4 if scheme is INT4 else 8
    assert {step.what: step.reason for step in steps}[f"int{bits} Linears"] == "block 32, carried over exactly"
    for name, given in packed.items():
        node = dequantized(model, name)
        turn = (lambda a: a) if name.startswith("embed") else np.transpose
        half = 8 if given.bits == 4 else 128
        assert np.array_equal(array(node.inputs[0]).astype(int) + half, turn(given.codes()))
        assert np.array_equal(array(node.inputs[1]), turn(given.scale()))
        assert not array(node.inputs[2]).astype(int).any()
        offsets = [v for v in model.graph.initializers if v == f"{name}_offset"]
        assert len(offsets) == (given.offset() != -half * given.scale()).any()
        if offsets:
            assert np.array_equal(array(model.graph.initializers[offsets[0]]), turn(given.offset() + 8 * given.scale()))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_allclose(exact(model), reference, rtol=1e-4, atol=1e-4)


def test_the_sums_of_blocks_are_shared_by_all_linears_that_read_one_tensor():
    weights, packed = packed_decoder("q4_1", LINEARS)
    model = decoder_model(weights=weights)
    INT4.apply(model, DECODER, None, packed)
    assert len(by_type(model, "ReduceSum")) == 8
    readers = [sum(use.node.op_type == "MatMul" for use in n.outputs[0].uses()) for n in by_type(model, "ReduceSum")]
    assert sorted(readers) == [1, 1, 1, 1, 2, 2, 3, 3]


def test_what_the_file_did_not_pack_is_rounded_and_the_log_tells_them_apart():
    weights, packed = packed_decoder("q4_1", LINEARS[:5])
    model = decoder_model(weights=weights)
    steps = PLAIN.apply(model, DECODER, sentences(), packed)
    counted = {(step.what, step.reason): step.count for step in steps}
    assert counted["int4 Linears", "block 32, carried over exactly"] == 5
    assert counted["int4 Linears", "block 32, gptq"] == 9


def test_int4_does_not_carry_over_eight_bits_but_for_the_head():
    weights, packed = packed_decoder("q8_0", LINEARS, table_kind="q8_0")
    steps = PLAIN.apply(decoder_model(weights=weights), DECODER, None, packed)
    reasons = {step.what: step.reason for step in steps}
    assert reasons["int4 Linears"].startswith("block 32, nearest")
    assert reasons["int8 embedding tables with tied heads"] == "block 32, carried over exactly"


def test_a_packed_weight_that_is_not_the_graphs_is_refused():
    weights, packed = packed_decoder("q4_0", LINEARS)
    name = "layers.1.self_attn.q_proj.weight"
    order = np.arange(64)[::-1]
    given = packed[name]
    permuted = replace(
        given,
        codes=lambda: given.codes()[order],
        scale=lambda: given.scale()[order],
        offset=lambda: given.offset()[order],
    )
    with pytest.raises(StageError, match=r"not the graph's 'layers\.1\.self_attn\.q_proj\.weight'.*differ by up to"):
        INT4.apply(decoder_model(weights=weights), DECODER, None, {**packed, name: permuted})
    wide = PackedWeight(4, 32, (64, 96), given.codes, given.scale, given.offset)
    with pytest.raises(StageError, match=r"\[64, 96\]"):
        INT4.apply(decoder_model(weights=weights), DECODER, None, {**packed, name: wide})


def test_widths_take_a_smaller_block_or_stay_fp32_and_the_log_says_so():
    model = decoder_model(width=48)
    steps = PLAIN.apply(model, DECODER, None, {})
    assert {step.reason[:8]: step.count for step in steps if step.what == "int4 Linears"} == {
        "block 16": 10,
        "block 32": 4,
    }
    assert dequantized(model, "layers.0.mlp.up_proj.weight").attributes.get_int("block_size") == 16
    assert dequantized(model, "layers.0.mlp.down_proj.weight").attributes.get_int("block_size") == 32
    odd = decoder_model(width=50)
    steps = PLAIN.apply(odd, DECODER, None, {})
    kept = next(step for step in steps if step.what == "kept in fp32: no block")
    assert kept.count == 11
    assert "layers.0.self_attn.q_proj" in kept.reason
    assert np.isfinite(exact(odd)).all()


@pytest.mark.parametrize("scheme", [PLAIN, INT8], ids=["int4", "int8"])
def test_nan_in_a_weight_names_it(scheme):
    for name in ("layers.1.mlp.down_proj.weight", "embed_tokens.weight"):
        for data in (None, sentences()):
            model = decoder_model()
            array(model.graph.initializers[name])[3, 3] = np.nan
            with pytest.raises(StageError, match="NaN"):
                scheme.apply(model, DECODER, data, {})


def test_int4_takes_encoders_and_rewrites_their_gemms(tmp_path):
    exported = save_exported(vision_model(), tmp_path / "exported")
    made = quantize(exported, "int4", images(8), tmp_path / "out")
    onnx.checker.check_model(made.path, full_check=True)
    assert found(made.steps) == {"int4 Linears": 6, "int8 Linears": 1, "gptq weights": 6}
    model = ir.load(made.path)
    assert not by_type(model, "Gemm")
    assert by_type(model, "Conv")[0].inputs[1].name == "patch.weight"
    feed = dict(next(images(1, seed=9).batches()))
    assert sqnr(run(exported.path, feed)["logits"], run(made.path, feed)["logits"]) > 10


def test_a_gemm_whose_weight_others_read_or_with_factors_of_its_own_is_left_right():
    b = Builder()
    x = graph_input("x", ["batch", 32])
    weight, bias = b.random("shared", 32, 32), b.random("bias", 32)
    first = b.op("Gemm", x, weight, bias, transB=1)
    second = b.op("Gemm", b.op("Abs", first), weight, bias, alpha=0.5)
    model = b.model([x], {"y": b.op("MatMul", b.op("Abs", second), weight)})
    feed = {"x": np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)}
    before = run(model, feed)["y"]
    steps = quantize_weights(model, SPEC, replace(INT8.recipe(DECODER)), None, {})
    assert found(steps) == {"int8 Linears": 2}
    assert [node.inputs[1].name for node in by_type(model, "Gemm")] == ["shared"]
    assert sqnr(before, run(model, feed)["y"]) > 35


def test_equal_input_gives_equal_bytes(tmp_path):
    exported = save_exported(decoder_model(), tmp_path / "exported", DECODER)
    made = [quantize(exported, "int4", sentences(), tmp_path / name) for name in ("a", "b")]
    assert made[0].sha256 == made[1].sha256


def test_new_nodes_keep_the_module_they_serve():
    weights, packed = packed_decoder("q4_1", LINEARS)
    model = decoder_model(weights=weights)
    INT4.apply(model, DECODER, None, packed)
    for kind in ("DequantizeLinear", "ReduceSum", "MatMul"):
        assert all("pkg.torch.onnx.name_scopes" in node.metadata_props for node in by_type(model, kind))
