"""The models people deploy, trained where a package ships them, through the targets of the README's table."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from model_zoo._source import fetched
from toolkit.bundle.read import Bundle, open_bundle, report
from toolkit.cli import main
from toolkit.drift.report import StageDrift
from toolkit.pipeline import export
from toolkit.plan import Request, plan

TARGETS = ("ort-cpu-fp32", "ort-cpu-int8", "trt-fp16", "trt-int8")


def to_every_target(model: str, output: Path, **options: str) -> dict[str, Bundle]:
    request = Request(model=model, targets=TARGETS, output=output, **options)  # type: ignore[arg-type]
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


@pytest.mark.heavy
def test_minilm(minilm_folder: Path, tmp_path: Path) -> None:
    bundles = to_every_target(str(minilm_folder), tmp_path)
    assert_sound(bundles, attentions=6)
    assert [tensor.name for tensor in bundles["trt-int8"].manifest.outputs] == ["embedding"]
    task = last(bundles["trt-fp16"]).task
    assert task is not None
    assert (task.overlap_at_10 or 0) > 0.99


@pytest.mark.heavy
def test_dinov2(dinov2_folder: Path, tmp_path: Path) -> None:
    assert_sound(to_every_target(str(dinov2_folder), tmp_path), attentions=12)


@pytest.mark.heavy
def test_vit_base_with_random_weights(tmp_path: Path) -> None:
    bundles = to_every_target("vit-base", tmp_path, weights="random")
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
def test_smollm2_carried_over_from_its_gguf_answers_a_question(tmp_path: Path) -> None:
    if fetched("smollm2-135m-instruct") is None:
        pytest.skip("smollm2 is not here: run python scripts/fetch_models.py")
    request = Request(model="smollm2-135m-instruct", targets=("ort-cpu-int4",), output=tmp_path, offline=True)
    (folder,) = export(plan(request))
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
