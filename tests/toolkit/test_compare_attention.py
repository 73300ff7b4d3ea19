"""Attention maps: against Transformers' own probabilities, through every form of attention that lowering writes."""

import base64
import copy
import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from exporters.reference import TorchSession
from exporters.torch_export import export
from model_zoo import resolve
from runtimes.ort_cpu import RUNTIME as ORT_CPU
from runtimes.trt import RUNTIME as TRT
from toolkit import plugins
from toolkit.compare.attention import RecordedAttention, attention_drift, attention_pictures, worst_heads
from toolkit.compare.attention_graph import GraphAttention
from toolkit.compare.attention_map import divergence, head_maps
from toolkit.compare.attention_picture import token_labels
from toolkit.compare.attention_torch import TorchAttention
from toolkit.errors import UsageError
from toolkit.types import QuantizedGraph

SHAPE = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64, "image_size": 16, "patch_size": 4,
}  # fmt: skip
MODELS = {
    "bert": {"architectures": ["BertModel"]},
    "vit": {"architectures": ["ViTModel"]},
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 5},
    "gemma2": {"architectures": ["Gemma2ForCausalLM"], "sliding_window": 5, "attn_logit_softcapping": 2.0},
}
LENGTHS = (12, 7)


def made(name, folder):
    """A tiny model whose random queries and keys are large enough for maps that are not flat."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**SHAPE, "model_type": name, **MODELS[name]}))
    spec = resolve(str(folder), weights="random")
    module = plugins.family(spec.family).load(spec)
    torch.manual_seed(1)
    with torch.no_grad():
        for part_name, part in module.named_modules():
            if isinstance(part, nn.Linear) and part_name.endswith(("query", "key", "q_proj", "k_proj")):
                part.weight.normal_(std=0.3)
    return spec, module


def batch_of(spec):
    """Two rows, the second padded on the right; pasts of no length."""
    rng, sizes = np.random.default_rng(0), {"batch": 2, "sequence": 12, "past_sequence": 0, "total_sequence": 12}
    batch = {}
    for tensor in spec.inputs:
        shape = [sizes.get(size, size) for size in tensor.shape]
        whole = tensor.dtype == "int64"
        batch[tensor.name] = rng.integers(0, 2, shape) if whole else rng.standard_normal(shape).astype(tensor.dtype)
    if "input_ids" in batch:
        batch["input_ids"] = rng.integers(0, 96, (2, 12))
        batch["attention_mask"] = (np.arange(12) < np.array(LENGTHS)[:, None]).astype(np.int64)
    if "position_ids" in batch:
        batch["position_ids"] = np.tile(np.arange(12), (2, 1))
    return batch


def without_padding(batch):
    """The second row alone, cut to what is real in it."""
    return {
        name: array[1:] if array.ndim != 2 else np.ascontiguousarray(array[1:, : LENGTHS[1]])
        for name, array in batch.items()
    }


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """The spec, the module, a batch and the canonical graph."""
    folder = tmp_path_factory.mktemp("bert")
    spec, module = made("bert", folder / "model")
    return spec, module, batch_of(spec), export(module, spec, batch_of(spec), folder / "export")


@pytest.mark.parametrize("name", MODELS)
def test_maps_are_those_of_eager_attention(name, tmp_path):
    spec, module = made(name, tmp_path / "model")
    batch = batch_of(spec)
    calls = TorchAttention(module).calls(batch, tmp_path / "calls")
    module.model.set_attn_implementation("eager")
    fed = {key: torch.from_numpy(array) for key, array in batch.items() if not key.startswith("past")}
    with torch.no_grad():
        expected = module.model(**fed, output_attentions=True).attentions
    assert len(calls) == len(expected) == 2
    for call, want in zip(calls.values(), expected, strict=True):
        assert want.max() > 0.3
        for row in range(2):
            real = LENGTHS[row] if "input_ids" in batch else None
            np.testing.assert_allclose(head_maps(call, row)[:, :real], want[row, :, :real].numpy(), rtol=0, atol=1e-5)


def test_a_padded_key_has_no_probability(bert, tmp_path):
    calls = TorchAttention(bert[1]).calls(bert[2], tmp_path)
    assert all((head_maps(call, 1)[:, :, LENGTHS[1] :] == 0).all() for call in calls.values())


def test_modules_are_called_as_in_the_graph(bert, tmp_path):
    _, module, batch, graph = bert
    candidate = GraphAttention(graph.path)
    drift = attention_drift(TorchAttention(module), candidate, [batch], tmp_path)
    assert drift.skipped == {}
    names = [(head.module, head.head) for head in drift.heads]
    assert names == [(f"encoder.layer.{layer}.attention.self", head) for layer in range(2) for head in range(4)]
    assert all(head.divergence < 1e-9 and head.top1_agreement == 1 for head in drift.heads)
    assert all(head.reference_entropy == pytest.approx(head.candidate_entropy, abs=1e-5) for head in drift.heads)


@pytest.mark.parametrize("runtime", [ORT_CPU, TRT], ids=["ort-cpu", "trt"])
def test_lowered_graphs_are_read(bert, runtime, tmp_path):
    spec, module, batch, graph = bert
    lowered = runtime.lower(QuantizedGraph(graph.path, spec), tmp_path / "lowered")
    candidate = GraphAttention(lowered.path)
    drift = attention_drift(TorchAttention(module), candidate, [batch], tmp_path)
    assert drift.skipped == {}
    assert len(drift.heads) == 8
    assert max(head.divergence for head in drift.heads) < 1e-9


def test_identical_sides_do_not_differ_at_all(bert):
    drift = attention_drift(TorchAttention(bert[1]), TorchAttention(bert[1]), [bert[2]])
    assert {(head.divergence, head.top1_agreement) for head in drift.heads} == {(0.0, 1.0)}


def test_the_head_that_was_changed_is_named(bert):
    """One head's keys read their inputs in another order."""
    _, module, batch, _ = bert
    changed = copy.deepcopy(module)
    key = changed.model.encoder.layer[1].attention.self.key
    with torch.no_grad():
        key.weight[32:48] = key.weight[32:48, torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    heads = attention_drift(TorchAttention(module), TorchAttention(changed), [batch]).heads
    moved = [(head.module, head.head) for head in heads if head.divergence > 0]
    assert moved == [("encoder.layer.1.attention.self", 2)]
    assert worst_heads(heads)["encoder.layer.1.attention.self"] == 2
    assert min(head.top1_agreement for head in heads) < 1


def sharpened(module):
    """The module, and the same with larger queries in its first layer."""
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.model.encoder.layer[0].attention.self.query.weight.mul_(1.3)
    return TorchAttention(module), TorchAttention(changed)


def test_padded_queries_do_not_count(bert):
    batch, sides = bert[2], sharpened(bert[1])
    row = {name: array[1:] for name, array in batch.items()}
    padded, cut = (attention_drift(*sides, [each]).heads for each in (row, without_padding(batch)))
    assert [head.divergence for head in padded] == pytest.approx([head.divergence for head in cut], abs=1e-6)
    assert padded[0].divergence > 1e-3


def test_means_are_over_the_queries_of_all_batches(bert):
    """Not over batches: those of the longer row weigh more."""
    batch, sides = bert[2], sharpened(bert[1])
    rows = [{name: array[index : index + 1] for name, array in batch.items()} for index in range(2)]
    together, alone = attention_drift(*sides, rows), [attention_drift(*sides, [row]) for row in rows]
    weighted = sum(
        length * np.array([head.divergence for head in drift.heads])
        for length, drift in zip(LENGTHS, alone, strict=True)
    )
    assert [head.divergence for head in together.heads] == pytest.approx(weighted / sum(LENGTHS))


def test_a_form_that_is_not_read_is_told_by_name(tmp_path):
    text = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[1, 3, 16] q, float[1, 3, 16] k, float[1, 3, 16] v) => (float[1, 3, 16] y)
    { y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, k, v) }"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].name = "mine"
    onnx.save(model, tmp_path / "model.onnx")
    graph = GraphAttention(tmp_path / "model.onnx")
    assert list(graph.unread) == ["mine"]
    assert "com.microsoft::MultiHeadAttention" in graph.unread["mine"]
    feeds = {name: np.ones((1, 3, 16), np.float32) for name in "qkv"}
    assert graph.calls(feeds, tmp_path / "calls") == {}
    drift = attention_drift(graph, graph, [feeds])
    assert drift.heads == ()
    assert drift.skipped == graph.unread


