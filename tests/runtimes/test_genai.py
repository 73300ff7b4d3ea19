"""onnxruntime-genai, the real library, opens a bundle's folder and writes what our own decoder writes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from ort_graphs import exported_decoder
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from runtimes._onnxruntime.genai import GENAI_CONFIG, genai_refusal, write_genai
from runtimes.ort_cpu import RUNTIME
from toolkit.bundle.check import require_unchanged
from toolkit.bundle.read import open_bundle
from toolkit.drift.greedy import greedy_tokens
from toolkit.generation.generate import Generation, generate
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.recipe.document import Data
from toolkit.sessions import open_decoder
from toolkit.types import Decoder, TensorSpec

genai = pytest.importorskip("onnxruntime_genai", reason="needs onnxruntime-genai: pip install -e '.[dev]'")

STEPS = 16
EOS, PAD = 256, 257
TARGETS = ("ort-cpu-fp32", "ort-cpu-int4")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 258, "hidden_size": 64,
    "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "initializer_range": 0.15, "bos_token_id": None, "eos_token_id": EOS,
    "pad_token_id": PAD,
}  # fmt: skip
PROMPTS = ([72, 101, 108, 108, 111, 32, 119], [104, 105, 33])


@pytest.fixture(scope="module", autouse=True)
def _no_telemetry() -> None:
    genai.disable_telemetry_events()


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random Llama with a byte tokenizer, exported to both targets in one go."""
    root = tmp_path_factory.mktemp("genai")
    source = root / "tiny-llama"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(CONFIG))
    _save_tokenizer(source)
    request = Request(
        str(source),
        TARGETS,
        root / "out",
        weights="random",
        offline=True,
        calibration=Data(count=4),
    )
    return dict(zip(TARGETS, export(plan(request)), strict=True))


def _save_tokenizer(folder: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>", "<|pad|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": TEMPLATE}))


def _generated(folder: Path, prompts: list[list[int]] | tuple[list[int], ...], steps: int = STEPS) -> list[list[int]]:
    """What onnxruntime-genai writes after prompts padded on the right, greedily, until all rows have ended."""
    width = max(map(len, prompts))
    model = genai.Model(str(folder))
    settings = genai.GeneratorParams(model)
    settings.set_search_options(do_sample=False, batch_size=len(prompts), max_length=width + steps)
    generator = genai.Generator(model, settings)
    generator.append_tokens(np.array([row + [PAD] * (width - len(row)) for row in prompts], np.int32))
    while not generator.is_done():
        generator.generate_next_token()
    return [_until_end(generator.get_sequence(row).tolist()[width:]) for row in range(len(prompts))]


def _ours(decoder: Decoder, prompts: list[list[int]] | tuple[list[int], ...], steps: int = STEPS) -> list[list[int]]:
    rows: list[list[int]] = [[] for _ in prompts]
    settings = Generation(max_new_tokens=steps, eos=(EOS,), pad=PAD)
    for event in generate(decoder, [np.array(prompt) for prompt in prompts], settings):
        rows[event.row].append(event.token)
    decoder.close()
    return [_until_end(row) for row in rows]


def _until_end(tokens: list[int]) -> list[int]:
    return tokens[: tokens.index(EOS)] if EOS in tokens else tokens


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[1:], PROMPTS], ids=["one", "short", "ragged"])
def test_the_library_writes_what_our_decoder_writes(
    bundles: dict[str, Path], target: str, prompts: tuple[list[int], ...]
) -> None:
    bundle = open_bundle(bundles[target])
    expected = _ours(open_decoder(bundle, limit=64, rows=len(prompts)), prompts)
    assert max(len(set(row)) for row in expected) > 2
    assert _generated(bundle.folder, prompts) == expected


@pytest.mark.parametrize("target", TARGETS)
def test_logits_are_the_same_numbers(bundles: dict[str, Path], target: str) -> None:
    decoder = open_decoder(open_bundle(bundles[target]), limit=64, rows=1)
    decoder.start(1)
    tokens = np.array([PROMPTS[0]])
    expected = decoder.forward(tokens, np.array([tokens.shape[1]]))
    decoder.close()
    model = genai.Model(str(bundles[target]))
    generator = genai.Generator(model, genai.GeneratorParams(model))
    generator.append_tokens(tokens.astype(np.int32))
    np.testing.assert_allclose(np.asarray(generator.get_logits()).reshape(1, -1), expected, atol=1e-5)


