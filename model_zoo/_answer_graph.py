"""From a model's outputs to answers, as a graph of standard operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters import DEFAULT_OPSET
from toolkit.answers import cosines, top_labels
from toolkit.processing import Processing
from toolkit.types import ModelSpec, Tensors, TensorSpec

__all__ = ["postprocessing"]

_IR_VERSION = 10
_BOUND = 2.0**-23
"""The distance of float32 numbers at 1: all is computed in float64, and rounded once."""

# In float64, as `toolkit.answers` does it: shares that underflow are equal there, and equal ones keep their order.
_CLASSES = """
answers (float[batch, {classes}] {source}, int64 k) => (float[batch, top] probabilities, int64[batch, top] indices)
<int64 zero = {{0}}, int64 one = {{1}}, int64[1] class_axis = {{-1}}, int64[1] row = {{1}}>
{{
    scores = Cast <to = 11> ({source})
    best = ReduceMax <keepdims = 1> (scores, class_axis)
    below = Sub(scores, best)
    raised = Exp(below)
    total = ReduceSum <keepdims = 1> (raised, class_axis)
    shares = Div(raised, total)
    scores_shape = Shape(scores)
    classes = Gather(scores_shape, one)
    at_most = Min(k, classes)
    at_least = Max(at_most, zero)
    count = Reshape(at_least, row)
    top_shares, indices = TopK <axis = -1, largest = 1, sorted = 1> (shares, count)
    probabilities = Cast <to = 1> (top_shares)
}}
"""
_VECTORS = """
answers (float[batch, {width}] {source}) => (float[batch, {width}] normalized, float[batch, batch] similarity)
<int64[1] width_axis = {{-1}}, double zero = {{0.0}}, double one = {{1.0}}>
{{
    wide = Cast <to = 11> ({source})
    squares = Mul(wide, wide)
    sums = ReduceSum <keepdims = 1> (squares, width_axis)
    norms = Sqrt(sums)
    is_zero = Equal(norms, zero)
    divisors = Where(is_zero, one, norms)
    unit = Div(wide, divisors)
    normalized = Cast <to = 1> (unit)
    turned = Transpose <perm = [1, 0]> (unit)
    cosine = MatMul(unit, turned)
    similarity = Cast <to = 1> (cosine)
}}
"""
_TOKENS = """
answers (float[batch, {sequence}, {width}] {source}, int64[batch, {sequence}] attention_mask)
=> (float[batch, {width}] cls, float[batch, {width}] pooled)
<int64 zero = {{0}}, int64[1] sequence_axis = {{1}}, int64[1] width_axis = {{-1}}, double one = {{1.0}}>
{{
    cls = Gather <axis = 1> ({source}, zero)
    wide = Cast <to = 11> ({source})
    mask = Cast <to = 11> (attention_mask)
    column = Unsqueeze(mask, width_axis)
    attended = Mul(wide, column)
    sums = ReduceSum <keepdims = 0> (attended, sequence_axis)
    counts = ReduceSum <keepdims = 0> (column, sequence_axis)
    divisors = Max(counts, one)
    means = Div(sums, divisors)
    pooled = Cast <to = 1> (means)
}}
"""


def postprocessing(spec: ModelSpec) -> Processing:
    """Classes with their shares for classifiers, unit vectors and their cosines for embeddings, pooled token vectors.

    Logits [batch, classes] and `k` int64 [] give `probabilities` float32 and `indices` int64, both [batch, k], the
    likeliest first, no more than there are classes. An embedding gives `normalized`, unit vectors, and `similarity`,
    cosines float32 [batch, batch]. Token vectors and their `attention_mask` give `cls`, the first token's, and
    `pooled`, the mean of those attended to. Held to `toolkit.answers` within one rounding to float32.
    """
    outputs = {tensor.name: tensor for tensor in spec.outputs}
    if spec.task in ("image-classification", "text-classification") and _rank(outputs.get("logits")) == 2:
        return _compared(_graph(_CLASSES, outputs["logits"], "classes"), "logits", _classified, _some_logits(spec))
    if spec.task == "embedding" and _rank(outputs.get("embedding")) == 2:
        return _compared(_graph(_VECTORS, outputs["embedding"], "width"), "embedding", _related, _some_vectors(spec))
    hidden = outputs.get("last_hidden_state")
    if spec.task == "features" and _rank(hidden) == 3 and "attention_mask" in {item.name for item in spec.inputs}:
        graph = _graph(_TOKENS, outputs["last_hidden_state"], "width", sequence="sequence")
        return _compared(graph, "last_hidden_state", _pooled, _some_tokens(spec))
    return Processing(reason=f"the outputs of task '{spec.task}' are answers as they are")


def _rank(tensor: TensorSpec | None) -> int:
    return 0 if tensor is None or tensor.dtype != "float32" else len(tensor.shape)


def _graph(text: str, source: TensorSpec, last: str, **names: str) -> Any:
    import onnx.parser

    head = f'<ir_version: {_IR_VERSION}, opset_import: ["" : {DEFAULT_OPSET}]>'
    model = onnx.parser.parse_model(head + text.format(source=source.name, **{last: source.shape[-1]}, **names))
    for node in model.graph.node:
        node.name = node.output[0]
    onnx.checker.check_model(model)
    return model


def _compared(
    graph: Any, source: str, answer: Callable[[Mapping[str, NDArray[Any]]], Tensors], given: Sequence[Tensors]
) -> Processing:
    import onnxruntime as ort

    session = ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pairs = [(tensors, answer(tensors)) for tensors in given]
    odd = []
    for tensors, expected in pairs:
        made = session.run(list(expected), dict(tensors))
        odd += [name for name, value in zip(expected, made, strict=True) if not _near(value, expected[name])]
    return Processing(
        graph=graph,
        samples=tuple(pairs),
        exact=not odd,
        bound=_BOUND,
        compared=f"{len(pairs)} batches of seeded '{source}', against numpy in float64",
        reason=f"differs in {', '.join(dict.fromkeys(odd))}" if odd else "",
    )


def _near(made: NDArray[Any], expected: NDArray[Any]) -> bool:
    if made.shape != expected.shape or made.dtype != expected.dtype:
        return False
    return bool(
        np.abs(made.astype(np.float64) - expected).max(initial=0.0) <= (_BOUND if made.dtype.kind == "f" else 0)
    )


def _classified(given: Mapping[str, NDArray[Any]]) -> Tensors:
    rows = top_labels(given["logits"], (), int(given["k"]))
    return {
        "probabilities": np.array([[each["probability"] for each in row] for row in rows], np.float32),
        "indices": np.array([[each["index"] for each in row] for row in rows], np.int64),
    }


def _related(given: Mapping[str, NDArray[Any]]) -> Tensors:
    wide = given["embedding"].astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = wide / np.where(norms == 0, 1.0, norms)
    return {
        "normalized": unit.astype(np.float32),
        "similarity": np.array(cosines(given["embedding"]), np.float32),
    }


def _pooled(given: Mapping[str, NDArray[Any]]) -> Tensors:
    hidden, mask = given["last_hidden_state"], given["attention_mask"].astype(np.float64)[..., None]
    means = (hidden * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1.0)
    return {"cls": hidden[:, 0], "pooled": means.astype(np.float32)}


def _some_logits(spec: ModelSpec) -> tuple[Tensors, ...]:
    """Seeded logits, with ties, with classes out of reach, and asked for more classes than there are."""
    classes = _last(spec, "logits")
    random = np.random.default_rng(0)
    plain = random.normal(0, 3, (2, classes)).astype(np.float32)
    tied = np.round(random.normal(0, 2, (3, classes))).astype(np.float32)
    tied[0, ::2] -= 2000
    return (
        {"logits": plain, "k": np.array(5, np.int64)},
        {"logits": tied, "k": np.array(min(classes + 3, 20), np.int64)},
    )


def _some_vectors(spec: ModelSpec) -> tuple[Tensors, ...]:
    """Seeded vectors of several lengths, one of them all zero."""
    random = np.random.default_rng(0)
    vectors = random.normal(0, 1, (4, _last(spec, "embedding"))) * np.array([[1.0], [1e-12], [0.0], [50.0]])
    return ({"embedding": vectors.astype(np.float32)}, {"embedding": vectors[:1].astype(np.float32)})


def _some_tokens(spec: ModelSpec) -> tuple[Tensors, ...]:
    """Seeded token vectors, of which some are padding; a row is nothing but padding."""
    random = np.random.default_rng(0)
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], np.int64)
    # Within -1 to 1, so that rounding to float32 stays within the bound.
    hidden = random.uniform(-1, 1, (*mask.shape, _last(spec, "last_hidden_state"))).astype(np.float32)
    return ({"last_hidden_state": hidden, "attention_mask": mask},)


def _last(spec: ModelSpec, name: str) -> int:
    return next(int(tensor.shape[-1]) for tensor in spec.outputs if tensor.name == name)