def test_sdpa_of_a_module_of_ones_own_is_recorded(tmp_path):
    class Own(nn.Module):
        def forward(self, x):
            return {"y": nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)}

    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    (call,) = TorchAttention(Own()).calls({"x": x}, tmp_path).values()
    expected = TorchSession(Own()).run({"x": x})["y"]
    for row in range(2):
        np.testing.assert_allclose(head_maps(call, row)[0] @ x[row], expected[row], rtol=0, atol=1e-6)


def test_modules_that_one_side_lacks_are_told(bert):
    _, module, batch, graph = bert
    model = ir.load(graph.path)
    first = next(node for node in model.graph if node.op_type == "FusedAttention")
    first.metadata_props["pkg.torch.onnx.name_scopes"] = "['elsewhere']"
    ir.save(model, graph.path.with_name("renamed.onnx"))
    candidate = GraphAttention(graph.path.with_name("renamed.onnx"))
    drift = attention_drift(TorchAttention(module), candidate, [batch])
    assert drift.skipped == {
        "encoder.layer.0.attention.self": "the candidate has no attention of this name",
        "elsewhere": "the reference has no attention of this name",
    }
    assert {head.module for head in drift.heads} == {"encoder.layer.1.attention.self"}


def test_a_recorded_side_is_compared_when_its_model_is_gone(bert, tmp_path):
    _, module, batch, graph = bert
    batches = [batch, without_padding(batch)]
    candidate = GraphAttention(graph.path)
    recorded = RecordedAttention(TorchAttention(module), batches, tmp_path)
    assert attention_drift(recorded, candidate, batches) == attention_drift(TorchAttention(module), candidate, batches)
    with pytest.raises(UsageError, match="not recorded"):
        attention_drift(recorded, candidate, [dict(batch)])


