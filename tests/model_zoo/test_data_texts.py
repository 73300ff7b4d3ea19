"""Texts and arrays of the user's own: files, keys, odd lines, classes, and running text for language models."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
from transformers import BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from model_zoo import _text, resolve
from model_zoo._samples import Sample
from model_zoo._windows import windows
from toolkit import plugins
from toolkit.errors import UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Dim, Evaluation, ModelSpec, Tensors

LICENCE = Path(json.__file__).parents[1] / "LICENSE.txt"
WORDS = ["the", "first", "text", "of", "all", "in", "a", "set", "that", "speaks", "of", "nothing", "but", "itself"]


def calibrate(spec: ModelSpec, source: object, **given: Any) -> Calibration:
    return plugins.family(spec.family).calibration(spec, Data(source=str(source), **given))


def evaluate(spec: ModelSpec, source: object, **given: Any) -> Evaluation:
    evaluation = plugins.family(spec.family).evaluation(spec, Data(source=str(source), **given))
    assert evaluation is not None
    return evaluation


def with_tokenizer(folder: Path) -> Path:
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    return folder


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return resolve(str(with_tokenizer(tiny_models.sentence_encoder(tmp_path_factory.mktemp("text")))))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    names = {0: "NEGATIVE", 1: "POSITIVE"}
    options = {"id2label": names, "label2id": {name: key for key, name in names.items()}}
    folder = tiny_models.bert(tmp_path_factory.mktemp("classes"), BertForSequenceClassification, **options)
    return resolve(str(with_tokenizer(folder)))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=512, **sizes)
    return resolve(str(tiny_models.save(LlamaForCausalLM(config), tmp_path_factory.mktemp("decoder"))))


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def texts(count: int) -> list[str]:
    return [" ".join(WORDS[index % 7 :]) + f" {'abcdefghij'[index % 10] * (1 + index // 10)}" for index in range(count)]


def test_lines_are_drawn_and_blank_ones_left_out(embedding: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeff" + "\n\n  \n".join(texts(50)) + "\r\n", encoding="utf-8")
    found = calibrate(embedding, tmp_path / "a.txt", count=20, seed=4)
    assert (found.count, found.total, found.seed, found.source) == (20, 50, 4, str(tmp_path / "a.txt"))
    assert sum(len(batch["input_ids"]) for batch in found.batches()) == 20
    assert found.items() != calibrate(embedding, tmp_path / "a.txt", count=20, seed=5).items()
    (tmp_path / "b.txt").write_text("\n".join(texts(50)))
    plain = calibrate(embedding, tmp_path / "b.txt", count=20, seed=4)
    assert (found.sha256, found.items()) == (plain.sha256, plain.items())
    # A byte order mark is no part of the first text.
    first, bare = (calibrate(embedding, tmp_path / name, count=50).items()[0] for name in ("a.txt", "b.txt"))
    assert first == bare


def test_a_folder_of_texts(embedding: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("\n".join(texts(3)))
    write(tmp_path / "a.jsonl", *({"text": text} for text in texts(5)))
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert calibrate(embedding, tmp_path).count == 8


def test_a_text_that_is_too_long_is_cut_as_the_model_needs(embedding: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("a b c " * 5000)
    (batch,) = calibrate(embedding, tmp_path / "long.txt").batches()
    assert batch["input_ids"].shape == (1, embedding.dims["sequence"].max)


@pytest.mark.parametrize("spelled", ["keys.jsonl#body", "keys.jsonl"])
def test_keys_may_be_named(spelled: str, embedding: ModelSpec, tmp_path: Path) -> None:
    write(tmp_path / "plain.jsonl", *({"text": text} for text in texts(4)))
    write(tmp_path / "keys.jsonl", *({"body": text, "text": "x"} for text in texts(4)))
    column = "" if "#" in spelled else "body"
    found = calibrate(embedding, tmp_path / spelled, column=column)
    assert found.sha256 == calibrate(embedding, tmp_path / "plain.jsonl").sha256


def test_labels_of_texts(classifier: ModelSpec, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"text": "good", "label": "positive"}, {"text": "bad", "label": 0})
    evaluation = evaluate(classifier, tmp_path / "a.jsonl")
    assert evaluation.labels is not None
    assert (evaluation.metric, evaluation.labels.tolist()) == ("accuracy", [1, 0])
    write(tmp_path / "b.jsonl", {"say": "good", "mood": "POSITIVE"}, {"say": "bad", "mood": "Negative"})
    other = evaluate(classifier, f"{tmp_path}/b.jsonl#say,mood")
    assert other.labels is not None
    assert other.labels.tolist() == [1, 0]
    assert other.sha256 == evaluation.sha256
    write(tmp_path / "c.jsonl", {"text": "good"}, {"text": "bad"})
    unlabelled = evaluate(classifier, tmp_path / "c.jsonl")
    assert (unlabelled.metric, unlabelled.labels) == ("accuracy", None)
    assert unlabelled.sha256 != evaluation.sha256


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"text": "a"}\n{"text": \n', "line 2, is not JSON"),
        (b'{"text": "a"}\n\n{"txt": "b"}\n', "line 3, has no text (key 'text')"),
        (b'{"text": 5}\n', "line 1, has no text"),
        (b'{"text": "a", "label": [1]}\n', "line 1, has a label that is neither"),
        (b'{"text": "a", "label": true}\n', "line 1, has a label that is neither"),
        (b'{"text": "a", "label": "so-so"}\n', "line 1: the model has no class 'so-so'"),
        (b'{"text": "a", "label": 2}\n', "line 1: the model has no class '2'"),
        (b'{"text": "a", "label": -1}\n', "line 1: the model has no class '-1'"),
        (b'{"text": "a", "label": 1}\n{"text": "b"}\n', "1 of 2 samples have no class"),
        (b'{"text": "a\xe9"}\n', "cannot be read: line 1 is not UTF-8"),
        (b'{"text": "fine"}\n{"text": "\\ud800"}\n', "cannot be read: line 2 is not UTF-8"),
        (b"", "holds no text"),
        (b'{"text": " "}\n', "holds no text"),
    ],
)
def test_broken_lines_are_named(content: bytes, says: str, classifier: ModelSpec, tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        evaluate(classifier, path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert caught.value.hint


def test_labels_keep_to_the_batches(classifier: ModelSpec, tmp_path: Path) -> None:
    """Batches of exactly 4 rows: of 6 texts 4 are taken, and 2 texts are repeated."""
    rows = [{"text": f"text {'abcdef'[index]}", "label": index % 2} for index in range(6)]
    spec = resolve(classifier.source, dims={"batch": Dim(4, 4, 4)})
    for count, expected in ((6, [0, 1, 0, 1]), (3, [0, 1, 0, 0])):
        evaluation = evaluate(spec, write(tmp_path / "a.jsonl", *rows[:count]))
        assert evaluation.labels is not None
        assert evaluation.labels.tolist() == expected
        assert sum(len(batch["input_ids"]) for batch in evaluation.batches) == 4


def test_labels_do_not_matter_to_an_embedding(embedding: ModelSpec, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", *({"text": text, "label": "whatever"} for text in texts(40)))
    evaluation = evaluate(embedding, tmp_path / "a.jsonl")
    assert (evaluation.metric, evaluation.labels, evaluation.count) == ("retrieval", None, 40)
    assert len({frozenset(item) for item in evaluation.items()}) == 40


def attended(batches: Iterable[Tensors]) -> list[tuple[int, ...]]:
    rows = [pair for batch in batches for pair in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    return [tuple(ids[mask == 1].tolist()) for ids, mask in rows]


def test_held_out_passages_of_like_length_share_a_batch(embedding: ModelSpec) -> None:
    """Of 256 passages in batches of exactly 3 the last is left out, as when they are taken in their own order."""
    spec = resolve(embedding.source, dims={"batch": Dim(3, 3, 3)})
    evaluation = plugins.family(spec.family).evaluation(spec, Data())
    assert evaluation is not None
    plain = list(_text.batches_of(spec, _text.shipped_passages("evaluation"), 1000, 3))
    assert sorted(attended(evaluation.batches)) == sorted(attended(plain))
    assert _text._by_length(spec, ["ccc", "a", "bb", "left out"], 3) == ["a", "bb", "ccc"]


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("labels", "outcome"),
    [
        (np.array([1, 0, 1]), [1, 0, 1]),
        (np.array(["positive", "NEGATIVE", "positive"]), [1, 0, 1]),
        (np.array([0, 1]), "'labels' is int64 [2]"),
        (np.array([0.0, 1.0, 1.0]), "'labels' is float64 [3]"),
        (np.array([0, 1, 2]), "row 2: the model has no class '2'"),
        (None, None),
    ],
)
def test_labels_of_arrays(labels: Any, outcome: Any, classifier: ModelSpec, tmp_path: Path) -> None:
    ids = {item.name: np.ones((3, 5), np.int64) for item in classifier.inputs}
    path = save(tmp_path / "a.npz", **ids, **({} if labels is None else {"labels": labels}))
    if isinstance(outcome, str):
        with pytest.raises(UsageError, match=r"a\.npz") as caught:
            evaluate(classifier, path)
        assert outcome in str(caught.value)
        return
    found = evaluate(classifier, path).labels
    assert (found if found is None else found.tolist()) == outcome


def test_arrays_are_drawn_with_the_seed(embedding: ModelSpec, tmp_path: Path) -> None:
    ids = np.arange(40)[:, None].repeat(6, axis=1)
    path = save(tmp_path / "a.npz", **{item.name: ids for item in embedding.inputs})
    found = calibrate(embedding, path, count=7)
    rows = np.concatenate([batch["input_ids"] for batch in found.batches()])
    assert (found.count, found.total) == (7, 40)
    assert rows[:, 0].tolist() == sorted(set(rows[:, 0].tolist())) != list(range(7))
    assert found.sha256 == calibrate(embedding, path, count=7).sha256


def test_a_module_of_your_own(own_module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owned_by_data.py").write_text(own_module)
    monkeypatch.syspath_prepend(tmp_path)
    spec = resolve("owned_by_data:make")
    rows = np.random.default_rng(0).normal(size=(40, 7, 32)).astype(np.float32)
    evaluation = evaluate(spec, save(tmp_path / "a.npz", x=rows))
    assert (evaluation.metric, evaluation.count) == ("retrieval", 40)
    with pytest.raises(UsageError, match="cannot feed your own module"):
        evaluate(spec, tmp_path)


SCORES = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Linear(6, 4), {"input": torch.randn(2, 6)}
"""


