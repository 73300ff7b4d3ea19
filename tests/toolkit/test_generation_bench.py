"""Language models in `toolkit bench`: what is counted and compared, never how long it took."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_bundles import image_bundle
from tiny_lm import CONTEXT, SIZE, TinyLM, language_bundle, weights
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.bench_decoder import DecoderSettings, _weight_bytes, bench_decoder
from toolkit.bench_worker import read_bandwidth
from toolkit.bundle.manifest import FileEntry
from toolkit.bundle.read import open_bundle
from toolkit.cli import main
from toolkit.compiled import BuiltEngine
from toolkit.errors import UnsupportedError, UsageError
from toolkit.generation.generate import Generation, generate
from toolkit.generation.torch_decoder import TorchDecoder
from toolkit.plugins import listing

PLUGINS = """
from tiny_lm import SessionRuntime, VOCABULARY

RUNTIME = SessionRuntime()


class Family:
    def load(self, spec):
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        ))


FAMILY = Family()
"""
POINTS = "[toolkit.runtimes]\ntiny = tiny_plugins:RUNTIME\n[toolkit.model_zoo]\ntiny = tiny_plugins:FAMILY\n"
SETTINGS = DecoderSettings(prompt_tokens=20, new_tokens=8, runs=2, warmup=1)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Bundles of a runtime and a family that another package brings, as the worker's process finds them."""
    folder = tmp_path_factory.mktemp("bench-language")
    (folder / "tiny_plugins.py").write_text(PLUGINS)
    (folder / "tiny-1.dist-info").mkdir()
    (folder / "tiny-1.dist-info" / "entry_points.txt").write_text(POINTS)
    (folder / "tiny-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1\n")
    for name, seed in (("model", 0), ("other", 9)):
        language_bundle(folder / name, arrays=weights(seed), runtime="tiny", family="tiny")
    language_bundle(folder / "narrow", arrays=weights(0, 100), runtime="tiny", family="tiny")
    image_bundle(folder / "image")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        listing.cache_clear()
        yield folder
    listing.cache_clear()


def test_two_bundles_continue_the_same_prompt_in_turn(root):
    report = bench_decoder(open_bundle(root / "model"), str(root / "other"), SETTINGS)
    assert (report.prompt_tokens, report.new_tokens, report.runs) == (20, 8, 2)
    assert [one.label for one in report.results] == ["model", "other"]
    prompt = np.resize(np.arange(6), 20)
    said = [
        [event.token for event in generate(TinyLM(weights(seed)), [prompt], Generation(max_new_tokens=8))]
        for seed in (0, 9)
    ]
    assert report.same_tokens == next(index for index in range(8) if said[0][index] != said[1][index])
    for one, name in zip(report.results, ("model", "other"), strict=True):
        assert 0 < one.itl_ms <= one.itl_p90_ms
        assert one.ttft_ms > 0
        assert len(one.rounds_ttft_ms) == len(one.rounds_itl_ms) == 2
        assert 0 < one.memory < one.peak
        # Two tensors of 8 floats a position, 24 positions on the mean of 20 to 28.
        assert one.bytes_per_token == (root / name / "model.onnx").stat().st_size + 2 * SIZE * 4 * 24
        assert one.bandwidth_share == pytest.approx(one.bytes_per_token / report.bandwidth / one.itl_ms * 1000)
    first, second = report.results
    expected = np.median(np.array(second.rounds_ttft_ms) / np.array(first.rounds_ttft_ms))
    assert report.ttft_ratio.median == pytest.approx(expected)
    assert report.itl_ratio.p10 <= report.itl_ratio.median <= report.itl_ratio.p90


def test_pytorch_runs_with_transformers_own_cache(root):
    shown = CliRunner().invoke(
        main,
        ["bench", str(root / "model"), "--vs", "torch", "--prompt-tokens", "9", "--new-tokens", "5", "--runs", "1"],
    )
    assert shown.exit_code == 0, shown.output
    assert "9 prompt tokens, 5 new; 1 runs each" in shown.stdout
    assert "eager fp32 cpu" in shown.stdout
    assert "times as fast as PyTorch to the first token" in shown.stdout
    assert "measured bandwidth" in shown.stdout


