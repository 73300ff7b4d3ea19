"""The models people deploy, trained where a package ships them, through the targets of the README's table."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from cpp_program import native, run

from model_zoo._source import fetched
from toolkit.bundle.read import Bundle, open_bundle, report
from toolkit.cli import main
from toolkit.drift.report import StageDrift
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.recipe.document import Data, Quantization

TARGETS = ("ort-cpu-fp32", "ort-cpu-int8", "trt-fp16", "trt-int8")
FEW = Data(count=16)
"""Of the 64 samples that are calibrated on by default, which take minutes here. The gates are the same."""


def to_every_target(model: str, output: Path, **options: Any) -> dict[str, Bundle]:
    request = Request(model=model, targets=TARGETS, output=output, **options)
    return dict(zip(TARGETS, map(open_bundle, export(plan(request))), strict=True))


def last(bundle: Bundle) -> StageDrift:
    return report(bundle).stages[-1]


def assert_sound(bundles: dict[str, Bundle], attentions: int) -> None:
    for target, bundle in bundles.items():
        fused = [step.count for step in bundle.manifest.steps if step.what == "attention modules fused"]
        assert fused == [attentions]
        assert bundle.manifest.engine.status == ("built" if target.startswith("trt") else "executed")
        result = CliRunner().invoke(main, ["check", str(bundle.folder)])
        assert result.exit_code == 0, f"{target}: {result.output}"
    for architecture in ("sm80", "sm86", "sm89", "sm120"):
        assert (bundles["trt-fp16"].folder / f"engine-{architecture}.plan").is_file()
    assert (last(bundles["trt-fp16"]).worst().sqnr_db or 0) > 50


@pytest.fixture(scope="module")
def minilm(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    return to_every_target(str(minilm_folder), tmp_path_factory.mktemp("minilm"))


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if fetched("smollm2-135m-instruct") is None:
        pytest.skip("smollm2 is not here: run python scripts/fetch_models.py")
    output = tmp_path_factory.mktemp("smollm2")
    (folder,) = export(plan(Request("smollm2-135m-instruct", ("ort-cpu-int4",), output=output, offline=True)))
    return folder


def program(folder: Path, name: str, *arguments: object) -> str:
    """What a C++ program prints, which must end well; with the tokenizer operators that were fetched."""
    library = native("extensions") / "libortextensions.so"
    command = [str(folder / name), *map(str, arguments)]
    return run(*command, env={**os.environ, "TOOLKIT_EXTENSIONS": str(library)}).stdout


def require_graphs(bundle: Bundle) -> None:
    preprocess = bundle.manifest.preprocess
    if preprocess is None or preprocess.graph is None:
        pytest.skip("the bundle has no tokenizer graph")


@pytest.mark.heavy
def test_minilm(minilm: dict[str, Bundle]) -> None:
    bundles = minilm
    assert_sound(bundles, attentions=6)
    assert [tensor.name for tensor in bundles["trt-int8"].manifest.outputs] == ["embedding"]
    task = last(bundles["trt-fp16"]).task
    assert task is not None
    assert (task.overlap_at_10 or 0) > 0.99


@pytest.mark.heavy
def test_minilm_in_cpp_proves_itself(minilm: dict[str, Bundle], cpp_programs: Path) -> None:
    for target in ("ort-cpu-fp32", "ort-cpu-int8"):
        assert program(cpp_programs, "selftest", minilm[target].folder).endswith("selftest passed\n")


@pytest.mark.heavy
def test_minilm_in_cpp_embeds_texts_as_the_toolkit_does(minilm: dict[str, Bundle], cpp_programs: Path) -> None:
    bundle = minilm["ort-cpu-fp32"]
    require_graphs(bundle)
    texts = ["a cat on a mat", "a dog on a log", "引力 🎉"]
    said = CliRunner().invoke(main, ["run", str(bundle.folder), *texts, "--json"])
    printed = program(cpp_programs, "embed", bundle.folder, *texts)
    cosines = [[float(value) for value in line.split()] for line in printed.splitlines()[-3:]]
    answer = json.loads(said.stdout)
    for own, theirs in zip(cosines, answer["cosine"], strict=True):
        assert own == pytest.approx(theirs, abs=1e-5)
    for line, row in zip(printed.splitlines(), answer["rows"], strict=False):
        first = [float(value) for value in re.findall(r"-?\d+\.\d{6}", line)]
        assert first == pytest.approx(row["embedding"]["first"], abs=1e-5)


@pytest.mark.heavy
def test_dinov2(dinov2_folder: Path, tmp_path: Path) -> None:
    assert_sound(to_every_target(str(dinov2_folder), tmp_path, calibration=FEW), attentions=12)


@pytest.mark.heavy
def test_vit_base_with_random_weights(tmp_path: Path) -> None:
    # Random weights say nothing of rounding by data, which takes minutes here.
    recipe = Quantization(rounding="nearest")
    bundles = to_every_target("vit-base", tmp_path, weights="random", calibration=FEW, recipe=recipe)
    assert_sound(bundles, attentions=12)
    assert bundles["trt-int8"].manifest.model.weights == "random"


@pytest.mark.heavy
def test_vit_digits_keeps_its_accuracy(tmp_path: Path) -> None:
    bundles = to_every_target("vit-digits", tmp_path)
    assert_sound(bundles, attentions=4)
    for bundle in bundles.values():
        task = last(bundle).task
        assert task is not None
        assert (task.reference_accuracy or 0) >= 98
        assert (task.candidate_accuracy or 0) >= 98


@pytest.mark.heavy
def test_smollm2_carried_over_from_its_gguf_answers_a_question(smollm2: Path) -> None:
    folder = smollm2
    bundle = open_bundle(folder)
    drift = last(bundle)
    assert drift.stage == "engine"
    assert drift.task is not None
    # The weights are the file's own: what is left is the rounding of activations to int8.
    assert (drift.task.kl or 1) <= 0.005
    assert (drift.task.perplexity_ratio or 2) <= 1.01
    assert drift.task.greedy is not None
    assert any("carried over exactly" in step.reason for step in bundle.manifest.steps)
    # A question whose first token is no tie in fp32: "The" 0.55, "Paris" 0.13; without "Answer …" it is 0.15 to 0.14.
    asked = "What is the capital of France? Answer in one sentence."
    question = ["run", str(folder), "--prompt", asked, "--max-new-tokens", "24"]
    result = CliRunner().invoke(main, question)
    assert result.exit_code == 0, result.output
    assert "Paris" in result.output
    checked = CliRunner().invoke(main, ["check", str(folder)])
    assert checked.exit_code == 0, checked.output


@pytest.mark.heavy
def test_smollm2_in_cpp_proves_itself_and_takes_the_same_tokens(
    smollm2: Path, cpp_programs: Path, tmp_path: Path
) -> None:
    assert program(cpp_programs, "selftest", smollm2).endswith("selftest passed\n")
    tokens = np.random.default_rng(3).integers(100, 40000, 530)  # more than one chunk of a prompt
    np.savez(tmp_path / "tokens.npz", input_ids=tokens[None], attention_mask=np.ones((1, 530), np.int64))
    asked = ["run", str(smollm2), str(tmp_path / "tokens.npz"), "--max-new-tokens", "16", "--json"]
    wanted = json.loads(CliRunner().invoke(main, asked).stdout)["completions"][0]["tokens"]
    spelled = " ".join(map(str, tokens))
    printed = program(cpp_programs, "generate", smollm2, "--tokens", spelled, "--max-new-tokens", 16)
    assert [int(token) for token in printed.split()] == wanted


@pytest.mark.heavy
def test_smollm2_in_cpp_streams_the_same_text(smollm2: Path, cpp_programs: Path) -> None:
    require_graphs(open_bundle(smollm2))
    prompt = "Gravity is 引力 🎉 and"
    asked = ["run", str(smollm2), "--prompt", prompt, "--raw", "--max-new-tokens", "24", "--json"]
    wanted = json.loads(CliRunner().invoke(main, asked).stdout)["completions"][0]["text"]
    assert program(cpp_programs, "generate", smollm2, prompt, "--max-new-tokens", 24) == wanted + "\n"
    question = "What is the capital of France? Answer in one sentence."
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert "Paris" in program(cpp_programs, "generate", smollm2, question, "--chatml", "--system", system)
