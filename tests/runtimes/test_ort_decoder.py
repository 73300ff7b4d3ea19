"""A language model with its cache in place: any way of feeding tokens gives the logits of one uncached forward."""

from dataclasses import replace
from functools import partial

import numpy as np
import onnx_ir as ir
import pytest
from ort_graphs import CachedCase, decoder_feeds, exported_decoder

from quantize import quantize
from runtimes import portable_session
from runtimes._onnxruntime.decoder import OrtDecoder
from runtimes._onnxruntime.engine import zero_inputs
from runtimes._onnxruntime.lowering import lower_graph
from runtimes._onnxruntime.rules.attention import lower_attention
from runtimes._onnxruntime.rules.cached_attention import lower_cached_attention
from runtimes.ort_cpu import RUNTIME
from runtimes.ort_cuda import RUNTIME as CUDA_RUNTIME
from toolkit.errors import UsageError
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.recipe.changes import parse_changes
from toolkit.recipe.layers import recipe_of_target
from toolkit.target import Target
from toolkit.types import ExportedGraph

LIMIT = 24
KINDS = {
    "llama": {},
    "gpt_neox": {"hidden_size": 128, "num_key_value_heads": None, "rotary_pct": 0.5},
}


@pytest.fixture(scope="session", params=sorted(KINDS))
def family(request, tmp_path_factory):
    """Canonical and lowered graph of a tiny random model."""
    folder = tmp_path_factory.mktemp(request.param)
    graph = exported_decoder(request.param, folder / "export", **KINDS[request.param])
    return graph, RUNTIME.lower(graph, folder / "lowered")


@pytest.fixture(scope="session")
def llama_last(tmp_path_factory):
    folder = tmp_path_factory.mktemp("last")
    graph = exported_decoder("llama", folder / "export", last=True)
    return graph, RUNTIME.lower(graph, folder / "lowered")


@pytest.fixture(params=["rows at once", "row by row"])
def opened(request, family, tmp_path):
    graph, lowered = family
    if request.param == "row by row":
        cached = partial(lower_cached_attention, positions=64, query_lengths=False)
        lowered = lower_graph(graph, tmp_path / "older", "ort-cpu", [cached, lower_attention])
    decoder = RUNTIME.decoder(
        lowered.path.parent, {"graph": lowered.path.name}, graph.spec.decoder, limit=LIMIT, rows=3
    )
    assert isinstance(decoder, OrtDecoder)
    yield decoder, Reference(graph)
    decoder.close()


class Reference:
    """The canonical graph without a past."""

    def __init__(self, graph):
        self._session, self._spec = portable_session(graph.path), graph.spec

    def __call__(self, *rows):
        """Logits of each row on its own, [n, vocabulary]."""
        return [self._one(np.asarray(row)[None]) for row in rows]

    def _one(self, tokens):
        feeds = decoder_feeds(self._spec, 1, tokens.shape[1], 0)
        return self._session.run({**feeds, "input_ids": tokens})["logits"][0]


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(0, 97, length)


def whole(*rows):
    """The rows as one array padded on the right, and their lengths."""
    lengths = np.array([len(row) for row in rows])
    tokens = np.full((len(rows), lengths.max()), 5, np.int64)
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = row
    return tokens, lengths


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


def test_exported_families_lower_whole(family):
    graph, lowered = family
    kinds = [node.op_type for node in ir.load(lowered.path).graph]
    assert kinds.count("GroupQueryAttention") == 2
    assert not {"RotaryEmbedding", "FusedAttention", "Attention"} & set(kinds)
    for rows, count, past, lengths in [(2, 9, 0, None), (1, 1, 20, None), (2, 5, 7, None), (2, 6, 0, [3, 6])]:
        feeds = decoder_feeds(graph.spec, rows, count, past, lengths)
        expected, actual = portable_session(graph.path).run(feeds), portable_session(lowered.path).run(feeds)
        for row in range(rows):
            real = (lengths or [count] * rows)[row]
            close(actual["logits"][row, :real], expected["logits"][row, :real])
            close(actual["present.1.value"][row, :, : past + real], expected["present.1.value"][row, :, : past + real])


