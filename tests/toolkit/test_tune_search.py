"""Searches run for real on the built-in digits model: what they leave behind, taken up again, refused, ended."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner

from quantize.linears import find_linears
from toolkit import plugins
from toolkit.cli import main
from toolkit.errors import UnsupportedError, UsageError
from toolkit.plan import Request, plan
from toolkit.progress import Silent
from toolkit.recipe.document import Quantization, Recipe
from toolkit.recipe.file import read_recipe
from toolkit.recipe.request import request_of
from toolkit.target import Target
from toolkit.tune.laboratory import Bench, Limits
from toolkit.tune.record import Record
from toolkit.tune.result import Trial, read_tuning
from toolkit.tune.search import prepare
from toolkit.tune.sensitivity import module_noises
from toolkit.types import ExportedGraph, Gate
from toolkit.workbench import Workbench

MODEL = "vit-digits"


def toolkit(*arguments):
    return CliRunner().invoke(main, ["tune", "--model", MODEL, *map(str, arguments)])


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A search for speed that ended after fp32 and int8."""
    folder = tmp_path_factory.mktemp("tuned") / "digits"
    answer = toolkit("--trials", 2, "--output", folder, "--batch", 2, "--json")
    assert answer.exit_code == 0, answer.output
    return folder, json.loads(answer.stdout)


@pytest.fixture(scope="module")
def bench():
    with Workbench.open(plan(Request(model=MODEL, targets=("ort-cpu-int8",))), Silent()) as opened:
        yield opened


@pytest.fixture
def exported(bench, tmp_path, monkeypatch):
    """Searches take the one export of this file: that another one is the same graph is tested by continuing."""
    work = tmp_path / "work"

    @contextmanager
    def opened(cls, plan, watch, folder=None):
        yield replace(bench, plan=plan, work=work)

    monkeypatch.setattr(Workbench, "open", classmethod(opened))


@pytest.mark.heavy
def test_a_search_leaves_its_trials_its_winner_and_its_plot(begun):
    folder, said = begun
    result = read_tuning(folder / "tune.json")
    assert result.model_dump(mode="json") == said
    fp32, int8 = result.trials
    assert (fp32.target, int8.target) == ("ort-cpu-fp32", "ort-cpu-int8")
    assert (fp32.ratio, fp32.ratio_low, fp32.ratio_high) == (1, 1, 1)
    assert int8.status == "measured"
    assert int8.ratio_low <= int8.ratio <= int8.ratio_high
    assert int8.bytes < fp32.bytes / 2
    assert int8.sqnr_db > result.gate.min_sqnr_db == 18.0
    assert (result.shape, result.finished) == ("batch 2", False)
    assert "CPUExecutionProvider" in result.ran_on
    assert (folder / "pareto.svg").read_text().startswith("<svg")
    recipe = read_recipe(folder / "recipe.yaml")
    assert recipe.targets == (result.trials[result.winner].target,)
    assert (folder / "recipe.yaml").read_text().startswith("# toolkit tune, objective speed: trial")
    assert sorted(path.name for path in folder.iterdir()) == ["pareto.svg", "recipe.yaml", "tune.json"]


@pytest.mark.heavy
def test_the_same_command_continues_where_the_search_ended(begun):
    folder, said = begun
    answer = toolkit("--trials", 3, "--output", folder, "--batch", 2)
    assert answer.exit_code == 0, answer.output
    result = read_tuning(folder / "tune.json")
    assert [trial.model_dump(mode="json") for trial in result.trials[:2]] == said["trials"]
    assert [trial.target for trial in result.trials[2:]] == ["ort-cpu-int8-dynamic"]
    assert result.verdict in answer.stdout
    assert "The same command continues the search." in answer.stdout


@pytest.mark.heavy
def test_a_search_of_other_settings_is_refused_before_the_export(begun):
    folder, _ = begun
    before = (folder / "tune.json").read_bytes()
    answer = toolkit("--output", folder, "--batch", 2, "--drift-gate", "sqnr=25")
    assert answer.exit_code == UsageError.exit_code
    assert "a search of other settings (gate, request differ)" in answer.output
    assert "export" not in answer.output.partition("error")[0]
    assert toolkit("--output", folder, "--batch", 4).exit_code == UsageError.exit_code
    assert (folder / "tune.json").read_bytes() == before
    (folder / "tune.json").write_text("{")
    assert toolkit("--output", folder, "--batch", 2).exit_code == UsageError.exit_code
    (folder / "tune.json").write_bytes(before)


@pytest.mark.heavy
def test_a_gate_that_nothing_holds_leaves_fp32_and_a_failed_trial_ends_nothing(exported, tmp_path, monkeypatch):
    attempts, attempt = count(), Workbench.attempt

    def broken(self, target, quantization):
        if next(attempts) == 2:
            raise RuntimeError("out of luck")
        return attempt(self, target, quantization)

    monkeypatch.setattr(Workbench, "attempt", broken)
    request = Request(model=MODEL, targets=(), drift_gate="sqnr=110", output=tmp_path / "out")
    result = prepare(request, "ort-cpu", "size").run(Silent(), minutes=5, trials=4)
    assert [trial.status for trial in result.trials[:4]] == ["measured", "drifted", "failed", "drifted"]
    assert result.trials[2].reason == "RuntimeError: out of luck"
    assert "SQNR" in result.trials[1].reason
    assert (result.winner, result.pareto) == (0, (0,))
    assert "No lower precision holds the gate sqnr=110" in result.verdict
    assert result.trials[0].ratio is None
    # The recipe that is left is taken as it is, and held to the very gate of the search.
    made = plan(request_of(read_recipe(tmp_path / "out" / "recipe.yaml")))
    assert made.targets == (Target("ort-cpu", "fp32"),)
    assert made.scheme_gate("fp32") == result.gate