def test_classes_of_a_module_of_your_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the outputs mean is not known; labels say that they are scores."""
    (tmp_path / "scored_by_data.py").write_text(SCORES)
    monkeypatch.syspath_prepend(tmp_path)
    spec, rows = resolve("scored_by_data:make"), np.zeros((3, 6), np.float32)
    evaluation = evaluate(spec, save(tmp_path / "a.npz", input=rows, labels=np.array([3, 0, 1])))
    assert evaluation.labels is not None
    assert (evaluation.metric, evaluation.labels.tolist()) == ("accuracy", [3, 0, 1])
    with pytest.raises(UsageError, match="the model has no class '4'"):
        evaluate(spec, save(tmp_path / "b.npz", input=rows, labels=np.array([3, 0, 4])))


def tokens(found: Calibration | Evaluation) -> list[list[int]]:
    batches = found.batches() if isinstance(found, Calibration) else found.batches
    return [row.tolist() for batch in batches for row in batch["input_ids"]]


def test_running_text_is_cut_into_windows_and_drawn(decoder: ModelSpec) -> None:
    """The licence of Python, of a few thousand words."""
    everything, few = calibrate(decoder, LICENCE, count=1000), calibrate(decoder, LICENCE, count=3, seed=2)
    assert everything.count == everything.total > 4
    assert all(len(row) == 256 for row in tokens(everything))
    assert [row for row in tokens(everything) if row in tokens(few)] == tokens(few)
    evaluation = evaluate(decoder, LICENCE)
    assert evaluation.metric == "language"
    assert evaluation.count == min(8, everything.count)
    assert all({"input_ids", "attention_mask", "position_ids"} < set(batch) for batch in evaluation.batches)


def test_windows_do_not_depend_on_how_lines_come_in(decoder: ModelSpec, tmp_path: Path) -> None:
    words = LICENCE.read_text(encoding="utf-8").split()[:2000]
    (tmp_path / "one.txt").write_text(" ".join(words))
    (tmp_path / "many.txt").write_text("\n".join(words))
    one, many = (calibrate(decoder, tmp_path / name) for name in ("one.txt", "many.txt"))
    assert one.sha256 == many.sha256
    assert one.count == 2000 // 256


def test_a_window_knows_only_texts_that_lie_wholly_in_it(decoder: ModelSpec) -> None:
    lines = [" ".join(["short"] * 100), " ".join(["long"] * 300), " ".join(["last"] * 112)]
    found = list(windows(decoder, 300, [Sample(line, None, "here") for line in lines]))
    assert [sample.content.texts for sample in found] == [(lines[0],), (lines[2],)]


def test_short_text_is_one_window_and_a_word_is_none(decoder: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("only three words")
    assert [len(row) for row in tokens(evaluate(decoder, tmp_path / "a.txt"))] == [3]
    (tmp_path / "a.txt").write_text("word")
    with pytest.raises(UsageError, match="holds no text"):
        evaluate(decoder, tmp_path / "a.txt")


def test_token_ids_of_a_decoder(decoder: ModelSpec, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 300, (5, 12))
    alone = save(tmp_path / "a.npz", input_ids=ids)
    mask = np.ones_like(ids)
    mask[0, 8:] = 0
    masked = save(tmp_path / "b.npz", input_ids=ids, attention_mask=mask)
    for read in (calibrate, evaluate):
        assert tokens(read(decoder, alone)) == ids.tolist()
    positions = [batch["position_ids"] for batch in evaluate(decoder, masked).batches]
    assert positions[0].max() == 7
    assert positions[1].max() == 11
    with pytest.raises(UsageError, match=r"c\.npz has no array input_ids"):
        evaluate(decoder, save(tmp_path / "c.npz", tokens=ids))


def test_a_huge_file_is_read_a_line_at_a_time(embedding: ModelSpec, tmp_path: Path, peak: Callable[..., int]) -> None:
    line = json.dumps({"text": "abc " * 250}) + "\n"
    with (tmp_path / "huge.jsonl").open("w") as file:
        file.writelines(line for _ in range(20_000))
    size = (tmp_path / "huge.jsonl").stat().st_size
    assert size > 20_000_000
    assert peak(lambda: calibrate(embedding, tmp_path / "huge.jsonl", count=8)) < size / 10


@pytest.fixture
def peak() -> Callable[..., int]:
    import tracemalloc

    def measured(work: Callable[[], object]) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measured
