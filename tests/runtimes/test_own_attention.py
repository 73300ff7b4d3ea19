"""The toolkit's own attention against fp64, against its function and the stock operator; the rule that writes it."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass
from ort_graphs import opened

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.kernels import DOMAIN, build
from runtimes._onnxruntime.kernels.attention_function import (
    ATTENTION,
    ATTENTION_MASKED,
    ATTENTION_PACKED,
    ATTENTION_PACKED_MASKED,
    OPERATORS,
    attention_function,
)
from runtimes._onnxruntime.rules.own_attention import use_own_attention

ROOT = Path(__file__).resolve().parents[2]
FORMS = {"fastest": "", "avx2": "avx2", "portable": "portable"}
TYPES = {"float32": ir.DataType.FLOAT, "bool": ir.DataType.BOOL, "int64": ir.DataType.INT64}


@dataclass
class Case:
    """One attention: what it reads, by name, and what its node says."""

    batch: int = 1
    queries: int = 5
    keys: int = 5
    heads: int = 2
    kv_heads: int = 2
    size: int = 16
    value_size: int = 16
    causal: int = 0
    mask: np.ndarray | None = None
    steep: float = 1.0
    seed: int = 0
    rows: dict = field(init=False)

    def __post_init__(self):
        rng = np.random.default_rng(self.seed)
        widths = {"query": self.heads * self.size, "key": self.kv_heads * self.size}
        widths["value"] = self.kv_heads * self.value_size
        lengths = {"query": self.queries, "key": self.keys, "value": self.keys}
        shapes = {name: (self.batch, lengths[name], width) for name, width in widths.items()}
        self.rows = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        self.rows["query"] *= np.float32(self.steep)

    @property
    def scale(self):
        return float(self.size**-0.5)

    @property
    def attributes(self):
        heads = {"q_num_heads": self.heads, "kv_num_heads": self.kv_heads}
        return {**heads, "is_causal": self.causal, "scale": self.scale, "bfloat16": 0}

    @property
    def lengths(self):
        return np.asarray([self.queries, self.keys], np.int64)

    def split(self, name):
        """[B, H, S, D] in fp64."""
        heads = self.heads if name == "query" else self.kv_heads
        rows = self.rows[name].astype(np.float64)
        return rows.reshape(*rows.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def wanted(self):
        """[B, Sq, Hq · Dv] in fp64; a query without keys answers zeros."""
        query, key, value = (self.split(name) for name in ("query", "key", "value"))
        key, value = (np.repeat(rows, self.heads // self.kv_heads, axis=1) for rows in (key, value))
        scores = query @ key.transpose(0, 1, 3, 2) * self.scale
        if self.mask is not None:
            is_bool = self.mask.dtype == bool
            scores = np.where(self.mask, scores, -np.inf) if is_bool else scores + self.mask.astype(np.float64)
        if self.causal:
            scores = np.where(np.tri(self.queries, self.keys, dtype=bool), scores, -np.inf)
        top = scores.max(-1, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - np.where(np.isfinite(top), top, 0))
        total = weights.sum(-1, keepdims=True)
        answer = weights / np.where(total > 0, total, 1) @ value
        return answer.transpose(0, 2, 1, 3).reshape(self.batch, self.queries, -1)

    def feeds(self, packed=False):
        rows = {"qkv": np.concatenate(list(self.rows.values()), axis=2)} if packed else dict(self.rows)
        return rows | ({} if self.mask is None else {"mask": self.mask, "lengths": self.lengths})


def model_of(op_type, domain, feeds, attributes, functions=()):
    values = [
        ir.Value(name=name, shape=ir.Shape([None] * array.ndim), type=ir.TensorType(TYPES[array.dtype.name]))
        for name, array in feeds.items()
    ]
    node = ir.node(op_type, values, attributes, domain=domain)
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    opsets = {"": 23, **({domain: 1} if domain else {})}
    graph = ir.Graph(values, node.outputs, nodes=[node], opset_imports=opsets, name="tiny")
    return ir.Model(graph, ir_version=10, functions=list(functions))


def own(case, library=None, *, packed=False, threads=1, feeds=None, **attributes):
    """The own operator's answer, or without a library its function's."""
    feeds = feeds or case.feeds(packed)
    op_type = f"Attention{'Packed' if packed else ''}{'' if case.mask is None else 'Masked'}"
    model = model_of(op_type, DOMAIN, feeds, {**case.attributes, **attributes}, [attention_function(op_type, 23)])
    return opened(model, library, threads).run(None, feeds)[0]


def stock(case):
    """ONNX Runtime's own operator; its masks must be written out over queries and keys."""
    feeds = dict(case.rows)
    if case.mask is not None:
        shape = np.broadcast_shapes(case.mask.shape, (case.queries, case.keys))
        feeds["mask"] = np.ascontiguousarray(np.broadcast_to(case.mask, shape))
    said = {name: each for name, each in case.attributes.items() if name != "bfloat16"}
    return opened(model_of("Attention", "", feeds, said)).run(None, feeds)[0]