def test_one_token_at_a_time_equals_all_at_once(opened):
    decoder, reference = opened
    row = prompt(20)
    (expected,) = reference(row)
    decoder.start(1)
    for place, token in enumerate(row):
        close(decoder.forward(np.array([[token]]), np.array([1]))[0], expected[place])


def test_chunks_of_every_kind(opened):
    decoder, reference = opened
    row = prompt(23)
    (expected,) = reference(row)
    decoder.start(1)
    for start, end in ((0, 7), (7, 8), (8, 19), (19, 23)):
        chunk = row[None, start:end]
        close(decoder.forward(chunk, np.array([end - start]), every=True)[0], expected[start:end])


def test_ragged_rows_answer_as_they_do_alone(opened):
    decoder, reference = opened
    rows = [prompt(11, 1), prompt(16, 2), prompt(13, 3)]
    expected = reference(*rows)
    cuts = (3, 8, 1)
    decoder.start(3)
    first = decoder.forward(*whole(*(row[:cut] for row, cut in zip(rows, cuts, strict=True))))
    for row in range(3):
        close(first[row], expected[row][cuts[row] - 1])
    for step in range(3):
        token = np.array([[row[cut + step]] for row, cut in zip(rows, cuts, strict=True)])
        logits = decoder.forward(token, np.ones(3, np.int64))
        for row in range(3):
            close(logits[row], expected[row][cuts[row] + step])
    rest = [row[cut + 3 :] for row, cut in zip(rows, cuts, strict=True)]
    tokens, lengths = whole(*rest)
    logits = decoder.forward(tokens, lengths, every=True)
    for row in range(3):
        close(logits[row, : lengths[row]], expected[row][cuts[row] + 3 :])


def test_rows_that_fit_alone_but_not_side_by_side(opened):
    decoder, reference = opened
    rows = [prompt(LIMIT, 1), prompt(LIMIT, 2)]
    expected = reference(*rows)
    decoder.start(2)
    decoder.forward(*whole(rows[0][:20], rows[1][:2]))
    logits = decoder.forward(*whole(rows[0][20:24], rows[1][2:24]), every=True)
    close(logits[0, :4], expected[0][20:])
    close(logits[1, :22], expected[1][2:])


def test_rewinding_forgets(opened):
    decoder, reference = opened
    row, other = prompt(12), prompt(6, 9)
    (expected,) = reference(np.concatenate([row[:8], other]))
    decoder.start(1)
    decoder.forward(row[None], np.array([12]))
    decoder.rewind(8)
    close(decoder.forward(other[None], np.array([6]), every=True)[0], expected[8:])
    decoder.rewind(0)
    (expected,) = reference(other)
    close(decoder.forward(other[None], np.array([6]))[0], expected[-1])


def test_starting_anew_with_other_rows(opened):
    decoder, reference = opened
    for rows in (3, 1, 2):
        texts = [prompt(5, seed) for seed in range(rows)]
        decoder.start(rows)
        logits = decoder.forward(*whole(*texts))
        for row, expected in enumerate(reference(*texts)):
            close(logits[row], expected[-1])


def test_the_cache_stays_where_it_is(opened):
    decoder, _ = opened
    decoder.start(1)
    decoder.forward(prompt(4)[None], np.array([4]))
    cache = decoder._caches["past_key_values.1.key"]
    before = cache.copy()
    decoder.forward(np.array([[3]]), np.array([1]))
    changed = np.flatnonzero((cache != before).any(axis=(0, 1, 3)))
    assert changed.tolist() == [4]


def test_limits_are_told(opened):
    decoder, _ = opened
    decoder.start(1)
    decoder.forward(prompt(LIMIT)[None], np.array([LIMIT]))
    with pytest.raises(UsageError, match=f"{LIMIT + 1} positions, the cache holds {LIMIT}") as caught:
        decoder.forward(np.array([[1]]), np.array([1]))
    assert "--context" in caught.value.hint
    with pytest.raises(UsageError, match="4 rows"):
        decoder.start(4)
    decoder.start(2)
    with pytest.raises(UsageError, match="for 2 rows"):
        decoder.forward(np.array([[1]]), np.array([1]))
    with pytest.raises(UsageError, match="token 97 is not in the vocabulary"):
        decoder.forward(np.array([[97], [1]]), np.array([1, 1]))
    decoder.forward(*whole(prompt(3), prompt(5)))
    with pytest.raises(UsageError, match="cannot go back"):
        decoder.rewind(2)