@pytest.mark.heavy
def test_time_that_is_used_up_begins_no_trial_and_an_interruption_keeps_what_there_is(exported, tmp_path, monkeypatch):
    out = tmp_path / "out"
    search = prepare(Request(model=MODEL, targets=(), output=out), "ort-cpu", "size")
    attempt = Workbench.attempt

    def interrupted(self, target, quantization):
        if target.scheme == "int8":
            raise KeyboardInterrupt
        return attempt(self, target, quantization)

    monkeypatch.setattr(Workbench, "attempt", interrupted)
    with pytest.raises(KeyboardInterrupt):
        search.run(Silent(), minutes=5)
    left = read_tuning(out / "tune.json")
    assert ([trial.index for trial in left.trials], left.winner, left.finished) == ([0], 0, False)
    again = search.run(Silent(), minutes=0)
    assert again.trials == left.trials
    assert not again.finished
    assert "The search is not finished" in again.verdict
    new = prepare(Request(model=MODEL, targets=(), output=tmp_path / "new"), "ort-cpu", "size")
    assert [trial.target for trial in new.run(Silent(), minutes=0).trials] == ["ort-cpu-fp32"]


def test_what_cannot_be_searched_is_refused_before_any_weight_is_read(tmp_path):
    request = Request(model=MODEL, targets=(), output=tmp_path)
    with pytest.raises(UsageError, match="unknown runtime 'ort-cup'"):
        prepare(request, "ort-cup", "speed")
    with pytest.raises(UnsupportedError, match="'coreml' has no fp32"):
        prepare(request, "coreml", "size")
    with pytest.raises(UsageError, match="the model has no dimension 'sequence'"):
        prepare(request, "ort-cpu", "speed", {"sequence": 8})
    ready = plugins.runtime("trt").readiness()
    if not ready.run:
        with pytest.raises(UnsupportedError, match="speed on trt cannot be measured here") as caught:
            prepare(request, "trt", "both")
        assert "--objective size" in caught.value.hint
    assert prepare(request, "trt", "size").shape == "not timed"
    assert toolkit("--recipe", tmp_path / "none.yaml").exit_code == UsageError.exit_code


@pytest.mark.heavy
@pytest.mark.parametrize("changes", [{}, {"ranges": "per-token", "rounding": "nearest"}])
def test_noises_of_single_modules_add_up_to_that_of_the_engine(bench, changes):
    target = Target("ort-cpu", "int8")
    recipe = replace(bench.plan.recipe(target), **changes)
    noises = module_noises(bench.exported, recipe, bench.calibration)
    measured = bench.attempt(target, Quantization(**changes)).drift.worst().sqnr_db
    assert len({each.module for each in noises}) == len(noises) > 20
    assert -10 * np.log10(sum(each.noise for each in noises)) == pytest.approx(measured, abs=3)


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int4"])
def test_a_harmful_module_makes_the_most_noise(bench, scheme):
    name, model = "vit.layers.2.mlp.fc1", ir.load(bench.exported.path)
    (linear,) = (each for each in find_linears(model.graph) if each.module == name)
    array = linear.weight.const_value.numpy().copy()
    array[[3, 40]] *= 300
    linear.weight.const_value = ir.tensor(array)
    folder = bench.work / f"harmed-{scheme}"
    folder.mkdir()
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    harmed = ExportedGraph(folder / "model.onnx", bench.exported.spec)
    # Smoothing would spread the harm over what makes its inputs.
    recipe = replace(plugins.scheme(scheme).recipe(bench.plan.spec), smoothing=None)
    noises = module_noises(harmed, recipe, bench.calibration)
    assert max(noises, key=lambda each: each.noise).module == name


@pytest.mark.heavy
def test_a_recipe_without_convolutions_ranks_none(bench):
    recipe = replace(bench.plan.recipe(Target("ort-cpu", "int8")), convolutions=False)
    noises = module_noises(bench.exported, recipe, bench.calibration)
    linears = find_linears(ir.load(bench.exported.path).graph)
    assert any(each.node.op_type == "Conv" for each in linears)
    assert {each.module for each in noises} == {each.module for each in linears if each.node.op_type != "Conv"}


@pytest.mark.heavy
def test_the_quantized_graph_is_held_to_the_gate_as_an_export_holds_it(bench, tmp_path):
    close = bench.attempt(Target("ort-cpu", "int8"), Quantization())
    coarse = bench.attempt(Target("ort-cpu", "int4"), Quantization(rounding="nearest"))
    levels = [each.drift.worst().sqnr_db for each in (close, coarse)]
    assert levels[1] < levels[0] - 3
    record = Record(tmp_path, {}, lambda trial: Recipe(model=MODEL, targets=(trial.target,)))
    gate = Gate(min_sqnr_db=sum(levels) / 2)
    trials = Bench(bench, "ort-cpu", gate, record, Limits(0.0), Silent())
    blank = Trial(index=1, target="ort-cpu-int8", status="failed")
    assert trials._judged(blank, close).status == "measured"
    broken = trials._judged(blank, replace(close, quantized=coarse.quantized))
    assert broken.status == "drifted"
    assert broken.reason.startswith("stage 'quantize': output 'logits': SQNR")