def masks(case, kind):
    """Every broadcast form of a mask for this case, each with some key for every query."""
    rng = np.random.default_rng(7)
    b, h, q, k = case.batch, case.heads, case.queries, case.keys
    for shape in [(b, 1, 1, k), (1, 1, 1, k), (1, h, 1, k), (b, 1, q, k), (1, 1, q, k), (b, h, q, k), (h, q, k), (q, k),
                  (1, k), (q, 1), (1, 1)]:  # fmt: skip
        allowed = rng.random(shape) < 0.7
        allowed[..., 0] = True
        yield allowed if kind == "bool" else np.where(allowed, rng.standard_normal(shape), -np.inf).astype(np.float32)


SHAPES = {
    "one": {"queries": 1, "keys": 1},
    "one-query": {"queries": 1, "keys": 300, "heads": 4, "kv_heads": 2, "value_size": 40},
    "grouped": {"batch": 2, "queries": 17, "keys": 33, "heads": 6, "kv_heads": 2, "size": 20, "value_size": 12},
    "more-queries": {"queries": 70, "keys": 9, "size": 32, "value_size": 32},
    "vit": {"queries": 197, "keys": 197, "size": 64, "value_size": 64},
    "two-blocks": {"batch": 2, "queries": 50, "keys": 260, "heads": 3, "kv_heads": 3, "size": 80, "value_size": 72},
    "widest": {"queries": 20, "keys": 131, "heads": 1, "kv_heads": 1, "size": 256, "value_size": 256},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_and_mask_equals_fp64(kernels, monkeypatch, shape, causal, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    case = Case(**SHAPES[shape], causal=causal)
    np.testing.assert_allclose(own(case, kernels), case.wanted(), rtol=0, atol=3e-6)
    for kind in ("bool", "float"):
        for mask in masks(case, kind):
            case.mask = mask
            np.testing.assert_allclose(own(case, kernels), case.wanted(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("form", FORMS)
def test_rows_without_keys_are_zeros_as_the_stock_operator_has_them(kernels, monkeypatch, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    lowest = np.finfo(np.float32).min
    for shape in ((1, 1, 20, 150), (1, 1, 1, 150)):
        for nothing in (np.zeros(shape, bool), *(np.full(shape, x, np.float32) for x in (-np.inf, lowest))):
            case = Case(queries=20, keys=150, mask=nothing)
            assert not stock(case).any()
            assert not own(case, kernels).any()
            case.rows["value"][:] = np.nan
            assert not own(case, kernels).any()
    allowed = np.random.default_rng(0).random((1, 1, 20, 150)) < 0.5
    allowed[0, 0, 3:6] = False
    case = Case(queries=20, keys=150, mask=allowed)
    np.testing.assert_allclose(own(case, kernels), stock(case), rtol=0, atol=3e-6)
    # Causal, and the first keys excluded: the first queries have none left.
    case = Case(queries=20, keys=20, mask=np.arange(20)[None] >= 4, causal=1)
    answer = own(case, kernels)
    assert not answer[:, :4].any()
    np.testing.assert_allclose(answer, stock(case), rtol=0, atol=3e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rising", [False, True])
def test_large_scores(kernels, monkeypatch, rising, form):
    """Scores of some thousands, whose maximum comes in the first or the last block of keys."""
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    case = Case(queries=40, keys=400, steep=300)
    growth = np.linspace(1, 30, 400, dtype=np.float32)[None, :, None]
    case.rows["key"] *= growth if rising else growth[:, ::-1]
    answer, wanted = own(case, kernels), case.wanted()
    # One step of a float32 at such a score is a thousandth: compared where the first key is clear of the second.
    close = np.abs(stock(case) - wanted).max()
    assert np.isfinite(answer).all()
    assert np.abs(answer - wanted).max() < max(4 * close, 1e-5)
    for level in (-1e9, 1e4):
        case.mask = np.full((1, 400), level, np.float32)
        assert np.isfinite(own(case, kernels)).all()


def test_a_biased_score_keeps_its_last_bits(kernels):
    case = Case(queries=60, keys=200, size=64, value_size=64)
    bias = np.random.default_rng(3).standard_normal((1, 2, 60, 200)) * 20
    case.mask = bias.astype(np.float32)
    error, theirs = (np.abs(answer - case.wanted()).max() for answer in (own(case, kernels), stock(case)))
    assert error < 2 * theirs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_does_not_vanish(kernels, monkeypatch, bad, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    shape = {"queries": 40, "keys": 300}
    clean = own(Case(**shape), kernels).reshape(40, 2, 16)
    case = Case(**shape)
    case.rows["query"][0, 7, 3] = bad
    answer = own(case, kernels).reshape(40, 2, 16)
    assert np.isnan(answer[7, 0]).all()
    answer[7, 0] = clean[7, 0]
    np.testing.assert_array_equal(answer, clean)
    case = Case(**shape)
    case.rows["value"][0, 290, 20] = bad
    answer = own(case, kernels).reshape(40, 2, 16)
    assert not np.isfinite(answer[:, 1, 4]).any()
    answer[:, 1, 4] = clean[:, 1, 4]
    np.testing.assert_array_equal(answer, clean)
    case = Case(**shape)
    case.rows["key"][0, 2, 20] = np.nan
    answer = own(case, kernels).reshape(40, 2, 16)
    assert np.isnan(answer[:, 1]).all()
    np.testing.assert_array_equal(answer[:, 0], clean[:, 0])


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_bfloat16(kernels, shape, causal):
    """Eight bits of every factor; where the processor has no such products, those of float32."""
    case = Case(**SHAPES[shape], causal=causal)
    for mask in (None, *masks(case, "bool"), *masks(case, "float")):
        case.mask = mask
        answer, wanted = own(case, kernels, bfloat16=1), case.wanted()
        assert np.linalg.norm(answer - wanted) < 0.008 * np.linalg.norm(wanted)
    case.mask = np.zeros((1, case.keys), bool)
    assert not own(case, kernels, bfloat16=1).any()
    case.mask = None
    case.rows["value"][0, 0, 3] = np.nan
    assert np.isnan(own(case, kernels, bfloat16=1)[0, :, 3]).all()


def test_what_all_keys_share_costs_bfloat16_no_bits(kernels):
    """The middle of the keys is taken off before they are rounded; a key that is not finite leaves none to take."""
    case = Case(queries=60, keys=200, size=64, value_size=64, causal=1)
    plain = own(case, kernels, bfloat16=1) - case.wanted()
    case.rows["key"] += np.random.default_rng(5).standard_normal(128).astype(np.float32) * 30
    moved = own(case, kernels, bfloat16=1) - case.wanted()
    assert np.abs(moved).max() < 2 * np.abs(plain).max() + 1e-4
    case.rows["key"][0, 59] = np.nan
    answer = own(case, kernels, bfloat16=1)
    assert np.isfinite(answer[0, :59]).all()
    assert np.isnan(answer[0, 59]).all()


def test_a_key_that_the_mask_excludes_for_all_reaches_nothing(kernels):
    case = Case(queries=20, keys=60, mask=(np.arange(60) < 45)[None])
    clean = own(case, kernels)
    for name in ("key", "value"):
        case.rows[name][:, 45:] = np.nan
    np.testing.assert_array_equal(own(case, kernels), clean)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_packed_rows_are_read_where_they_lie(kernels, monkeypatch, masked, form):
    monkeypatch.setenv(build.SWITCH, FORMS[form])
    case = Case(batch=2, queries=50, keys=50, heads=3, kv_heads=3)
    case.mask = np.arange(50)[None, None, None] < np.array([50, 31])[:, None, None, None] if masked else None
    np.testing.assert_array_equal(own(case, kernels, packed=True), own(case, kernels))
    np.testing.assert_allclose(own(case, packed=True), own(case, kernels), rtol=0, atol=3e-6)


def test_packed_rows_with_fewer_key_heads(kernels):
    case = Case(queries=9, keys=9, heads=4, kv_heads=1)
    np.testing.assert_array_equal(own(case, kernels, packed=True), own(case, kernels))


def test_heads_that_stand_apart(kernels):
    case = Case(batch=2, queries=20, keys=30, heads=4, value_size=24, causal=1)
    flat = own(case, kernels)
    feeds = {name: case.split(name).astype(np.float32) for name in ("query", "key", "value")}
    none = {"q_num_heads": 0, "kv_num_heads": 0}
    for library in (kernels, None):
        answer = own(case, library, feeds=feeds, **none)
        assert answer.shape == (2, 4, 20, 24)
        np.testing.assert_allclose(answer.transpose(0, 2, 1, 3).reshape(flat.shape), flat, rtol=0, atol=3e-6)


@pytest.mark.parametrize("causal", [0, 1])
def test_the_function_means_the_same(kernels, causal):
    case = Case(batch=2, queries=30, keys=40, heads=4, causal=causal)
    for mask in (None, *masks(case, "bool"), *masks(case, "float")):
        case.mask = mask
        np.testing.assert_allclose(own(case), own(case, kernels), rtol=0, atol=3e-6)


def test_threads_do_not_change_a_bit(kernels):
    for shape in ({"queries": 200, "keys": 300}, {"batch": 3, "heads": 6, "kv_heads": 6, "queries": 90, "keys": 90}):
        case = Case(**shape)
        one, *more = (own(case, kernels, threads=threads) for threads in (1, 2, 3))
        for other in more:
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [{"batch": 0}, {"queries": 0}, {"keys": 0}])
def test_nothing_to_attend_or_to_answer(kernels, shape):
    case = Case(**shape)
    answer = own(case, kernels)
    assert answer.shape == (case.batch, case.queries, 32)
    assert not answer.any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"key": (1, 5, 40)}, "one head size"),
        ({"value": (1, 6, 32)}, "one length"),
        ({"key": (2, 5, 32)}, "one batch"),
        ({"query": (1, 5, 33)}, "multiple of their number of heads"),
        ({"query": (1, 2, 5, 16)}, r"must be \[B, S, H D\]"),
        ({"mask": (1, 1, 1, 4)}, "must broadcast"),
        ({"mask": (2, 1, 5, 5)}, "must broadcast"),
        ({"mask": (5,)}, "two to four dimensions"),
        ({"mask": (1, 1, 1, 1, 5)}, "two to four dimensions"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(kernels, change, said):
    case = Case(mask=np.ones((1, 1, 5, 5), bool))
    feeds = case.feeds()
    for name, shape in change.items():
        feeds[name] = np.ones(shape, feeds[name].dtype)
    with pytest.raises(Exception, match=said):
        own(case, kernels, feeds=feeds)


def test_a_mask_of_another_type_is_refused(kernels):
    case = Case(mask=np.ones((1, 5), np.int64))
    with pytest.raises(Exception, match="bool or float32"):
        own(case, kernels)


@pytest.mark.parametrize("heads", [(3, 2), (2, 0), (-2, -2)])
def test_numbers_of_heads_that_do_not_fit_are_refused(kernels, heads):
    with pytest.raises(Exception, match="multiple of kv_num_heads"):
        own(Case(), kernels, q_num_heads=heads[0], kv_num_heads=heads[1])


_LONG = """
import sys
from pathlib import Path
import numpy as np
from ort_graphs import opened
from test_own_attention import Case, model_of
from runtimes._onnxruntime.kernels import DOMAIN

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) // 1024

long = 4096
case = Case(queries=long, keys=long, heads=4, kv_heads=4, size=32, value_size=32)
case.mask = np.arange(long)[None, None, None] < 4000
feeds = case.feeds()
session = opened(model_of("AttentionMasked", DOMAIN, feeds, case.attributes), sys.argv[1], 2)
Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
session.run(None, feeds)
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of a process")
def test_memory_does_not_grow_with_queries_times_keys(kernels):
    """Scores of 4 heads on 4096 tokens would be 256 MB, a written out mask 16 MB."""
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", _LONG, str(kernels)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 14


def standard(case, *, expanded=False, split=False, **attributes):
    """A graph with the standard operator as lowering writes it: a mask expanded, rows cut from one tensor."""
    feeds = case.feeds(split)
    said = {name: each for name, each in case.attributes.items() if name != "bfloat16"}
    model = model_of("Attention", "", feeds, {**said, **attributes})
    (node,) = model.graph
    emit = Emitter(model)
    inputs = dict(zip(feeds, model.graph.inputs, strict=True))
    for name, value in inputs.items():
        value.shape = ir.Shape(feeds[name].shape)
    mask, lengths = inputs.get("mask"), inputs.get("lengths")
    if mask is not None and expanded:
        mask = emit.before(node, "Expand", [mask, lengths]).outputs[0]
    rows = [inputs.get(name) for name in ("query", "key", "value")]
    if split:
        cut = emit.before(node, "Split", [inputs["qkv"]], {"axis": 2, "num_outputs": 3}, outputs=3)
        rows = list(cut.outputs)
        for value in rows:
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape([case.batch, case.queries, case.heads * case.size])
    made = emit.before(node, "Attention", [*rows, *([mask] if mask is not None else [])], dict(node.attributes))
    made.outputs[0].dtype = ir.DataType.FLOAT
    emit.replace(node.outputs[0], made.outputs[0])
    model.graph.remove(node, safe=True)
    return model, feeds


def ruled(model):
    steps = use_own_attention(model, Emitter(model))
    RemoveUnusedNodesPass()(model)
    return {step.what: step.count for step in steps}


@pytest.mark.parametrize("split", [False, True], ids=["separate", "packed"])
@pytest.mark.parametrize("mask", [None, "padding", "pairs"])
def test_attention_becomes_own_nodes_and_runs_the_same_without_a_library(kernels, mask, split):
    case = Case(batch=2, queries=6, keys=6)
    if mask is not None:
        case.mask = np.arange(6)[None, None, None] < np.array([6, 4])[:, None, None, None]
    if mask == "pairs":
        case.mask = np.ascontiguousarray(np.broadcast_to(case.mask, (2, 1, 6, 6)))
    model, feeds = standard(case, expanded=mask == "padding", split=split)
    before = opened(model).run(None, feeds)[0]
    counts = ruled(model)
    (node,) = model.graph
    names = {(False, False): ATTENTION, (False, True): ATTENTION_MASKED, (True, False): ATTENTION_PACKED}
    assert node.op_type == names.get((split, mask is not None), ATTENTION_PACKED_MASKED)
    assert len(node.inputs) == len(OPERATORS[node.op_type])
    assert counts.get("attention masks not expanded after all", 0) == (mask == "padding")
    assert counts.get("attention reads packed query, key and value", 0) == split
    np.testing.assert_array_equal(opened(model).run(None, feeds)[0], before)
    np.testing.assert_allclose(opened(model, kernels).run(None, feeds)[0], before, rtol=0, atol=3e-6)


@pytest.mark.parametrize("change", [{"softcap": 2.0}, {"qk_matmul_output_mode": 1}])
def test_forms_that_the_kernel_lacks_stay(change):
    model, _ = standard(Case(), **change)
    assert ruled(model) == {}
    assert [node.op_type for node in model.graph] == ["Attention"]


def test_half_precision_stays():
    model, _ = standard(Case())
    for value in model.graph.inputs:
        value.dtype = ir.DataType.FLOAT16
    assert ruled(model) == {}


def test_products_of_bfloat16_are_for_graphs_of_int8_activations():
    model, _ = standard(Case())
    ruled(model)
    assert model.graph[0].attributes.get_int("bfloat16") == 0
    model, _ = standard(Case())
    scale = Emitter(model).constant(np.float32(0.1))
    quantized = Emitter(model).before(model.graph[0], "QuantizeLinear", [model.graph.inputs[0], scale])
    model.graph.outputs.append(quantized.outputs[0])
    assert ruled(model)["attention may round to bfloat16"] == 1
    assert model.graph[1].attributes.get_int("bfloat16") == 1


def test_rows_split_unevenly_are_read_apart():
    model, _ = standard(Case(), split=True)
    (split, _) = model.graph
    split.outputs[2].shape = ir.Shape([1, 5, 48])
    assert ruled(model) == {f"Attention -> {DOMAIN}::Attention": 1}
    assert [node.op_type for node in model.graph] == ["Split", ATTENTION]