def test_a_limit_beyond_the_tables_is_refused(family):
    graph, lowered = family
    with pytest.raises(UsageError, match="a cache of 65 positions, and the graph was lowered for 64") as caught:
        RUNTIME.decoder(lowered.path.parent, {"graph": lowered.path.name}, graph.spec.decoder, limit=65, rows=1)
    assert "--dim total_sequence" in caught.value.hint


def test_last_logits(llama_last):
    graph, lowered = llama_last
    spec = graph.spec.decoder
    decoder = RUNTIME.decoder(lowered.path.parent, {"graph": lowered.path.name}, spec, limit=LIMIT, rows=2)
    rows = [prompt(9, 1), prompt(4, 2)]
    decoder.start(2)
    logits = decoder.forward(*whole(*rows))
    assert logits.shape == (2, 97)
    for row, expected in enumerate(Reference(graph)(*rows)):
        close(logits[row], expected[-1])
    with pytest.raises(UsageError, match="last position"):
        decoder.forward(np.array([[1], [2]]), np.array([1, 1]), every=True)
    decoder.close()
    with pytest.raises(UsageError, match="closed"):
        decoder.forward(np.array([[1], [2]]), np.array([1, 1]))


def test_a_graph_without_the_kernel_gets_the_other_decoder(family, tmp_path):
    graph, _ = family
    lowered = CUDA_RUNTIME.lower(graph, tmp_path)
    decoder = RUNTIME.decoder(tmp_path, {"graph": lowered.path.name}, graph.spec.decoder, limit=LIMIT, rows=2)
    assert isinstance(decoder, SessionDecoder)
    rows = [prompt(9, 1), prompt(4, 2)]
    decoder.start(2)
    logits = decoder.forward(*whole(*rows))
    for row, expected in enumerate(Reference(graph)(*rows)):
        close(logits[row], expected[-1])


def test_building_runs_a_short_prompt(family):
    graph, lowered = family
    feeds = zero_inputs(graph.spec)
    assert feeds["attention_mask"].all()
    assert feeds["past_key_values.0.key"].shape[2] == 0
    assert RUNTIME.build(lowered).status == "executed"


def test_wrong_limits(family):
    graph, lowered = family
    for given in ({"limit": 0, "rows": 1}, {"limit": 4, "rows": 0}):
        with pytest.raises(UsageError, match="outside its range"):
            RUNTIME.decoder(lowered.path.parent, {"graph": lowered.path.name}, graph.spec.decoder, **given)


def test_tables_end_where_the_spec_does(tmp_path):
    graph = CachedCase(rotary="whole").quantized(tmp_path)
    short = replace(graph, spec=replace(graph.spec, dims={**graph.spec.dims, "total_sequence": replace(
        graph.spec.dims["total_sequence"], max=20)}))  # fmt: skip
    lowered = RUNTIME.lower(short, tmp_path / "lowered")
    table = next(node for node in ir.load(lowered.path).graph if node.op_type == "GroupQueryAttention").inputs[7]
    assert table.shape[0] == 20


def test_layers_of_several_precisions_keep_their_numbers(llama_last, tmp_path):
    """What is merged, packed or fed to the cache's attention in one precision must not be so in four."""
    source, _ = llama_last
    changes = parse_changes("layers=*.q_proj:int4;*.k_proj:fp32;*.o_proj:fp16;*.0.mlp.*:int4;lm_head:fp16")
    recipe = recipe_of_target(changes, Target("ort-cpu", "int8"), source.spec)
    exported = ExportedGraph(source.path, source.spec)
    graph = quantize(exported, "int8", None, tmp_path / "quantized", recipe=recipe)
    lowered = RUNTIME.lower(graph, tmp_path / "lowered")
    feeds = decoder_feeds(source.spec, 2, 5, 0)
    expected, found = (portable_session(each.path).run(feeds)["logits"] for each in (graph, lowered))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)
    nodes = [node.op_type for node in ir.load(lowered.path).graph]
    # Gate and up of a layer are alike, so they are one product; query, key and value are not.
    assert nodes.count("BlockLinear") + nodes.count("MatMulNBits") == 8
    assert nodes.count("MatMul") == 5
