"""The models people deploy, trained where a package ships them, through the targets of the README's table."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

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
