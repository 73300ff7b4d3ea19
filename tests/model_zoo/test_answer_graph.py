"""The answer graphs give what `toolkit.answers` gives."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from model_zoo import _answer_graph
from toolkit.answers import cosines, top_labels
from toolkit.processing import Processing
from toolkit.types import Dim, ModelSpec, TensorSpec

MASK = TensorSpec("attention_mask", "int64", ("batch", "sequence"))


def processing_of(task: str, *outputs: TensorSpec, inputs: tuple[TensorSpec, ...] = ()) -> Processing:
    spec = ModelSpec(
        name="tiny", family="bert", kind="encoder", task=task, source="none", architecture="none",
        inputs=inputs, outputs=outputs, dims={"batch": Dim(1, 1, 8)},
    )  # fmt: skip
    return _answer_graph.postprocessing(spec)


def run(processing: Processing, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(processing.graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("count", [0, 1, 5, 12, 99])
def test_classes_in_the_order_of_top_labels(count: int) -> None:
    processing = processing_of("image-classification", TensorSpec("logits", "float32", ("batch", 12)))
    assert processing.exact
    logits = np.random.default_rng(count).normal(0, 4, (6, 12)).astype(np.float32)
    logits[1] = 0
    logits[2, ::3] = 7
    logits[3] = [*range(-900, -890), 3e38, 3e38]
    logits[4, :6] = -5000 - np.arange(6)  # all of no share: equal, so by their number
    made = run(processing, logits=logits, k=np.array(count))
    expected = top_labels(logits, (), count)
    assert made["indices"].tolist() == [[each["index"] for each in row] for row in expected]
    shares = np.array([[each["probability"] for each in row] for row in expected]).reshape(6, -1)
    assert np.abs(made["probabilities"] - shares).max(initial=0) <= processing.bound


def test_embeddings_as_cosines_gives_them() -> None:
    processing = processing_of("embedding", TensorSpec("embedding", "float32", ("batch", 16)))
    assert processing.exact
    vectors = np.random.default_rng(0).normal(0, 1, (5, 16)).astype(np.float32)
    vectors[1], vectors[2], vectors[3] = 0, vectors[0] * 1e-20, vectors[0] * 1e15
    made = run(processing, embedding=vectors)
    assert np.abs(made["similarity"] - cosines(vectors)).max() <= processing.bound
    assert not made["similarity"][1].any()
    np.testing.assert_allclose(np.linalg.norm(made["normalized"], axis=1), [1, 0, 1, 1, 1], atol=1e-6)


def test_token_vectors_are_pooled_over_what_is_attended_to() -> None:
    hidden = TensorSpec("last_hidden_state", "float32", ("batch", "sequence", 4))
    processing = processing_of("features", hidden, inputs=(MASK,))
    assert processing.exact
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    made = run(processing, last_hidden_state=values, attention_mask=mask)
    np.testing.assert_array_equal(made["cls"], values[:, 0])
    np.testing.assert_array_equal(made["pooled"], [values[0, :2].mean(axis=0), np.zeros(4)])


@pytest.mark.parametrize(
    ("task", "output"),
    [
        ("features", TensorSpec("last_hidden_state", "float32", ("batch", 5, 4))),
        ("raw", TensorSpec("y", "float32", ("batch", 4))),
        ("image-classification", TensorSpec("logits", "float32", ("batch", 4, 7, 7))),
    ],
)
def test_other_outputs_are_answers_as_they_are(task: str, output: TensorSpec) -> None:
    processing = processing_of(task, output)
    assert processing.graph is None
    assert task in processing.reason
