"""A language model's bundle: small, checked again from the summary of what the reference answered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny_bundles import image_bundle
from tiny_language import Bigram, decoder_spec, text

from toolkit.bundle import read
from toolkit.bundle.check import check
from toolkit.bundle.read import open_bundle
from toolkit.bundle.testdata import read_evaluation, write_evaluation
from toolkit.bundle.write import Contents, write_bundle
from toolkit.commands.check import command
from toolkit.drift.measure import measure, observe
from toolkit.drift.report import DriftReport, TaskDrift
from toolkit.drift.summary import TOP
from toolkit.errors import UsageError
from toolkit.hashing import file_sha256
from toolkit.target import Target
from toolkit.types import Engine, Evaluation, Gate, LoweredGraph, ModelSpec, Tensors

GOLDEN = (text(10, width=8), text(11, rows=2, width=5))
HELD_OUT = (text(1, width=24), text(2, rows=2, width=12))
EVALUATION = Evaluation("language", HELD_OUT)


def whole(
    reference: list[dict[str, np.ndarray]],
    candidate: list[dict[str, np.ndarray]],
    held_out: Evaluation = EVALUATION,
    spec: ModelSpec | None = None,
) -> TaskDrift:
    golden = observe(Bigram(), GOLDEN)
    stage = measure(
        "engine",
        "numpy",
        golden,
        golden,
        spec or decoder_spec(),
        evaluation=held_out,
        evaluation_reference=reference,
        evaluation_candidate=candidate,
    )
    assert stage.task is not None
    return stage.task


def bundle(folder: Path, gate: Gate | None = None, *, last_logits: bool = False) -> Path:
    work = folder.with_name(f"{folder.name}-work")
    work.mkdir()
    folder.mkdir()
    (work / "model.onnx").write_bytes(b"graph")
    spec, golden = decoder_spec(last_logits=last_logits), observe(Bigram(), GOLDEN)
    graph = LoweredGraph(work / "model.onnx", spec, (), "int4", "ort-cpu")
    stage = measure("engine", "numpy", golden, golden, spec, gate=gate)
    contents = Contents(
        spec=spec,
        target=Target("ort-cpu", "int4"),
        engine=Engine(graph, "executed", "numpy"),
        report=DriftReport.of("torch", [stage]),
        golden=GOLDEN,
        golden_reference=golden,
        evaluation=EVALUATION,
        evaluation_reference=observe(Bigram(), HELD_OUT, outputs=["logits"], spill=work / "reference"),
    )
    write_bundle(folder, contents, command="toolkit export --model tiny-lm")
    return folder


def test_the_spec_of_a_decoder_comes_back(tmp_path: Path) -> None:
    for last_logits in (False, True):
        opened = open_bundle(bundle(tmp_path / f"b{last_logits}", last_logits=last_logits))
        assert opened.manifest.spec() == decoder_spec(last_logits=last_logits)
        assert opened.manifest.evaluation == "language"


def test_check_measures_what_it_can_from_the_summary(tmp_path: Path) -> None:
    opened = open_bundle(bundle(tmp_path / "b"))
    same = check(opened, Bigram).stages[0]
    assert same.passed
    assert same.task is not None
    assert (same.task.perplexity_ratio, same.task.top1_agreement) == (1, 1)
    assert (same.task.kl or 0) < 1e-12
    noisy = check(opened, lambda: Bigram(0.5)).stages[0]
    full = whole(observe(Bigram(), HELD_OUT), observe(Bigram(0.5), HELD_OUT))
    assert noisy.task is not None
    assert noisy.task.kl_is_lower_bound
    assert 0.5 * (full.kl or 0) < (noisy.task.kl or 0) < (full.kl or 0)
    assert noisy.task.perplexity_ratio == pytest.approx(full.perplexity_ratio, rel=1e-12)
    assert noisy.task.top1_agreement == full.top1_agreement


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(max_kl=1e-3), "KL"),
        (Gate(max_perplexity_ratio=1.0001), "perplexity ratio"),
        (Gate(min_top1_agreement=0.999), "top-1 agreement"),
    ],
)
def test_check_holds_the_gates_of_language(tmp_path: Path, gate: Gate, words: str) -> None:
    opened = open_bundle(bundle(tmp_path / "b", gate))
    assert check(opened, Bigram).passed
    (sentence,) = check(opened, lambda: Bigram(1.5)).stages[0].failures
    assert sentence.startswith(f"language of 'logits': {words}")


def test_nan_logits_fail_the_check(tmp_path: Path) -> None:
    class Broken(Bigram):
        def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
            answer = super().run(inputs)
            if inputs["input_ids"].shape == (2, 12):
                answer["logits"][1, 11, 0] = np.nan
            return answer

    (sentence,) = check(open_bundle(bundle(tmp_path / "b")), Broken).stages[0].failures
    assert sentence.startswith("language of 'logits' has 1 of")
    assert "NaN" in sentence
    assert sentence.endswith("(batch 1)")


def test_a_graph_with_last_logits_is_fed_the_text_token_by_token(tmp_path: Path) -> None:
    class Last(Bigram):
        def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
            assert inputs["input_ids"].shape[1] == 1 or inputs["input_ids"].shape in {(1, 8), (2, 5)}
            answer = super().run(inputs)
            past = inputs["past_key_values.0.key"].shape[2]
            assert inputs["attention_mask"].shape[1] == past + inputs["input_ids"].shape[1]
            present = [np.concatenate([inputs["past_key_values.0.key"], answer["present.0.key"]], axis=2)] * 6
            return {**dict(zip(answer, [answer["logits"], *present], strict=True)), "logits": answer["logits"]}

    whole = check(open_bundle(bundle(tmp_path / "a")), Bigram)
    checked = check(open_bundle(bundle(tmp_path / "b", last_logits=True)), Last)
    assert checked.stages[0].task == whole.stages[0].task


def test_a_session_is_closed_also_when_it_fails(tmp_path: Path) -> None:
    closed = []

    class Failing(Bigram):
        def run(self, inputs: Tensors) -> dict[str, np.ndarray]:
            raise UsageError("no")

        def close(self) -> None:
            closed.append(True)

    with pytest.raises(UsageError, match="no"):
        check(open_bundle(bundle(tmp_path / "b")), Failing)
    assert closed == [True]


def test_the_command_hashes_every_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read_files = image_bundle(tmp_path / "b"), Counter[Path]()

    def counted(path: Path) -> str:
        read_files[path] += 1
        return file_sha256(path)

    monkeypatch.setattr(read, "file_sha256", counted)
    assert CliRunner().invoke(command, [str(folder)], catch_exceptions=False).exit_code == 0
    assert len(read_files) == len(open_bundle(folder).manifest.files)
    assert set(read_files.values()) == {1}


def test_a_language_evaluation_in_a_bundle_is_small_and_exact(tmp_path: Path) -> None:
    vocabulary = 20_000
    fed = tuple(text(seed, width=32, vocabulary=vocabulary) for seed in (1, 2))
    generator = np.random.default_rng(3)
    outputs = [{"logits": generator.standard_normal((1, 32, vocabulary)).astype(np.float32) * 4} for _ in fed]
    write_evaluation(tmp_path / "e", Evaluation("language", fed), outputs, "logits")
    assert (tmp_path / "e").stat().st_size < 64 * (TOP * 6 + 100) + 8000 < sum(one["logits"].nbytes for one in outputs)
    held_out, kept = read_evaluation(tmp_path / "e")
    assert held_out.metric == "language"
    assert held_out.batches[1]["past_key_values.0.key"].shape == (1, 1, 0, 2)
    candidate = [{"logits": one["logits"] + generator.standard_normal(one["logits"].shape) / 2} for one in outputs]
    spec = decoder_spec(vocabulary)
    full = whole(outputs, candidate, Evaluation("language", fed), spec)
    short = whole(kept, candidate, held_out, spec)
    assert short.perplexity_ratio == pytest.approx(full.perplexity_ratio, rel=1e-12)
    assert short.top1_agreement == full.top1_agreement
    assert 0 < (short.kl or 0) < (full.kl or 0)
