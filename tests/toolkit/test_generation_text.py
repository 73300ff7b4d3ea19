"""Text in, text out: tokenizers, chat templates, streaming, stop strings."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_lm import SPECIAL, TEMPLATE, VOCABULARY, byte_tokenizer, llama_tokenizer, save_tokenizer, tiny_spec

from toolkit.errors import UsageError
from toolkit.generation.chat import render_chat
from toolkit.generation.streaming import Detokenizer, StopStrings
from toolkit.generation.text import read_codec

BYTES, LLAMA = byte_tokenizer(), llama_tokenizer()
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def decode(tokenizer):
    return lambda tokens: tokenizer.decode(list(tokens), skip_special_tokens=True)


def pieces(tokenizer, prompt, tokens):
    detokenizer = Detokenizer(decode(tokenizer), prompt)
    return [*(detokenizer.push(token) for token in tokens), detokenizer.flush()]


@settings(deadline=None, max_examples=200)
@given(text=st.text(), before=st.text())
@example(text=" world 中文 😀 e\u0301 👩‍👩‍👧", before="")
@example(text="\ufffd\ufffd a", before="é")
def test_pieces_of_bytes_join_to_the_text_and_hold_whole_characters(text, before):
    prompt, tokens = BYTES.encode(before).ids, BYTES.encode(text).ids
    shown = pieces(BYTES, prompt, tokens)
    assert "".join(shown) == decode(BYTES)(tokens)
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(shown)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, VOCABULARY - 1)))
def test_pieces_of_any_tokens_join_to_what_they_decode_to(tokens):
    assert "".join(pieces(BYTES, (), tokens)) == decode(BYTES)(tokens)


def test_a_character_is_shown_with_its_last_byte_and_not_before():
    tokens = BYTES.encode("a😀b").ids
    assert len(tokens) == 6
    assert pieces(BYTES, (), tokens) == ["a", "", "", "", "😀", "b", ""]


def test_a_broken_character_is_shown_once_it_cannot_be_whole():
    first, letter = BYTES.encode("😀").ids[0], BYTES.encode("a").ids[0]
    assert pieces(BYTES, (), [first, letter]) == ["", "\ufffda", ""]
    assert pieces(BYTES, (), [first]) == ["", "\ufffd"]


def test_the_first_word_keeps_its_space():
    """Decoders as SentencePiece's drop a leading space; behind a prompt it belongs to the text."""
    hello, world = LLAMA.token_to_id("▁hello"), LLAMA.token_to_id("▁world")
    assert decode(LLAMA)([world]) == "world"
    assert pieces(LLAMA, [hello], [world, world]) == [" world", " world", ""]
    # A prompt of special tokens only, or none, is the beginning of the text.
    assert pieces(LLAMA, (), [world, world]) == ["world", " world", ""]


def test_characters_in_byte_tokens_come_whole_behind_one_another():
    ids = [LLAMA.token_to_id(f"<0x{byte:02X}>") for byte in "中中".encode()]
    word = LLAMA.token_to_id("▁a")
    shown = pieces(LLAMA, [word], [*ids, word])
    assert shown == ["", "", "中", "", "", "中", " a", ""]


def test_special_tokens_have_no_text():
    end = BYTES.token_to_id(SPECIAL[0])
    assert pieces(BYTES, (), [*BYTES.encode("a").ids, end, *BYTES.encode("b").ids]) == ["a", "", "b", ""]


def through(stops, parts):
    filtered = StopStrings(stops)
    shown = []
    for part in parts:
        shown.append(filtered.push(part))
        if filtered.found:
            return shown, True
    return [*shown, filtered.flush()], False


@pytest.mark.parametrize(
    ("stops", "parts", "shown", "found"),
    [
        (["END"], ["a", "E", "N", "D", "b"], ["a", "", "", ""], True),
        (["END"], ["a E", "N", "x"], ["a ", "", "ENx", ""], False),
        (["END"], ["xEND and more"], ["x"], True),
        (["END"], ["E", "EN", "D"], ["", "E", ""], True),
        (["END"], ["EN"], ["", "EN"], False),
        (["aab"], ["aaaab"], ["aa"], True),
        (["abcd", "bc"], ["ab", "c"], ["", "a"], True),
        (["\n\n", "x"], ["a\n", "\n"], ["a", ""], True),
        ([], ["a", "b"], ["a", "b", ""], False),
    ],
)
def test_stop_strings_are_found_across_pieces(stops, parts, shown, found):
    assert through(stops, parts) == (shown, found)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_what_is_shown_is_the_text_before_the_stop_that_is_complete_first(parts, stops):
    text = "".join(parts)
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    shown, found = through(stops, parts)
    assert found == bool(ends)
    if not found:
        assert "".join(shown) == text
    else:
        # The piece that completes a stop may hold others; the one that begins first counts.
        assert text.startswith("".join(shown))
        assert not any(stop in "".join(shown) for stop in stops)
        rest = text[len("".join(shown)) :]
        assert any(rest.startswith(stop) for stop in stops)


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])