def test_one_bundle_alone_answers_json(root):
    arguments = ["bench", str(root / "model"), "--prompt-tokens", "9", "--new-tokens", "5", "--runs", "1", "--json"]
    found = json.loads(CliRunner().invoke(main, arguments).stdout)
    assert found["itl_ratio"] is None
    assert found["same_tokens"] is None
    assert found["results"][0]["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["model", "--batch", "2"], "--batch: not for a model of kind decoder", "--prompt-tokens"),
        (["image", "--prompt-tokens", "9", "--new-tokens", "9"], "--prompt-tokens, --new-tokens: not for", "--batch"),
        (["model", "--prompt-tokens", "90"], f"goes to {CONTEXT}", "smaller"),
        (["model", "--prompt-tokens", "9", "--new-tokens", "1"], "1", "--help"),
        (["model", "--prompt-tokens", "9", "--new-tokens", "9", "--vs", "narrow"], "has 100 tokens", "same tokenizer"),
        (["model", "--prompt-tokens", "9", "--new-tokens", "9", "--vs", "image"], "no language model", "decoder"),
    ],
)
def test_what_cannot_be_timed_is_refused(root, monkeypatch, arguments, words, hint):
    monkeypatch.chdir(root)
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert hint in result.stderr.partition("hint:")[2]


def test_bandwidth_is_bytes_by_seconds():
    assert 1e8 < read_bandwidth(1, 8 << 20) < 1e13


# PyTorch as a decoder


def llama(**settings):
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=50, attn_implementation="eager", **{**sizes, **settings})
    return LlamaForCausalLM(config).eval()


def test_pytorch_with_a_cache_says_what_it_says_without():
    model = llama()
    decoder = TorchDecoder(torch.nn.Sequential(model), limit=32, rows=2)
    assert decoder.ran_on.endswith("eager fp32 cpu, sdpa attention")
    tokens = np.random.default_rng(0).integers(0, 50, (2, 12))
    with torch.inference_mode():
        expected = model(torch.from_numpy(tokens)).logits.numpy()
    decoder.start(2)
    first = decoder.forward(tokens[:, :7], np.array([7, 7]))
    rest = decoder.forward(tokens[:, 7:], np.array([5, 5]), every=True)
    np.testing.assert_allclose(first, expected[:, 6], atol=1e-5)
    np.testing.assert_allclose(rest, expected[:, 7:], atol=1e-5)
    decoder.rewind(7)
    np.testing.assert_allclose(decoder.forward(tokens[:, 7:], np.array([5, 5])), expected[:, -1], atol=1e-5)


def test_tied_weights_are_counted_once():
    sizes = [TorchDecoder(llama(tie_word_embeddings=tied), limit=4).weight_bytes for tied in (False, True)]
    assert sizes[0] - sizes[1] == 50 * 16 * 4


def test_the_pytorch_decoder_refuses_what_it_cannot_do():
    decoder = TorchDecoder(llama(), limit=4, rows=2)
    cases = [
        (lambda: decoder.forward(np.ones((2, 2), np.int64), np.array([2, 1])), "several lengths"),
        (lambda: decoder.forward(np.ones((2, 5), np.int64), np.array([5, 5])), "cache holds 4"),
        (lambda: decoder.start(3), "3 rows"),
        (lambda: decoder.rewind(9), "cannot go back to 9"),
    ]
    for call, words in cases:
        with pytest.raises(UsageError, match=words):
            call()
    with pytest.raises(UnsupportedError, match="no Transformers causal language model"):
        TorchDecoder(torch.nn.Linear(2, 2), limit=4)


def test_configuration_beside_the_graph_is_not_read_for_a_token(root):
    bundle = open_bundle(root / "model")
    entry = bundle.manifest.files["model.onnx"]
    engine = bundle.manifest.engine.model_copy(update={"files": ("genai_config.json",)})
    files = {**bundle.manifest.files, "genai_config.json": entry.model_copy(update={"bytes": 7})}
    manifest = bundle.manifest.model_copy(update={"engine": engine, "files": files})
    assert _weight_bytes(replace(bundle, manifest=manifest)) == entry.bytes


def test_of_several_engines_one_is_read_for_a_token(root):
    bundle = open_bundle(root / "model")
    engines = [BuiltEngine(name, f"engine-{name}.plan", size, 1.0, 0) for name, size in (("sm86", 90), ("sm89", 100))]
    details = {"engines": {one.architecture: one.as_json() for one in engines}}
    files = {one.file: FileEntry(sha256="0" * 64, bytes=one.bytes) for one in engines}
    engine = bundle.manifest.engine.model_copy(update={"files": tuple(files), "details": details})
    manifest = bundle.manifest.model_copy(update={"engine": engine, "files": {**bundle.manifest.files, **files}})
    assert _weight_bytes(replace(bundle, manifest=manifest)) == 100