def test_its_tokenizer_and_chat_template_are_found_in_the_folder(bundles: dict[str, Path]) -> None:
    folder = bundles[TARGETS[0]]
    ours = Tokenizer.from_file(str(folder / "assets" / "tokenizer.json"))
    theirs = genai.Tokenizer(genai.Model(str(folder)))
    text = "Grüße, 1 + 2 = three"
    assert theirs.encode(text).tolist() == ours.encode(text).ids
    assert theirs.decode(theirs.encode(text)) == text
    messages = json.dumps([{"role": "user", "content": "hi"}])
    assert theirs.apply_chat_template(messages, add_generation_prompt=True) == "<|user|>hi<|assistant|>"


def test_the_bundle_vouches_for_every_file_of_it(bundles: dict[str, Path]) -> None:
    for folder in bundles.values():
        bundle = open_bundle(folder)
        require_unchanged(bundle)
        files = bundle.manifest.files
        assert GENAI_CONFIG in bundle.manifest.engine.files
        assert {GENAI_CONFIG, "tokenizer.json", "tokenizer_config.json"} <= set(files)
        assert files["tokenizer.json"] == files["assets/tokenizer.json"]


def test_the_configuration_says_what_the_model_is(bundles: dict[str, Path]) -> None:
    found = json.loads((bundles[TARGETS[0]] / GENAI_CONFIG).read_text())
    model, decoder = found["model"], found["model"]["decoder"]
    assert (model["context_length"], model["vocab_size"], model["eos_token_id"]) == (64, 258, EOS)
    assert "bos_token_id" not in model
    assert {name: decoder[name] for name in decoder if name.startswith(("num_", "h"))} == {
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_size": 16, "hidden_size": 64,
    }  # fmt: skip
    assert found["search"]["past_present_share_buffer"] is True


@pytest.mark.parametrize(
    ("settings", "shared"),
    [({"last": True}, True), ({"hidden_size": 48}, False)],
    ids=["last logits only", "a cache that goes out and in"],
)
def test_other_graphs(tmp_path: Path, settings: dict[str, Any], shared: bool) -> None:
    graph = exported_decoder("llama", tmp_path / "export", initializer_range=0.4, **settings)
    lowered = RUNTIME.lower(graph, tmp_path / "lowered")
    folder = lowered.path.parent
    assert write_genai(folder, graph.spec, lowered.path).files == (Path(GENAI_CONFIG),)
    found = json.loads((folder / GENAI_CONFIG).read_text())
    assert found["search"]["past_present_share_buffer"] is shared
    assert graph.spec.decoder is not None
    decoder = RUNTIME.decoder(folder, {"graph": lowered.path.name}, graph.spec.decoder, limit=64, rows=1)
    prompt = [5, 17, 60, 3, 88]
    expected = greedy_tokens(decoder, [np.array(prompt)], STEPS)[0].tolist()
    decoder.close()
    assert len(set(expected)) > 2
    assert _generated(folder, [prompt]) == [expected]


def test_what_the_library_cannot_drive_gets_no_configuration(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = open_bundle(bundles[TARGETS[0]])
    spec, graph = bundle.manifest.spec(), bundle.path(bundle.manifest.graph)
    made = write_genai(tmp_path, replace(spec, kind="vision", decoder=None), graph)
    assert made.files == ()
    assert "vision" in made.reason
    assert not list(tmp_path.iterdir())
    model = ir.load(graph)
    assert genai_refusal(spec, model) == ""
    wider = TensorSpec("past_key_values.1.value", "float32", ("batch", 2, "past_sequence", 32))
    assert "one shape" in genai_refusal(replace(spec, inputs=(*spec.inputs[:-1], wider)), model)
    model.graph.inputs.append(ir.Value(name="temperature"))
    assert "feeds its inputs temperature" in genai_refusal(spec, model)
    model.graph[-1].domain = "elsewhere"
    assert "operators of elsewhere" in genai_refusal(spec, model)