def test_a_codec_knows_the_special_tokens(tmp_path):
    save_tokenizer(tmp_path, bos_token="<|user|>", pad_token="<|system|>")
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    codec = read_codec(tmp_path, tiny_spec(eos=(9, 8)))
    end = BYTES.token_to_id("<|end|>")
    assert codec.eos == (9, 8, 7, end)
    assert codec.pad == BYTES.token_to_id("<|system|>")
    assert codec.special == {"bos_token": "<|user|>", "eos_token": "<|end|>", "pad_token": "<|system|>"}
    assert codec.template == TEMPLATE
    assert codec.decode(codec.encode("hello world").tolist()) == "hello world"


def test_truncation_and_padding_in_the_file_are_not_used(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=10)
    save_tokenizer(tmp_path, tokenizer)
    assert len(read_codec(tmp_path, tiny_spec()).encode("abcdef")) == 6


def test_a_template_file_comes_first_and_a_list_has_a_default(tmp_path):
    save_tokenizer(tmp_path, chat_template=[{"name": "tools", "template": "no"}, {"name": "default", "template": "a"}])
    assert read_codec(tmp_path, tiny_spec()).template == "a"
    (tmp_path / "chat_template.jinja").write_text("b")
    assert read_codec(tmp_path, tiny_spec()).template == "b"


def test_a_bundle_without_a_tokenizer_takes_no_text(tmp_path):
    for assets in (None, tmp_path):
        with pytest.raises(UsageError, match=r"no tokenizer\.json"):
            read_codec(assets, tiny_spec())


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_broken_file_is_named(tmp_path, name):
    (save_tokenizer(tmp_path) / name).write_text("{ no json")
    with pytest.raises(UsageError, match=name):
        read_codec(tmp_path, tiny_spec())


def test_a_tokenizer_with_more_tokens_than_the_model_does_not_match(tmp_path):
    save_tokenizer(tmp_path)
    with pytest.raises(UsageError, match=r"does not match: it has 262 tokens, the model has 200"):
        read_codec(tmp_path, tiny_spec(vocabulary=200))
    # Added tokens alone may go beyond, as long as no prompt holds them.
    codec = read_codec(tmp_path, tiny_spec(vocabulary=262))
    assert codec.encode("hello").size
    with pytest.raises(UsageError, match=r"does not match: it made token 26\d"):
        codec.encode("hello<|end|>")
    with pytest.raises(UsageError, match="no tokens"):
        codec.encode("")


def test_a_template_renders_as_transformers_does():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|end|>", bos_token="<|user|>"
    )
    template = (
        "{{ bos_token }}{% for message in messages %}{% if loop.index > 5 %}{% break %}{% endif %}\n"
        "  {%- if message.role == 'user' %}{{ message | tojson }}{{ eos_token }}\n"
        "  {% else %}{% generation %}[{{ message.content }}]{% endgeneration %}\n"
        "{% endif %}{% endfor %}{{ strftime_now('%Y') | length }}{% if tools is none %}-{% endif %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    expected = tokenizer.apply_chat_template(
        [*MESSAGES, {"role": "user", "content": "<é>"}], chat_template=template, tokenize=False,
        add_generation_prompt=True,
    )  # fmt: skip
    special = {"bos_token": "<|user|>", "eos_token": "<|end|>"}
    assert render_chat(template, [*MESSAGES, {"role": "user", "content": "<é>"}], special) == expected


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for %}", "chat template"),
        ("{{ messages.append(1) }}", "chat template"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[9].content }}", "chat template"),
        ("{{ 1 / 0 }}", "division"),
    ],
)
def test_a_template_that_refuses_or_reaches_out_is_a_clear_error(template, words):
    with pytest.raises(UsageError, match=words) as caught:
        render_chat(template, MESSAGES, {})
    assert "--raw" in caught.value.hint