def test_pictures_show_the_worst_head_without_padding(bert):
    _, module, batch, _ = bert
    changed = copy.deepcopy(module)
    with torch.no_grad():
        changed.model.encoder.layer[0].attention.self.query.weight[:16] *= -1
    sides = TorchAttention(module), TorchAttention(changed)
    worst = worst_heads(attention_drift(*sides, [batch]).heads)
    labels = [f"t{index}" for index in range(12)]
    pictures = attention_pictures(*sides, batch, worst, row=1, name="second", labels=labels)
    assert [(each.module, each.input) for each in pictures] == [(module, "second") for module in worst]
    assert pictures[0].head == 0
    assert pictures[0].labels == tuple(labels[: LENGTHS[1]])
    left, right = (
        np.asarray(Image.open(BytesIO(base64.b64decode(png))))
        for png in (pictures[0].reference_png, pictures[0].candidate_png)
    )
    assert left.shape == right.shape == (LENGTHS[1], LENGTHS[1])
    assert max(left.max(), right.max()) == 255
    assert not np.array_equal(left, right)


def test_tokens_label_themselves(minilm_folder, tmp_path):
    assert token_labels([101, 7592, 102], minilm_folder) == ("[CLS]", "hello", "[SEP]")
    assert token_labels([101], tmp_path) == ()
    (tmp_path / "tokenizer.json").write_text("{")
    assert token_labels([101], tmp_path) == ()


def test_no_batches_are_refused(bert):
    with pytest.raises(UsageError, match="inputs"):
        attention_drift(TorchAttention(bert[1]), TorchAttention(bert[1]), [])


DISTRIBUTIONS = st.integers(1, 9).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(0, 1, allow_subnormal=False), min_size=size, max_size=size), min_size=2, max_size=2
    )
)


@given(DISTRIBUTIONS)
def test_divergence_is_symmetric_and_bounded(weights):
    left, right = (np.array(row) / sum(row) if sum(row) > 1e-9 else np.zeros(len(row)) for row in weights)
    there, back = divergence(left, right), divergence(right, left)
    assert there == back
    assert 0 <= there <= np.log(2)
    assert divergence(left, left) == 0


@given(DISTRIBUTIONS)
def test_divergence_is_the_mean_of_two_relative_entropies(weights):
    left, right = (np.array(row) + 1e-3 for row in weights)
    left, right = left / left.sum(), right / right.sum()
    mean = (left + right) / 2
    expected = (left * np.log(left / mean) + right * np.log(right / mean)).sum() / 2
    assert divergence(left, right) == pytest.approx(expected, abs=1e-12)


def test_distributions_without_a_common_key_are_ln_2_apart():
    assert divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(np.log(2))
    assert divergence(np.array([1.0, 0.0]), np.zeros(2)) == pytest.approx(np.log(2))


def test_a_query_whose_scores_are_not_finite_attends_to_nothing(bert, tmp_path):
    call = next(iter(TorchAttention(bert[1]).calls(bert[2], tmp_path).values()))
    query = np.array(call.query)
    query[0, 0, 3] = np.nan
    query[0, 1, 2] = np.inf
    maps = head_maps(replace(call, query=query), 0)
    sums = maps.sum(axis=-1)
    assert sums[0, 3] == sums[1, 2] == 0
    assert np.delete(sums, 3, axis=1)[0] == pytest.approx(1)
