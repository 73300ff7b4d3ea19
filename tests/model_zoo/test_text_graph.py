"""Tokenizer graphs equal the tokenizers library, on hard texts, real ones and random ones, whatever the build."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pytest
import tiny_tokenizers
from tokenizers import AddedToken, Tokenizer, normalizers

from model_zoo import _hard_texts, _preprocess, _text_graph
from model_zoo._text_decode import UNWRITABLE
from toolkit.bundle.processing import write_processing
from toolkit.bundle.testdata import read_sets
from toolkit.processing import Processing
from toolkit.types import DecoderSpec, Dim, ModelSpec, TensorSpec

CACHE = Path(platformdirs.user_cache_dir("transformer-export-toolkit"))
NATIVE = CACHE / "native" / "extensions" / "libortextensions.so"
DECODED = [name for name in tiny_tokenizers.KINDS if name not in ("bert", "bert_cased", "unigram")]
LIMIT = 300
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def model_spec(limit: int = LIMIT, names: Sequence[str] = NAMES) -> ModelSpec:
    inputs = tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in names)
    return ModelSpec(
        name="tiny",
        family="bert",
        kind="encoder",
        task="features",
        source="tiny",
        architecture="Tiny",
        inputs=inputs,
        outputs=(TensorSpec("y", "float32", ("batch", "sequence", 8)),),
        dims={"batch": Dim(1, 2, 8), "sequence": Dim(1, 64, limit)},
        decoder=DecoderSpec(layers=1, vocabulary=1500, context=limit),
    )


@pytest.fixture
def assets(tmp_path: Path) -> Any:
    def write(definition: str, **settings: Any) -> list[Path]:
        folder = tmp_path / f"assets-{len(list(tmp_path.iterdir()))}"  # files are read once a folder
        folder.mkdir()
        (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": None, **settings}))
        return sorted(folder.iterdir())

    return write


def session(graph: Any, library: str) -> Any:
    import onnxruntime
    import onnxruntime_extensions

    if library == "native" and not NATIVE.is_file():
        pytest.skip("scripts/fetch_native.py extensions has not been run")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    path = str(NATIVE) if library == "native" else onnxruntime_extensions.get_library_path()
    options.register_custom_ops_library(path)
    return onnxruntime.InferenceSession(graph.SerializeToString(), options)


@lru_cache(maxsize=1)
def random_texts() -> tuple[str, ...]:
    """Words of characters of one neighbourhood of Unicode each, and characters of anywhere."""
    draw = np.random.default_rng(7)
    texts = []
    for index in range(120):
        low = int(
            draw.choice([0x20, 0xA0, 0x300, 0x370, 0x600, 0x900, 0x1100, 0x1E00, 0x2000, 0x3040, 0x1F300, 0x1D400])
        )
        wide = draw.integers(1, 0x110000 if index % 4 == 0 else 0x100, 40)
        codes = wide if index % 4 == 0 else low + wide
        glue = draw.choice([" ", "", "\n", "'", "1"], 40)
        texts.append("".join(chr(c) + g for c, g in zip(codes, glue, strict=True) if not 0xD800 <= c < 0xE000))
    return tuple(texts)


def run(graph: Any, texts: Sequence[str], library: str = "installed") -> dict[str, Any]:
    opened = session(graph, library)
    names = [item.name for item in opened.get_outputs()]
    return dict(zip(names, opened.run(None, {"text": np.array(texts, object)}), strict=True))


@pytest.mark.parametrize("kind", tiny_tokenizers.KINDS)
def test_ids_equal_the_library(kind: str, assets: Any) -> None:
    files = assets(tiny_tokenizers.definition(kind), model_max_length=LIMIT)
    made = _text_graph.preprocessing(model_spec(), files)
    assert made.exact, made.reason
    assert made.needs == ("onnxruntime-extensions",)
    texts = [*tiny_tokenizers.real_texts()[::9], *random_texts(), *_hard_texts.HARD_TEXTS]
    expected = _preprocess.texts(texts, files[0].parent, NAMES, max_length=LIMIT)
    for name, value in run(made.graph, texts).items():
        np.testing.assert_array_equal(value, expected[name])


@pytest.mark.parametrize("kind", ["gpt2", "bert", "llama2", "unigram"])
def test_ids_are_the_same_in_another_build_of_the_extensions(kind: str, assets: Any) -> None:
    made = _text_graph.preprocessing(model_spec(), assets(tiny_tokenizers.definition(kind)))
    texts = [*random_texts(), *_hard_texts.HARD_TEXTS]
    expected = run(made.graph, texts)
    for name, value in run(made.graph, texts, "native").items():
        np.testing.assert_array_equal(value, expected[name])


def test_each_text_alone_gives_what_it_gives_in_a_batch(assets: Any) -> None:
    files = assets(tiny_tokenizers.definition("smollm"))
    graph = _text_graph.preprocessing(model_spec(), files).graph
    opened = session(graph, "installed")
    for text in _hard_texts.HARD_TEXTS:
        (ids, mask, _) = opened.run(None, {"text": np.array([text], object)})
        expected = _preprocess.texts([text], files[0].parent, NAMES, max_length=LIMIT)
        np.testing.assert_array_equal(ids, expected["input_ids"].astype(np.int64))
        assert mask.all() and mask.shape == ids.shape


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_truncation_are_those_of_the_configuration(side: str, assets: Any) -> None:
    settings = {"padding_side": side, "pad_token": "[MASK]", "model_max_length": 7}
    files = assets(tiny_tokenizers.definition("bert"), **settings)
    made = _text_graph.preprocessing(model_spec(100), files)
    assert made.exact, made.reason
    texts = ["one", "one two three four five six seven eight nine ten", ""]
    expected = _preprocess.texts(texts, files[0].parent, NAMES)
    actual = run(made.graph, texts)
    assert actual["input_ids"].shape == (3, 7)
    for name in NAMES:
        np.testing.assert_array_equal(actual[name], expected[name])
    assert (actual["input_ids"] == Tokenizer.from_file(str(files[0])).token_to_id("[MASK]")).sum() == 9


def test_a_vocabulary_alone_makes_a_graph(tmp_path: Path) -> None:
    vocabulary = Tokenizer.from_str(tiny_tokenizers.definition("bert")).get_vocab()
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)), encoding="utf-8")
    made = _text_graph.preprocessing(model_spec(names=NAMES[:2]), [tmp_path / "vocab.txt"])
    assert made.exact, made.reason
    assert [item.name for item in made.graph.graph.output] == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("library", ["installed", "native"])
@pytest.mark.parametrize("kind", DECODED)
def test_texts_equal_the_library(kind: str, library: str, assets: Any) -> None:
    made = _text_graph.postprocessing(model_spec(), assets(tiny_tokenizers.definition(kind)))
    assert made.exact, made.reason
    tokenizer, opened = Tokenizer.from_str(tiny_tokenizers.definition(kind)), session(made.graph, library)
    draw = np.random.default_rng(3)
    for _ in range(60):
        ids = draw.integers(-1, tokenizer.get_vocab_size() + 2, 40).tolist()
        expected = tokenizer.decode([i for i in ids if i >= 0]).translate(UNWRITABLE)
        assert opened.run(None, {"ids": np.array(ids, np.int64)})[0].tolist() == [expected]
    assert opened.run(None, {"ids": np.zeros(0, np.int64)})[0].tolist() == [""]


@pytest.mark.parametrize(
    "content", [b"\xf0\x9f\x98", b"\xed\xa0\x80\xe2\x82", b"\xc0\x80\xf5\xff", b"\xe0\x80a\x80\xf4\x90\x80\x80"]
)
def test_bytes_that_are_no_text_are_replaced_as_the_library_does(content: bytes, assets: Any) -> None:
    for kind in ("gpt2", "llama2"):
        tokenizer = Tokenizer.from_str(tiny_tokenizers.definition(kind))
        made = _text_graph.postprocessing(model_spec(), assets(tiny_tokenizers.definition(kind)))
        ids = [tokenizer.token_to_id(name) for name in _names(content, kind)]
        ids = [*tokenizer.encode("x", add_special_tokens=False).ids, *ids]
        (text,) = session(made.graph, "installed").run(None, {"ids": np.array(ids, np.int64)})
        assert text.tolist() == [tokenizer.decode(ids)]
        assert "\ufffd" in text[0]


def _names(content: bytes, kind: str) -> list[str]:
    from model_zoo._token_models import byte_characters

    return [f"<0x{byte:02X}>" if kind == "llama2" else byte_characters()[byte] for byte in content]


@pytest.mark.parametrize("kind", ["smollm", "llama2"])
def test_a_growing_list_of_ids_gives_a_growing_text(kind: str, assets: Any) -> None:
    made = _text_graph.postprocessing(model_spec(), assets(tiny_tokenizers.definition(kind)))
    tokenizer, opened = Tokenizer.from_str(tiny_tokenizers.definition(kind)), session(made.graph, "installed")
    whole = "Grüße 👩‍👩‍👧‍👦, 東京! it's over."
    ids, shown, held = tokenizer.encode(whole).ids, "", 0
    for length in range(1, len(ids) + 1):
        text = opened.run(None, {"ids": np.array(ids[:length], np.int64)})[0][0]
        ready = text.rstrip("\ufffd")
        held += ready != text
        if kind == "smollm":
            assert len(ready) >= len(shown)
        if len(ready) > len(shown):
            assert ready.startswith(shown)
            shown = ready
    assert shown == whole
    assert held > 10


def test_what_no_graph_is_made_of_is_said(assets: Any) -> None:
    definition = json.loads(tiny_tokenizers.definition("gpt2"))
    odd: dict[str, dict[str, Any]] = {
        "a normalizer Replace that cannot be asked": {
            "normalizer": {"type": "Replace", "pattern": {"String": "|"}, "content": "ᚠ"}
        },
        "the normalizer Strip": {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        "'++'": {
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"\p{L}++"},
                "behavior": "Isolated",
                "invert": False,
            }
        },
        "WordLevel": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}, "added_tokens": []},
        "end_of_word_suffix": {"model": {**definition["model"], "end_of_word_suffix": "</w>"}},
    }
    for name, change in odd.items():
        made = _text_graph.preprocessing(model_spec(), assets(json.dumps({**definition, **change})))
        assert made.graph is None
        assert name in made.reason


@pytest.mark.parametrize("normalizer", [normalizers.NFKC(), normalizers.NFKD(), normalizers.Replace("|", "¦")])
def test_normalizers_that_make_or_take_the_separator(normalizer: normalizers.Normalizer, assets: Any) -> None:
    tokenizer = Tokenizer.from_str(tiny_tokenizers.definition("gpt2"))
    tokenizer.normalizer = normalizer
    made = _text_graph.preprocessing(model_spec(), assets(tokenizer.to_str()))
    assert made.exact, made.reason
    texts = ["ﬁne \uff5c half\uff5cwidth ﬀ", "a|b||c ᚠ", "①½ﷺ", *random_texts()[::20]]
    expected = [item.ids for item in tokenizer.encode_batch(texts)]
    found = run(made.graph, texts)
    rows = [ids[mask == 1].tolist() for ids, mask in zip(found["input_ids"], found["attention_mask"], strict=True)]
    assert rows == [ids[: len(row)] for ids, row in zip(expected, rows, strict=True)]
    assert all(map(len, rows))


def test_without_a_tokenizer_or_the_library_the_reason_says_so(assets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "without a tokenizer" in _text_graph.preprocessing(model_spec(), []).reason
    files = assets("{}")
    assert "cannot be read" in _text_graph.postprocessing(model_spec(), files).reason
    monkeypatch.setattr(_text_graph.importlib.util, "find_spec", lambda name: None)
    assert "onnxruntime-extensions is not installed" in _text_graph.preprocessing(model_spec(), files).reason


def test_a_tokenizer_that_differs_on_some_texts_is_marked_with_the_first(assets: Any) -> None:
    tokenizer = Tokenizer.from_str(tiny_tokenizers.definition("gpt2"))
    tokenizer.add_special_tokens([AddedToken("<word>", single_word=True, normalized=False)])
    made = _text_graph.preprocessing(model_spec(), assets(tokenizer.to_str()))
    assert made.graph is not None and not made.exact
    assert made.reason.startswith("'a<word>b' is [")
    assert "for the tokenizer, [" in made.reason


def test_a_graph_of_another_tokenizer_is_not_shipped() -> None:
    from model_zoo._token_graph import token_graph

    mine, other = (Tokenizer.from_str(tiny_tokenizers.definition(kind)) for kind in ("gpt2", "o200k"))
    for tokenizer in (mine, other):
        tokenizer.enable_padding()
    running = _text_graph.session(token_graph(mine, NAMES[:2]))
    assert _text_graph._first_difference(mine, running, [_hard_texts.HARD_TEXTS]) == (False, "")
    plain, reason = _text_graph._first_difference(other, running, [_hard_texts.PLAIN_TEXTS])
    assert plain and reason


def test_samples_and_graphs_come_back_from_a_bundle(assets: Any, tmp_path: Path) -> None:
    files = assets(tiny_tokenizers.definition("smollm"))
    places: dict[Any, Processing] = {
        "preprocess": _text_graph.preprocessing(model_spec(), files),
        "postprocess": _text_graph.postprocessing(model_spec(), files),
    }
    for place, made in places.items():
        entry = write_processing(tmp_path, place, made)
        assert entry.exact and entry.graph == f"{place}.onnx"
        given, expected = read_sets(tmp_path, f"{place}_data_set_")
        assert len(given) == len(made.samples) > 2
        for inputs, outputs in zip(given, expected, strict=True):
            actual = session(made.graph, "installed").run(None, inputs)
            names = [item.name for item in entry.outputs]
            for name, value in zip(names, actual, strict=True):
                np.testing.assert_array_equal(value, outputs[name])
    assert "" in read_sets(tmp_path, "preprocess_data_set_")[0][1]["text"]


def test_real_models(tmp_path: Path) -> None:
    from model_zoo import _source

    for name, limit in (("all-minilm-l6-v2", 256), ("smollm2-135m-instruct", 8192)):
        found = _source.fetched(name)
        if found is None:
            pytest.skip(f"scripts/fetch_models.py has not brought {name}")
        folder = _source.files(str(found), revision=None, offline=True)
        names = NAMES if limit == 256 else NAMES[:2]
        made = _text_graph.preprocessing(model_spec(limit, names), list(folder.iterdir()))
        assert made.exact, made.reason
        texts = [*tiny_tokenizers.real_texts()[:100], *random_texts()]
        expected = _preprocess.texts(texts, folder, names, max_length=limit)
        for library in ("installed", "native") if NATIVE.is_file() else ("installed",):
            for column, value in run(made.graph, texts, library).items():
                np.testing.assert_array_equal(value, expected[column])
        if limit == 8192:
            back = _text_graph.postprocessing(model_spec(limit, names), list(folder.iterdir()))
            assert back.exact, back.reason
