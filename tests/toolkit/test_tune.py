"""What a search decides from its trials, and in which order it tries: on recorded tables, where nothing is timed."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import tiny_language
from hypothesis import given
from hypothesis import strategies as st
from tiny_lm import TinyLM

from toolkit import plugins
from toolkit.errors import UsageError
from toolkit.recipe.document import Quantization
from toolkit.tune.decide import decide, front
from toolkit.tune.plot import axis_of, pareto_svg
from toolkit.tune.result import Trial, TuneResult
from toolkit.tune.sensitivity import ModuleNoise
from toolkit.tune.strategy import knobs, narrow, ranked, search
from toolkit.tune.table import COLUMNS, rows
from toolkit.tune.timing import Stopwatch
from toolkit.tune.words import changes_of
from toolkit.tune.workload import Decoding, Workload
from toolkit.types import Gate, ModelSpec

GATE = Gate(min_sqnr_db=20.0)
ENCODER = ModelSpec("m", "bert", "encoder", "features", "s", "A", (), (), {})


def trial(index, scheme, sqnr, ratio=None, size=100, spread=0.05, status="measured", **changes):
    low, high = (ratio - spread, ratio + spread) if ratio else (None, None)
    plain = Quantization(**changes).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    return Trial(
        index=index, target=f"ort-cpu-{scheme}", quantization=plain, status=status, sqnr_db=sqnr, cosine=1.0,
        bytes=size, median_ms=10 / ratio if ratio else None, ratio=ratio, ratio_low=low, ratio_high=high,
        reason="output 'y': SQNR is below" if status == "drifted" else "",
    )  # fmt: skip


FP32 = trial(0, "fp32", 120.0, 1.0, 400, spread=0.0)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30))
def test_the_front_is_exactly_what_nobody_dominates(points):
    kept = front(points)
    for place, point in enumerate(points):
        beaten = any(
            all(theirs >= own for theirs, own in zip(other, point, strict=True))
            and any(theirs > own for theirs, own in zip(other, point, strict=True))
            for other in points
        )
        assert (place in kept) != beaten


def test_int8_pays_where_it_is_faster_even_in_its_10th_percentile():
    made = decide([FP32, trial(1, "int8", 27.0, 1.8), trial(2, "int8-dynamic", 25.0, 1.2)], "speed", GATE)
    assert (made.winner, made.pareto) == (1, (0, 1))
    assert made.verdict.startswith("int8 pays here: 1.80 times as fast as fp32 (1.75 to 1.85)")


@pytest.mark.parametrize(("ratio", "said"), [(0.7, "slower"), (1.02, "not surely faster")])
def test_int8_that_is_not_faster_falls_back_to_fp32(ratio, said):
    made = decide([FP32, trial(1, "int8", 27.0, ratio)], "speed", GATE)
    assert made.winner == 0
    assert "No lower precision pays here" in made.verdict
    assert said in made.verdict
    assert made.verdict.endswith("Stay with fp32.")


def test_what_wins_beside_int8_says_what_int8_does():
    made = decide([FP32, trial(1, "int8", 27.0, 0.8), trial(2, "fp16", 60.0, 1.6)], "speed", GATE)
    assert made.winner == 2
    assert "int8 does not pay: at best 0.80 times" in made.verdict
    drifted = trial(1, "int8", 12.0, status="drifted")
    assert "int8 does not hold the gate: at best SQNR 12.0 dB" in decide([FP32, drifted], "speed", GATE).verdict


def test_a_gate_that_nothing_holds_leaves_fp32():
    made = decide([FP32, trial(1, "int8", 12.0, status="drifted")], "speed", GATE)
    assert (made.winner, made.pareto) == (0, (0,))
    assert "No lower precision holds the gate sqnr=20: nearest is int8 with SQNR 12.0 dB" in made.verdict
    broken = FP32.model_copy(update={"status": "drifted", "reason": "output 'y': SQNR 9 dB"})
    made = decide([broken], "speed", GATE)
    assert (made.winner, made.pareto) == (None, ())
    assert "Not even fp32 holds the gate" in made.verdict


def test_among_near_equals_the_most_accurate_wins_and_lucky_rounds_do_not():
    tied = [FP32, trial(1, "int8", 22.0, 1.80), trial(2, "int8", 26.0, 1.78, smoothing=0.5)]
    assert decide(tied, "speed", GATE).winner == 2
    lucky = trial(3, "int8", 30.0, 1.5, spread=0.45, smoothing=0.65).model_copy(update={"ratio_high": 9.0})
    assert decide([*tied, lucky], "speed", GATE).winner == 2


def test_size_needs_no_clock_and_both_needs_both():
    small, fast = trial(1, "int4", 21.0, 0.5, size=60), trial(2, "int8", 27.0, 1.7, size=110)
    untimed = [each.model_copy(update={"ratio": None, "ratio_low": None, "ratio_high": None}) for each in (FP32, small)]
    assert decide(untimed, "size", GATE).winner == 1
    assert decide([FP32, small, fast], "size", GATE).winner == 1
    assert decide([FP32, small, fast], "both", GATE).winner == 2
    assert decide([FP32, small, fast], "both", GATE).pareto == (0, 1, 2)
    assert decide([FP32, small], "both", GATE).winner == 0


@given(st.integers(2, 60), st.integers(-3, 70), st.data())
def test_narrowing_finds_the_smallest_that_holds(count, first, data):
    least = data.draw(st.integers(1, count))
    asked = []

    def holds(number):
        asked.append(number)
        return number >= least

    assert narrow(holds, first, count) == (least if least < count else None)
    assert all(1 <= number < count for number in asked)
    assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(count)) + 2


def test_modules_are_ranked_by_noise_for_what_they_save():
    noises = [ModuleNoise("a", 1e-3, 10, 1000), ModuleNoise("b", 2e-3, 100, 1000), ModuleNoise("c", 1e-4, 10, 10)]
    assert [each.module for each in ranked(noises, "speed")] == ["c", "b", "a"]
    assert [each.module for each in ranked(noises, "size")] == ["a", "b", "c"]


def test_knobs_are_those_that_the_scheme_has():
    int8 = plugins.scheme("int8").recipe(ENCODER)
    assert knobs(int8) == {"smoothing": (0.5, 0.65, "off"), "calibration": ("percentile", "entropy", "mse")}
    unsigned = replace(int8, activations="uint8")
    assert next(iter(knobs(unsigned, ("per-tensor", "per-token")).items())) == ("ranges", ("per-token",))
    assert knobs(unsigned) == knobs(int8, ("per-tensor", "per-token")) == knobs(int8)
    assert set(knobs(plugins.scheme("int4").recipe(ENCODER))) == {"block_size", "rounding", "symmetric"}
    assert not knobs(plugins.scheme("int8-dynamic").recipe(ENCODER))
    assert not knobs(plugins.scheme("fp16").recipe(ENCODER))


class Recorded:
    """A laboratory that answers by arithmetic: the noise of a recipe is that of the modules which it quantizes."""

    ranges = ()
    NOISES = {f"layer.{index}": 1e-4 for index in range(9)} | {"layer.4": 0.5}

    def __init__(self, limit_db, slow=()):
        self.limit_db, self.slow, self.trials = limit_db, slow, []

    def recipe(self, scheme):
        return plugins.scheme(scheme).recipe(ENCODER)

    def noises(self, scheme, changes):
        return [ModuleNoise(name, noise, 100, 100) for name, noise in self.NOISES.items()]

    def trial(self, scheme, changes):
        kept = 0 if scheme == "fp32" else sum(v for k, v in self.NOISES.items() if k not in changes.exclude)
        sqnr = -10 * math.log10(kept) if kept else 130.0
        ratio = 1.0 if scheme == "fp32" else 0.6 if scheme in self.slow else 2.0 - 0.1 * len(changes.exclude)
        holds = sqnr >= self.limit_db
        made = trial(
            len(self.trials), scheme, sqnr, ratio if holds else None, status="measured" if holds else "drifted"
        )
        plain = changes.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        self.trials.append(made.model_copy(update={"quantization": plain}))
        return self.trials[-1]


def test_the_harmful_module_alone_is_left_in_fp32():
    laboratory = Recorded(20.0)
    search(laboratory, ("fp32", "int8"), "speed", GATE)
    made = decide(laboratory.trials, "speed", GATE)
    assert laboratory.trials[made.winner].quantization == {"exclude": ["layer.4"], **_knob(laboratory, made)}
    assert laboratory.trials[0].target == "ort-cpu-fp32"
    again = Recorded(20.0)
    search(again, ("fp32", "int8"), "speed", GATE)
    assert again.trials == laboratory.trials


def _knob(laboratory, made):
    found = laboratory.trials[made.winner].quantization
    return {key: value for key, value in found.items() if key != "exclude"}


def test_a_scheme_that_is_slower_as_a_whole_is_not_tuned():
    laboratory = Recorded(1.0, slow=("int8",))
    search(laboratory, ("fp32", "int8"), "speed", GATE)
    assert len(laboratory.trials) == 2
    laboratory = Recorded(1.0, slow=("int8",))
    search(laboratory, ("fp32", "int8"), "size", GATE)
    assert len(laboratory.trials) > 2


def test_axes_have_round_ticks_that_enclose_the_values():
    axis = axis_of([0.37, 2.2, math.inf], 0, 100)
    assert axis.ticks == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    assert axis.at(0.0) == 0
    assert axis.at(1.25) == 50
    assert axis.at(math.inf) == 100
    assert axis_of([], 0, 10).at(0.0) == 0


def test_the_plot_is_whole_and_stands_for_the_trials():
    trials = (FP32, trial(1, "int8", 27.0, 1.8, exclude=("a<b",)), trial(2, "int8", 12.0, status="drifted"))
    made = decide(trials, "speed", GATE)
    result = TuneResult(
        model="m & m", runtime="ort-cpu", objective="speed", gate=GATE, shape="batch 1", machine="here", ran_on="ort",
        trials=trials, pareto=made.pareto, winner=made.winner, verdict=made.verdict,
    )  # fmt: skip
    root = ET.fromstring(pareto_svg(result))
    space = {"s": "http://www.w3.org/2000/svg"}
    circles = root.findall("s:circle", space)
    assert [circle.get("class") for circle in circles] == ["best", "winner", "drifted"]
    fp32, int8, drifted = circles
    assert float(fp32.get("cx")) < float(int8.get("cx"))
    assert float(fp32.get("cy")) < float(int8.get("cy")) < float(drifted.get("cy"))
    line = root.find("s:polyline", space).get("points")
    assert line == f"{fp32.get('cx')},{fp32.get('cy')} {int8.get('cx')},{int8.get('cy')}"
    assert [len(row) for row in rows(result)] == [len(COLUMNS)] * 3
    assert [row[0] for row in rows(result)] == ["*", ">*", ""]


def test_a_recipe_is_named_by_what_it_changes():
    made = trial(1, "int8", 20.0, smoothing=0.5, exclude=("a", "b", "c"), layers={"d": "int4"})
    assert changes_of(made) == "int8 smoothing=0.5, 3 modules in fp32, d in int4"
    assert changes_of(FP32) == "fp32"


def test_a_language_model_is_timed_by_its_decoding():
    model = TinyLM(limit=20, rows=1)
    work = Decoding(model, np.arange(5), 12)
    assert work.run() > 0
    assert model.calls == [(1, 5), *[(1, 1)] * 12]
    assert model.fed[0] == [*range(5), *range(5), *range(5), 0, 1]
    work.run()
    assert len(model.fed[0]) == 17
    work.close()
    assert model.closed
    spec = tiny_language.decoder_spec()
    assert Workload(spec).shape.startswith("a token, 32 one by one after a prompt of 32")
    with pytest.raises(UsageError, match="batch: a language model is timed by its decoding"):
        Workload(spec, {"batch": 2})


def test_the_stopwatch_runs_both_in_turn():
    order = []

    class Clock:
        def __init__(self, name, took):
            self.name, self.took = name, took

        def run(self):
            order.append(self.name)
            return self.took

        def close(self):
            pass

    watch = Stopwatch(Clock("fp32", 8.0), rounds=3)
    order.clear()
    timing = watch.against(Clock("int8", 4.0))
    assert (timing.median_ms, timing.ratio.median, timing.ratio.p10, timing.ratio.p90) == (4.0, 2.0, 2.0, 2.0)
    turns = [name for name, _ in groupby(order)]
    assert turns == ["int8", *["fp32", "int8"] * 3]
    assert watch.alone().ratio.median == 1.0
