"""`toolkit check` runs the graphs before and after the model on their samples, and `toolkit inspect` shows them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx.parser
import pytest
from click.testing import CliRunner, Result
from tiny_bundles import image_bundle

from toolkit.bundle.read import open_bundle
from toolkit.bundle.replay import replay
from toolkit.cli import main
from toolkit.errors import StageError
from toolkit.processing import EXTENSIONS, Processing

DOUBLED = """<ir_version: 10, opset_import: ["" : 21]>
doubled (float[n] x, int64 k) => (float[n] y, int64 z) <float two = {2.0}> { y = Mul(x, two) z = Neg(k) }"""
UPPER = """<ir_version: 10, opset_import: ["" : 21, "ai.onnx.contrib" : 1]>
upper (string[n] text) => (string[n] loud) { loud = ai.onnx.contrib.StringUpper(text) }"""


def doubled(off: float = 0.0, **said: object) -> Processing:
    given = {"x": np.array([1, 2], np.float32), "k": np.array(3)}
    made = {"y": np.array([2 + off, 4], np.float32), "z": np.array(-3)}
    processing = Processing(onnx.parser.parse_model(DOUBLED), ((given, made),), exact=True, bound=0.125, compared="two")
    return replace(processing, **said)


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def test_samples_that_come_out_as_they_did(tmp_path: Path) -> None:
    bundle = image_bundle(tmp_path / "tiny", preprocessing=doubled(0.0625), postprocessing=doubled())
    result = run("check", bundle)
    assert result.exit_code == 0, result.output
    assert "preprocess 1 sample equal" in result.output
    assert "postprocess 1 sample equal" in result.output


@pytest.mark.parametrize("exact", [True, False])
def test_samples_that_differ_fail_unless_the_manifest_said_so(exact: bool, tmp_path: Path) -> None:
    bundle = image_bundle(tmp_path / "tiny", preprocessing=doubled(0.5, exact=exact, reason="" if exact else "known"))
    result = run("check", bundle)
    said = (
        f"preprocess 1 sample {'differs' if exact else 'inexact'}: 'y' of sample 0 differs by 0.5, the bound is 0.125"
    )
    assert said in result.stdout
    assert result.exit_code == (6 if exact else 0)
    shown = json.loads(run("check", bundle, "--json").stdout)
    assert shown["passed"] is not exact
    assert shown["processing"][0]["verdict"] == ("differs" if exact else "inexact")


def test_whole_numbers_and_shapes_must_be_equal(tmp_path: Path) -> None:
    first, made = doubled().samples[0]
    wrong = ((first, {**made, "z": np.array(-4)}), (first, {**made, "y": np.zeros(3, np.float32)}))
    (one,) = replay(open_bundle(image_bundle(tmp_path / "tiny", postprocessing=doubled(samples=wrong))))
    assert one.reason == "'z' of sample 0 differs in 1 of 1 values; 'y' of sample 1 is [2], it was [3]"


def test_texts_run_on_the_extensions(tmp_path: Path) -> None:
    text = {"text": np.array(["cat", ""], object)}
    pairs = [(text, {"loud": np.array([loud, ""], object)}) for loud in ("CAT", "Cat")]
    upper = Processing(onnx.parser.parse_model(UPPER), tuple(pairs), exact=True, needs=(EXTENSIONS,))
    (one,) = replay(open_bundle(image_bundle(tmp_path / "tiny", preprocessing=upper)))
    assert (one.verdict, one.reason) == ("differs", "'loud' of sample 1 differs in 1 of 2 values")


def test_a_library_that_is_not_here_is_said(tmp_path: Path) -> None:
    bundle = image_bundle(tmp_path / "tiny", preprocessing=doubled(9.0, needs=("no-such-library",)))
    result = run("check", bundle)
    assert result.exit_code == 0
    assert "preprocess skipped: no-such-library not installed" in result.output


def test_a_graph_that_does_not_run_is_named(tmp_path: Path) -> None:
    bundle = open_bundle(image_bundle(tmp_path / "tiny", preprocessing=doubled()))
    (bundle.folder / "preprocess.onnx").write_bytes(b"no graph")
    with pytest.raises(StageError, match=r"preprocess\.onnx does not run"):
        replay(bundle)


def test_a_graph_without_samples_or_a_sample_without_outputs_does_not_pass(tmp_path: Path) -> None:
    bundle = open_bundle(image_bundle(tmp_path / "tiny", preprocessing=doubled(), postprocessing=doubled(samples=())))
    with pytest.raises(StageError, match="postprocess: the bundle holds no samples to check it on"):
        replay(bundle)
    bundle = open_bundle(image_bundle(tmp_path / "other", preprocessing=doubled()))
    (bundle.folder / "preprocess_data_set_0" / "output_1.pb").unlink()
    (one,) = replay(bundle)
    assert (one.verdict, one.reason) == ("differs", "'z' of sample 0 is not there")


def test_inspect_shows_both(tmp_path: Path) -> None:
    odd = Processing(reason="a model of kind 'raw'")
    bundle = image_bundle(tmp_path / "tiny", preprocessing=doubled(needs=(EXTENSIONS,)), postprocessing=odd)
    shown = run("inspect", bundle).output
    assert "preprocess.onnx: within 0.12 on two, needs onnxruntime-extensions" in shown
    assert "no graph: a model of kind 'raw'" in shown
