"""Bisecting: a trained model in which layers were made harmful, each by weights that dominate its int8 scales."""

import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import model_zoo
from toolkit.bisect.bisect import bisect
from toolkit.bisect.result import BisectResult, read_bisection, recipe_of_bisection
from toolkit.bisect.search import smallest
from toolkit.errors import UsageError
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.progress import Row, Silent
from toolkit.recipe.document import Quantization
from toolkit.recipe.file import read_recipe, write_recipe
from toolkit.recipe.request import request_of
from toolkit.target import Target
from toolkit.workbench import Workbench

HARMFUL = ("vit.layers.0.attention.o_proj", "vit.layers.2.attention.o_proj")
FACTOR, CHANNELS = 1000.0, [1, 40, 70]


NEAREST = Quantization(rounding="nearest")
"""GPTQ would make good much of the harm."""


class Told:
    """A watch that keeps what it is told."""

    def __init__(self):
        self.rows = []

    @contextmanager
    def stage(self, name, target=""):
        row = Row()
        yield row
        self.rows.append(row.said)


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The built-in model with smaller values, multiplied with as much larger weights: the same answers in fp32."""
    folder = tmp_path_factory.mktemp("bisect") / "digits"
    shutil.copytree(Path(model_zoo.__file__).parent / "data" / "vit-digits", folder)
    weights = load_file(folder / "model.safetensors")
    for layer in (0, 2):
        attention = f"vit.encoder.layer.{layer}.attention"
        for kind in ("weight", "bias"):
            weights[f"{attention}.attention.value.{kind}"][CHANNELS] /= FACTOR
        weights[f"{attention}.output.dense.weight"][:, CHANNELS] *= FACTOR
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def bench(digits):
    request = Request(model=str(digits), targets=["ort-cpu-int8"], recipe=NEAREST)
    with Workbench.open(plan(request), Silent(), digits.parent) as bench:
        yield bench


TARGET = Target("ort-cpu", "int8")


@pytest.fixture(scope="module")
def both(bench):
    told = Told()
    return bisect(bench, TARGET, NEAREST, watch=told), told.rows


def held_to(bench, gate):
    """The same workbench under another gate."""
    return replace(bench, plan=replace(bench.plan, request=replace(bench.plan.request, drift_gate=gate)))


def test_two_harmful_layers_are_exactly_what_is_found(both, bench):
    result, rows = both
    assert result.outcome == "found"
    assert result.excluded == HARMFUL
    assert result.minimal
    assert result.quantization.exclude == HARMFUL
    assert result.candidates == 26
    assert not result.attempts[0].passed
    assert result.attempts[0].excluded == ()
    assert len(result.attempts) <= 8
    assert len({attempt.excluded for attempt in result.attempts}) == len(result.attempts)
    assert sum("layers excluded: the gate" in row for row in rows) == len(result.attempts)
    assert list(bench.work.glob("attempt-*")) == []


def test_what_the_recipe_excludes_stays_excluded(bench):
    """So that one harmful layer is left."""
    result = bisect(bench, TARGET, Quantization(exclude=(HARMFUL[0], "classifier"), rounding="nearest"))
    assert result.excluded == HARMFUL[1:]
    assert result.minimal
    assert result.quantization.exclude == (HARMFUL[0], "classifier", HARMFUL[1])
    assert result.candidates == 24


def test_a_ranking_saves_attempts_and_changes_no_answer(both, bench):
    guilty = ["vit.layernorm", *HARMFUL, "vit.layers.3.mlp.fc2"]
    ranked = bisect(bench, TARGET, ranking=guilty)
    misled = bisect(bench, TARGET, ranking=["vit.layers.1.mlp.fc1"])
    assert ranked.excluded == misled.excluded == both[0].excluded
    assert len(ranked.attempts) < len(misled.attempts)


def test_nothing_is_searched_where_the_gate_holds(bench):
    result = bisect(bench, TARGET, Quantization(exclude=HARMFUL))
    assert result.outcome == "held"
    assert len(result.attempts) == 1
    assert result.quantization.exclude == HARMFUL
    assert "nothing excluded" in result.verdict()


def test_it_says_where_no_exclusion_helps(bench):
    result = bisect(held_to(bench, "sqnr=300"), TARGET)
    assert result.outcome == "hopeless"
    assert result.excluded == ()
    assert [len(attempt.excluded) for attempt in result.attempts] == [0, 26]
    assert any("300 dB" in failure for failure in result.failures)
    assert "no exclusion helps" in result.verdict()


def test_a_scheme_that_excludes_nothing_is_refused(bench):
    with pytest.raises(UsageError, match="exclude"):
        bisect(bench, Target("ort-cpu", "fp16"))


def test_the_recipe_that_is_written_passes(both, digits, tmp_path):
    request = Request(model=str(digits), targets=["ort-cpu-int8", "ort-cpu-fp32"])
    write_recipe(recipe_of_bisection(both[0], request), tmp_path / "recipe.yaml")
    again = request_of(read_recipe(tmp_path / "recipe.yaml"), output=tmp_path / "bundles")
    assert again.targets == ("ort-cpu-int8",)
    assert again.recipe.exclude == HARMFUL
    (bundle,) = export(plan(again), Silent())
    assert bundle.is_dir()


def test_a_result_survives_json(both, tmp_path):
    path = tmp_path / "bisect.json"
    path.write_text(both[0].model_dump_json())
    assert read_bisection(path) == both[0]


def test_rows_and_verdict_say_what_was_found(both):
    heading, first, *others = both[0].rows()
    assert len({len(heading), len(first), *map(len, others)}) == 1
    assert first[1] == "none"
    assert others[0][1] == "all"
    assert "18 dB" in first[3]
    assert all(module in both[0].verdict() for module in HARMFUL)
    assert "2 of 26 layers" in both[0].verdict()


def test_a_set_that_was_not_shown_minimal_does_not_claim_so(both):
    few = BisectResult(**{**dict(both[0]), "minimal": False})
    assert "perhaps more" in few.verdict()


class Counted:
    """A test that remembers, as attempts do."""

    def __init__(self, holds):
        self.holds, self.made = holds, {}

    def __call__(self, members):
        key = frozenset(members)
        if key not in self.made:
            self.made[key] = self.holds(key)
        return self.made[key]


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=5))))
def test_the_culprits_are_found_in_few_tests(case):
    count, culprits = case
    test = Counted(lambda excluded: {str(each) for each in culprits} <= excluded)
    order = [str(index) for index in range(count)]
    test(order)
    assert set(smallest(order, test)) == {str(each) for each in culprits}
    rounds = 2 * int(np.ceil(np.log2(count))) + 3
    assert len(test.made) <= 2 + len(culprits) * (rounds + 1)


@given(st.lists(st.booleans(), min_size=64, max_size=64))
def test_whatever_holds_the_answer_holds_and_none_can_be_dropped(answers):
    """Noise makes gates that fail with more excluded; all six members together hold."""
    order = list("abcdef")

    def holds(excluded):
        return len(excluded) == 6 or answers[sum(1 << order.index(each) for each in excluded)]

    found = smallest(order, holds)
    assert holds(frozenset(found))
    assert not any(holds(frozenset(found) - {each}) for each in found)
