"""The page's charts: places on scales, marks for what matters, and markup that is well formed and escaped."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_values import HARMED, THRESHOLD, comparison, modules, tuning

from toolkit.compare.result import HeadDrift, Histogram, ModuleDrift
from toolkit.drift.report import DriftReport, OutputDrift, StageDrift
from toolkit.page.charts.heads import head_map
from toolkit.page.charts.histogram import histogram
from toolkit.page.charts.layers import layer_chart
from toolkit.page.charts.pareto import pareto_chart
from toolkit.page.charts.ranges import range_chart, widest
from toolkit.page.charts.stages import stage_chart
from toolkit.page.charts.svg import Scale, element, shortened, text
from toolkit.types import Gate

SVG = "{http://www.w3.org/2000/svg}"
finite = st.floats(-1e6, 1e6)


def parsed(chart):
    return ET.fromstring(str(chart))


def marked(chart, class_):
    return [each for each in parsed(chart).iter() if class_ in each.get("class", "").split()]


def words(chart):
    return [" ".join(each.text.split()) for each in parsed(chart).iter(f"{SVG}text")]


def drift(*levels, gate=18.0):
    stages = []
    for index, level in enumerate(levels):
        if level is None:
            output, failures = OutputDrift(name="y", failure="is missing"), ("y is missing",)
        else:
            output = OutputDrift(name="y", sqnr_db=level, cosine=1, relative_l2=0, max_abs=0)
            failures = ("too far",) if level < gate else ()
        stages.append(
            StageDrift(
                stage=f"stage{index}", ran_on="here", outputs=(output,), gate=Gate(min_sqnr_db=gate), failures=failures,
                passed=not failures,
            )
        )  # fmt: skip
    return DriftReport.of("reference", stages)


@given(finite, finite, finite)
def test_a_place_is_inside_the_chart_and_the_ends_are_the_ends(low, high, value):
    low, high = sorted((low, high))
    scale = Scale(low, high, 10, 200)
    assert 10 <= scale.at(value) <= 200
    assert scale.at(low) == 10
    assert scale.at(high) == (200 if high > low else 10)


@given(finite, st.floats(1e-3, 1e6))
def test_ticks_are_few_evenly_spaced_and_inside(low, span):
    ticks = Scale(low, low + span, 0, 100).ticks()
    assert 2 <= len(ticks) <= 8
    steps = {round((right - left) / span, 6) for left, right in pairwise(ticks)}
    assert len(steps) <= 1 or max(steps) - min(steps) <= 2e-6
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


def test_ticks_are_round_and_decades_on_a_log_scale():
    assert Scale(0, 133, 0, 1).ticks() == [0, 50, 100]
    assert Scale(0.01, 1e5, 0, 1, log=True).ticks() == [0.01, 1, 100, 10000]
    log = Scale(0.01, 100, 0, 400, log=True)
    assert (log.at(1), log.at(0), log.at(math.inf)) == (200, 0, 400)


def test_elements_escape_their_words_and_attributes():
    made = element("text", "<b>&", class_='"><script>', data_of="a'b")
    assert made == '<text class="&#34;&gt;&lt;script&gt;" data-of="a&#39;b">&lt;b&gt;&amp;</text>'
    assert parsed(text("<script>", 1.0, 2.5)).text == "<script>"
    assert shortened("encoder.layer.7.output.dense", 12) == "…utput.dense"
    assert shortened("short", 12) == "short"


def test_a_stages_bar_ends_at_its_level_and_its_ghost_where_it_began():
    chart = stage_chart("c", drift(130.0, 44.0, 10.0))
    bars, ghosts = marked(chart, "bar"), marked(chart, "ghost")
    ends = [float(bar.get("x")) + float(bar.get("width")) for bar in bars]
    assert ends == sorted(ends, reverse=True)
    assert [bar.get("class") for bar in bars] == ["bar", "bar", "bar bad"]
    assert [float(ghost.get("x")) for ghost in ghosts] == pytest.approx(ends[1:], abs=0.02)
    assert len(marked(chart, "gate")) == 3
    assert {"130.0 dB", "44.0 dB, lost 86.0", "10.0 dB, lost 34.0"} <= set(words(chart))
    # Proportional: 44 of 130 dB, from one zero.
    zero = float(bars[0].get("x"))
    assert (ends[1] - zero) / (ends[0] - zero) == pytest.approx(44 / 130, abs=1e-3)


@pytest.mark.parametrize("levels", [(math.inf, math.inf), (-math.inf, 20.0), (-12.0,), (None, 30.0), (0.0, 0.0)])
def test_a_stage_chart_bears_any_level(levels):
    chart = parsed(stage_chart("c", drift(*levels)))
    width = float(chart.get("width"))
    for bar in chart.iter(f"{SVG}rect"):
        assert 0 <= float(bar.get("x")) <= float(bar.get("x")) + float(bar.get("width")) <= width
    assert "nan" not in ET.tostring(chart, encoding="unicode")


def test_the_layer_chart_marks_the_first_bad_module_the_threshold_and_failures():
    given = comparison()
    chart = layer_chart("c", given)
    bad = [module for module in given.modules if module.bad]
    assert len(marked(chart, "bad")) == len(bad)
    assert len(marked(chart, "dot")) == len(given.modules) - 1
    assert len(marked(chart, "cross")) == 1
    assert f"first below: {HARMED}" in words(chart)
    assert f"threshold {THRESHOLD:g} dB" in words(chart)
    assert "after quantize" in words(chart)
    description = parsed(chart).find(f"{SVG}desc").text
    assert description.startswith(f"7 of {len(given.modules)} modules are below 20 dB, the first is {HARMED}")


def test_a_line_does_not_cross_a_module_that_was_not_measured():
    found = [module for module in modules(layers=1, harmed=None) if not module.failure]
    gap = ModuleDrift(module="gap", failure="is missing")
    chart = layer_chart("c", comparison(modules=[*found[:3], gap, *found[3:]], stages=(), first_bad=None))
    assert [len(line.get("points").split()) for line in marked(chart, "series")] == [3, len(found) - 3]


def test_a_long_network_gets_a_wide_chart_and_few_positions():
    chart = parsed(layer_chart("c", comparison(modules=modules(layers=40), stages=())))
    assert float(chart.get("width")) > 2000
    assert sum(each.get("class") == "tick" for each in chart.iter(f"{SVG}text")) < 25


def test_a_comparison_without_a_module_or_with_exact_ones_only_is_drawn():
    exact = [ModuleDrift(module="a", sqnr_db=math.inf, cosine=1, relative_l2=0, max_abs=0)]
    for found in (exact, [ModuleDrift(module="a", failure="is missing")]):
        chart = layer_chart("c", comparison(modules=found, stages=(), first_bad=None))
        assert "nan" not in str(chart)


def test_the_deepest_cell_is_the_largest_divergence():
    heads = comparison().attention
    chart = head_map("c", heads)
    opacity = [float(cell.get("fill-opacity")) for cell in marked(chart, "cell")]
    largest = max(range(len(heads)), key=lambda index: heads[index].divergence)
    assert opacity[largest] == max(opacity) == 0.5
    assert "in head 3 of vit.layers.3.attention" in parsed(chart).find(f"{SVG}desc").text


def test_heads_may_be_any_numbers_and_alike():
    zero = {"divergence": 0.0, "reference_entropy": 1.0, "candidate_entropy": 1.0, "top1_agreement": 1.0}
    chart = head_map("c", [HeadDrift(module="a", head=head, **zero) for head in (3, 10**9)])
    assert [cell.get("fill-opacity") for cell in marked(chart, "cell")] == ["0", "0"]
    assert float(parsed(chart).get("width")) < 400


def test_a_histograms_bars_are_as_high_as_their_counts():
    chart = histogram("c", Histogram(edges=(-1, 0, 1, 2), counts=(4, 0, 2)), "error")
    bars = marked(chart, "bar")
    assert float(bars[0].get("height")) == 2 * float(bars[1].get("height"))
    assert [bar.find(f"{SVG}title").text for bar in bars] == ["-1 to 0: 4", "1 to 2: 2"]


def test_what_overflows_is_named_and_lies_beyond_the_largest_float16():
    chart = range_chart("c", modules())
    (over,) = [each for each in marked(chart, "ring") if "bad" in each.get("class")]
    (limit,) = marked(chart, "gate")
    assert float(over.get("cx")) > float(limit.get("x1"))
    assert f"overflow {HARMED}" in words(chart)
    assert all(float(each.get("cx")) < float(limit.get("x1")) for each in marked(chart, "dot"))


def test_of_many_ranges_the_overflow_and_the_largest_are_shown():
    many = [
        ModuleDrift(module=f"m{index}", failure="x", reference_absmax=float(index), overflow=index == 1)
        for index in range(60)
    ]
    shown = [module.module for module in widest(many)]
    assert len(shown) == 24
    assert shown == ["m1", *(f"m{index}" for index in range(37, 60))]
    assert widest([ModuleDrift(module="a", failure="x")]) == []
    strange = [ModuleDrift(module="a", failure="x", weight_absmax=0.0, reference_absmax=math.inf)]
    assert "nan" not in str(range_chart("c", strange))


def test_the_pareto_marks_the_winner_and_the_front_and_skips_what_was_not_timed():
    chart = pareto_chart("c", tuning(pareto=(1, 2, 0), objective="speed"), "speed")
    drawn = [each.text for each in parsed(chart).iter(f"{SVG}title")]
    assert [each.partition(",")[0] for each in drawn[1:]] == ["trial 0", "trial 1", "trial 2"]
    assert len(marked(chart, "winner")) == 1
    assert {"1 winner", "0 fp32", "2", "gate 18 dB"} <= set(words(chart))
    (front,) = marked(chart, "series")
    places = [tuple(map(float, point.split(","))) for point in front.get("points").split()]
    # Along the front, closer to the reference is slower.
    assert places == sorted(places)
    assert [y for _, y in places] == sorted(y for _, y in places)
    (gate,) = marked(chart, "gate")
    assert all(float(dot.get("cx")) > float(gate.get("x1")) for dot in marked(chart, "dot"))


def test_against_size_what_broke_the_gate_is_a_cross_before_it():
    chart = pareto_chart("c", tuning(), "size")
    (gate,), (cross,) = marked(chart, "gate"), marked(chart, "cross")
    assert float(cross.get("d").split()[0].removeprefix("M")) < float(gate.get("x1"))
    # A front of speed and size together is no line in one of them.
    assert marked(chart, "series") == []


def test_in_a_crowd_only_the_front_the_winner_and_fp32_are_labelled():
    second = tuning().trials[2]
    crowd = [second.model_copy(update={"index": index}) for index in range(5, 15)]
    chart = pareto_chart("c", tuning(trials=[*tuning().trials, *crowd]), "speed")
    assert len(marked(chart, "ring")) == 1 + 1 + 10 + 1
    labels = [each for each in words(chart) if each.split()[0] in {str(index) for index in range(3, 15)}]
    assert labels == []
    assert {"0 fp32", "1 winner"} <= set(words(chart))


def test_a_search_with_nothing_to_draw_is_not_drawn():
    nothing = [each.model_copy(update={"bytes": None, "ratio": math.nan}) for each in tuning().trials]
    assert pareto_chart("c", tuning(trials=nothing), "size") is None
    assert pareto_chart("c", tuning(trials=nothing), "speed") is None
