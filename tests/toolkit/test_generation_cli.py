"""`toolkit run` with language models: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundles import image_bundle
from tiny_lm import CONTEXT, SessionRuntime, TinyLM, byte_tokenizer, language_bundle, llama_tokenizer, weights

from toolkit import plugins
from toolkit.bundle.read import Bundle, open_bundle
from toolkit.cli import main
from toolkit.errors import UnsupportedError
from toolkit.generation.generate import Generation
from toolkit.generation.request import Request, complete
from toolkit.generation.session_decoder import SessionDecoder
from toolkit.types import Dim

ROOT = Path(__file__).resolve().parents[2]
TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    language_bundle(folder / "model")
    language_bundle(folder / "plain", config={"chat_template": None})
    language_bundle(folder / "draft", arrays=weights(9))
    language_bundle(folder / "mute", assets=False)
    language_bundle(folder / "last", last_logits=True)
    language_bundle(folder / "narrow", arrays=weights(0, 100))
    language_bundle(folder / "foreign", tokenizer=llama_tokenizer(), config={"eos_token": None})
    image_bundle(folder / "image")
    return folder


@pytest.fixture(autouse=True)
def _runtime(monkeypatch):
    monkeypatch.setattr(plugins, "runtime", lambda name: SessionRuntime())


def toolkit(*arguments, stdin=None):
    return CliRunner().invoke(main, ["run", *map(str, arguments)], input=stdin)


def answer(*arguments, stdin=None):
    result = toolkit(*arguments, "--json", stdin=stdin)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json_says_all_there_is_to_say(root):
    found = answer(root / "model", "--prompt", "hello", "--max-new-tokens", 9)
    (row,) = found["completions"]
    assert row["prompt"] == "hello"
    assert row["prompt_tokens"] == len(TOKENIZER.encode("<|user|>hello<|end|><|assistant|>").ids)
    assert len(row["tokens"]) == 9
    assert row["finish"] == "length"
    assert row["text"] == TOKENIZER.decode(row["tokens"])
    assert found["ttft_ms"] > 0
    assert found["tokens_per_second"] > 0
    assert found["context"] == 64
    assert found["accepted"] is None
    assert "CPUExecutionProvider" in found["ran_on"]


def test_the_template_the_system_text_and_raw_make_the_prompt(root):
    def length(*arguments):
        return answer(*arguments, "--max-new-tokens", 1)["completions"][0]["prompt_tokens"]

    chat = "<|system|>Brief.<|end|><|user|>hi<|end|><|assistant|>"
    assert length(root / "model", "--prompt", "hi", "--system", "Brief.") == len(TOKENIZER.encode(chat).ids)
    assert length(root / "model", "--prompt", "hi", "--raw") == 2
    assert length(root / "plain", "--prompt", "hi") == 2


def test_a_prompt_comes_whole_from_a_file_or_standard_input(root, tmp_path):
    (tmp_path / "p.txt").write_text("two\nlines\n")
    expected = answer(root / "model", "--prompt", "two\nlines\n", "--max-new-tokens", 3)["completions"]
    assert (
        answer(root / "model", "--prompt", f"@{tmp_path / 'p.txt'}", "--max-new-tokens", 3)["completions"] == expected
    )
    found = answer(root / "model", "--prompt", "-", "--max-new-tokens", 3, stdin="two\nlines\n")["completions"]
    assert found == expected


def test_a_batch_answers_each_prompt_as_alone(root):
    prompts = ["hi", "hello world, this is longer", "中"]
    together = answer(root / "model", *(part for prompt in prompts for part in ("--prompt", prompt)))
    for row, prompt in zip(together["completions"], prompts, strict=True):
        (alone,) = answer(root / "model", "--prompt", prompt, "--context", together["context"])["completions"]
        assert row["prompt"] == prompt
        # The longest prompt fills the cache for all, so what is alone may go on.
        assert alone["tokens"][: len(row["tokens"])] == row["tokens"]
    shown = toolkit(root / "model", "--prompt", "hi", "--prompt", "ho", "--max-new-tokens", 3).stdout
    assert "1. hi\n" in shown
    assert "2. ho\n" in shown


def test_streaming_prints_the_same_text(root):
    settings = ("--max-new-tokens", 12, "--temperature", 0.7, "--seed", 4)
    text = answer(root / "model", "--prompt", "hi", *settings)["completions"][0]["text"]
    plain = toolkit(root / "model", "--prompt", "hi", *settings)
    streamed = toolkit(root / "model", "--prompt", "hi", "--stream", *settings)
    assert plain.stdout == streamed.stdout == f"{text}\n"
    for result in (plain, streamed):
        assert "length after 12 tokens" in result.stderr
        assert "tokens/s" in result.stderr
        assert "CPUExecutionProvider" in result.stderr


def test_sampling_settings_arrive(root):
    def tokens(*settings):
        return answer(root / "model", "--prompt", "hi", "--max-new-tokens", 20, *settings)["completions"][0]["tokens"]

    greedy = tokens()
    assert tokens("--temperature", 5, "--top-k", 1) == greedy
    assert tokens("--temperature", 5, "--top-p", 1e-6) == greedy
    drawn = tokens("--temperature", 5, "--seed", 1)
    assert drawn == tokens("--temperature", 5, "--seed", 1)
    assert drawn != tokens("--temperature", 5, "--seed", 2)
    assert tokens("--repetition-penalty", 5) != greedy


def test_a_stop_string_ends_it(root):
    text = answer(root / "model", "--prompt", "hi", "--max-new-tokens", 30)["completions"][0]["text"]
    stop = text[4:6]
    (row,) = answer(root / "model", "--prompt", "hi", "--stop", stop, "--max-new-tokens", 30)["completions"]
    assert row["text"] == text[: text.index(stop)]
    assert row["finish"] == "stop"


def test_a_draft_changes_nothing_but_says_how_often_it_was_right(root):
    plain = answer(root / "model", "--prompt", "hi", "--max-new-tokens", 20)
    for name in ("model", "draft"):
        drafted = answer(root / "model", "--prompt", "hi", "--max-new-tokens", 20, "--draft", root / name)
        assert drafted["completions"] == plain["completions"]
        assert 0 <= drafted["accepted"] <= 1
    assert answer(root / "model", "--prompt", "hi", "--draft", root / "model")["accepted"] == 1
    shown = toolkit(root / "model", "--prompt", "hi", "--draft", root / "model")
    assert "100% of drafted tokens taken" in shown.stderr


def test_tokens_go_in_and_come_out_without_a_tokenizer(root, tmp_path):
    tokens = np.array([[1, 2, 3, 4], [5, 6, 0, 0]], np.int64)
    np.savez(tmp_path / "in.npz", input_ids=tokens, attention_mask=np.array([[1, 1, 1, 1], [1, 1, 0, 0]]))
    found = answer(root / "mute", tmp_path / "in.npz", "--max-new-tokens", 5)["completions"]
    assert [row["prompt_tokens"] for row in found] == [4, 2]
    assert all(len(row["tokens"]) == 5 and row["text"] == "" for row in found)
    shown = toolkit(root / "mute", tmp_path / "in.npz", "--max-new-tokens", 5).stdout
    assert " ".join(map(str, found[1]["tokens"])) in shown


def test_on_cpu_runs_the_graph_of_an_engine_that_is_not_here(root, tmp_path, monkeypatch):
    class Elsewhere:
        def decoder(self, *arguments, **settings):
            raise UnsupportedError("there is no such device", hint="Buy one.")

    expected = answer(root / "model", "--prompt", "hi")["completions"]
    monkeypatch.setattr(plugins, "runtime", lambda name: Elsewhere() if name == "trt" else SessionRuntime())
    bundle = language_bundle(tmp_path / "trt", runtime="trt")
    result = toolkit(bundle, "--prompt", "hi")
    assert result.exit_code == 4
    assert "the trt engine of" in result.stderr
    assert "--on-cpu" in result.stderr
    assert answer(bundle, "--prompt", "hi", "--on-cpu")["completions"] == expected


def test_the_cache_is_as_long_as_needed_and_no_longer_than_the_model(root):
    assert answer(root / "model", "--prompt", "hi", "--max-new-tokens", 3)["context"] == 64
    found = answer(root / "model", "--prompt", "hi", "--max-new-tokens", 500)
    assert found["context"] == CONTEXT
    assert found["completions"][0]["finish"] == "length"
    short = answer(root / "model", "--prompt", "hi", "--context", 10, "--max-new-tokens", 500)
    assert short["context"] == 10
    assert short["completions"][0]["prompt_tokens"] + len(short["completions"][0]["tokens"]) == 11


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["model"], "there is no prompt", "--prompt"),
        (["model", "some text"], "takes no INPUT such as some text", "--prompt"),
        (["model", "--prompt", "hi", "--output", "x.npz"], "--output: not for a language model", "--prompt"),
        (["model", "--prompt", "hi", "--prompt", "ho", "--stream"], "--stream shows one text", "several prompts"),
        (["model", "--prompt", "hi", "--stream", "--json"], "--stream shows one text", "--json"),
        (["model", "--prompt", "x" * 200], "the cache holds 96", "shorter prompt"),
        (["model", "--prompt", "x" * 60, "--context", "20"], "the cache holds 20", "up to 96 with --context"),
        (["model", "--prompt", "hi", "--context", "97"], "context 97 is outside its range", "1 to 96"),
        (["model", "--prompt", "", "--raw"], "the prompt has no tokens", "--prompt"),
        (["model", "--prompt", "hi", "--raw", "--system", "x"], "--raw was given", "prompt itself"),
        (["plain", "--prompt", "hi", "--system", "x"], "no chat template", "prompt itself"),
        (["model", "--prompt", "hi", "--temperature", "-1"], "-1", "--help"),
        (["model", "--prompt", "hi", "--temperature", "nan"], "temperature nan", "Allowed"),
        (["model", "--prompt", "hi", "--top-p", "0"], "top-p", "--help"),
        (["model", "--prompt", "hi", "--stop", ""], "stop string is empty", "--stop"),
        (["mute", "--prompt", "hi"], "no tokenizer.json", "Export"),
        (["narrow", "--prompt", "hi"], "does not match", "tokenizer"),
        (["model", *["--prompt", "hi"] * 5], "5 prompts at once", "--dim batch=1:1:5"),
        (["image", "--prompt", "hi", "--max-new-tokens", "5"], "--prompt, --max-new-tokens: for language", "INPUT"),
        (["image"], "there is no INPUT", "npz"),
        (["model", "--prompt", "hi", "--draft", "narrow"], "the draft has 100 tokens", "same family"),
        (["model", "--prompt", "hi", "--draft", "foreign"], "the tokenizers of", "same tokenizer"),
        (["model", "--prompt", "hi", "--draft", "image"], "holds no language model", "decoder"),
        (["model", "--prompt", "hi", "--draft", "draft", "--temperature", "1"], "greedy choice only", "--temperature"),
        (["model", "--prompt", "a", "--prompt", "b", "--draft", "draft"], "--draft takes one prompt", "--prompt"),
        (["last", "--prompt", "a", "--draft", "draft"], "last position's logits only", "--last-logits"),
    ],
)
def test_what_cannot_be_is_refused_with_a_way_out(root, monkeypatch, arguments, words, hint):
    monkeypatch.chdir(root)
    result = toolkit(*arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert hint in result.stderr.partition("hint:")[2]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({}, "holds no tokens"),
        ({"input_ids": np.zeros((2, 3))}, "holds no tokens"),
        ({"input_ids": np.zeros((1, 0), np.int64)}, "holds no tokens"),
        ({"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.array([[0, 1, 1]])}, "not on the right"),
        ({"input_ids": np.full((1, 3), 9999)}, "token 9999 is not in the vocabulary"),
        ({"input_ids": np.ones((1, 3), np.int64), "attention_mask": np.zeros((1, 3), np.int64)}, "no tokens"),
    ],
)
def test_tokens_that_are_none_are_refused(root, tmp_path, arrays, words):
    np.savez(tmp_path / "in.npz", **arrays)
    result = toolkit(root / "model", tmp_path / "in.npz")
    assert result.exit_code == 2, result.output
    assert words in result.stderr


def test_a_template_that_refuses_is_a_clear_error(tmp_path):
    config = {"chat_template": "{{ raise_exception('roles must alternate') }}"}
    result = toolkit(language_bundle(tmp_path / "b", config=config), "--prompt", "hi")
    assert result.exit_code == 2
    assert "roles must alternate" in result.stderr
    assert "--raw" in result.stderr


def test_nan_logits_are_a_failed_stage_and_the_decoder_is_closed(tmp_path, monkeypatch):
    closed = []

    def close(self):
        closed.append(self)

    monkeypatch.setattr(SessionDecoder, "close", close)
    arrays = weights()
    arrays["places"][12] = np.nan
    result = toolkit(language_bundle(tmp_path / "b", arrays=arrays), "--prompt", "hello", "--raw", "--stream")
    assert result.exit_code == 5
    assert "row 0 at position 13" in result.stderr
    assert [type(one) for one in closed] == [SessionDecoder]


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from tiny_lm import SessionRuntime, SessionDecoder
from toolkit import plugins
from toolkit.bundle.read import Bundle, open_bundle
from toolkit.cli import main
from toolkit.errors import UnsupportedError
from toolkit.generation.generate import Generation
from toolkit.generation.request import Request, complete

class Slow(SessionDecoder):
    def forward(self, *args, **settings):
        time.sleep(0.05)
        return super().forward(*args, **settings)

    def close(self):
        super().close()
        print("closed", sorted({{"torch", "transformers"}} & set(sys.modules)), file=sys.stderr)

import tiny_lm
tiny_lm.SessionDecoder = Slow
plugins.runtime = lambda name: SessionRuntime()
main(["run", {bundle!r}, "--prompt", "hello", "--stream", "--max-new-tokens", "80"])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals are sent as POSIX has them")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_streaming_closes_the_model_and_exits_130(root, number):
    code = SLOW.format(tests=str(Path(__file__).parent), bundle=str(root / "model"))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        # Text comes while the rest is still being made: the pipe has it long before the end.
        assert process.stdout.read(1)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"closed []" in stderr
    assert b"interrupted, nothing was left behind" in stderr
    assert b"Traceback" not in stderr


def test_a_prompt_goes_through_in_chunks_that_the_engine_takes(root, monkeypatch):
    made = open_bundle(root / "model")
    narrow = made.manifest.model_copy(update={"dims": {**made.manifest.dims, "sequence": Dim(1, 4, 6)}})
    decoder = TinyLM(rows=1)
    monkeypatch.setattr("toolkit.generation.request.open_decoder", lambda *args, **kwargs: decoder)
    asked = Request(tokens=(np.arange(20),))
    answer = complete(Bundle(made.folder, narrow), asked, Generation(max_new_tokens=2))
    assert decoder.calls[:4] == [(1, 6), (1, 6), (1, 6), (1, 2)]
    assert answer.completions[0].prompt_tokens == 20
