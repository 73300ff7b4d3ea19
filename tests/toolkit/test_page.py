"""`toolkit report`: one page that says what the bundle's own files say, and that no file can take over."""

from __future__ import annotations

import base64
import json
import math
import re
import stat
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from page_reader import Page
from page_values import HARMED, comparison, rewrite, several_stages, tuning
from tiny_bundles import GATE, image_bundle, text_bundle

from toolkit import plugins
from toolkit.bundle.manifest import Manifest
from toolkit.bundle.read import open_bundle
from toolkit.cli import main
from toolkit.errors import UnsupportedError
from toolkit.page.gather import gather
from toolkit.page.render import render
from toolkit.page.rerun import error_statistics
from toolkit.page.sources import Sources, is_of, open_subjects
from toolkit.page.words import compact, scientific
from toolkit.types import ModelSpec, TensorSpec

METRICS = ("sqnr_db", "cosine", "relative_l2", "max_abs")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("bundles")
    return {
        "image": image_bundle(root / "image"),
        "text": text_bundle(root / "text"),
        "moved": image_bundle(root / "moved", spoil=0.5),
        "built": image_bundle(root / "built", status="built", gate=GATE),
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    result = toolkit("export", "--model", "vit-digits", "--target", "ort-cpu-int8", "--output", root)
    assert result.exit_code == 0, result.output
    return root / "vit-digits-ort-cpu-int8"


def toolkit(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def page_of(*folders, comparisons=(), tunings=()):
    return Page(render(Sources(open_subjects(folders), tuple(comparisons), tuple(tunings))))


def expected_figures(report):
    """What the drift tables must show, from drift.json as plain JSON: (stage, output, metric) to number."""
    figures, before = {}, None
    for stage in report["stages"]:
        groups = {}
        for output in stage["outputs"]:
            cache = output["name"].startswith("present.")
            groups.setdefault("present.*" if cache else output["name"], []).append(output)
        for name, members in groups.items():
            for metric in METRICS:
                worst = min if metric in ("sqnr_db", "cosine") else max
                figures[stage["stage"], name, metric] = worst(float(member[metric]) for member in members)
        level = min(float(output["sqnr_db"]) for output in stage["outputs"])
        if before is not None:
            figures[stage["stage"], next(iter(groups)), "lost_db"] = before - level
        before = level
        if stage["gate"]["min_sqnr_db"] is not None:
            figures[stage["stage"], None, "min_sqnr_db"] = stage["gate"]["min_sqnr_db"]
        for field, value in (stage["task"] or {}).items():
            if field == "greedy" and value:
                figures[stage["stage"], None, "greedy.agreement"] = value["agreement"]
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                figures[stage["stage"], None, field] = value
    return figures


def shown_figures(page):
    found = {}
    for each in page.figures("drift"):
        if each.of["stage"] != "now":
            key = (each.of["stage"], each.of.get("output"), each.of["metric"])
            assert key not in found
            found[key] = each
    return found


def assert_same(shown, expected):
    assert set(shown) == set(expected)
    for key, value in expected.items():
        assert float(shown[key].value) == value, key
        assert_rounded(shown[key].text, value)


def assert_rounded(text, value):
    """The words are the number to the digits that they have."""
    if math.isinf(value):
        assert text == "∞"
        return
    digits = re.search(r"-?[\d.]+(e[-+]\d+)?%?", text).group()
    number = float(digits.rstrip("%")) / (100 if digits.endswith("%") else 1)
    mantissa, _, power = digits.rstrip("%").partition("e")
    unit = 10.0 ** (int(power or 0) - len(mantissa.partition(".")[2])) / (100 if digits.endswith("%") else 1)
    assert abs(number - value) <= 0.5001 * unit, (text, value)


def test_every_drift_figure_is_that_of_drift_json(tmp_path):
    folder = image_bundle(tmp_path / "bundle")
    rewrite(folder, "drift.json", several_stages().model_dump_json())
    page = page_of(folder)
    report = json.loads((folder / "drift.json").read_text(encoding="utf-8"))
    expected = expected_figures(report)
    assert len(expected) > 30
    assert_same(shown_figures(page), expected)


@pytest.mark.heavy
def test_the_page_of_a_real_export_is_that_of_its_files(exported):
    page = page_of(exported)
    report = json.loads((exported / "drift.json").read_text(encoding="utf-8"))
    assert_same(shown_figures(page), expected_figures(report))
    manifest = Manifest.model_validate_json((exported / "manifest.json").read_text(encoding="utf-8"))
    assert manifest.canonical["toolkit"]["FusedAttention"] == 4
    assert "toolkit::FusedAttention" in page.text
    assert "vit-digits-ort-cpu-int8 keeps its gates" in page.text
    assert manifest.command in page.text
    assert {step.what for step in manifest.steps} <= {word.strip() for word in page.words}
    assert all(entry.sha256 in page.text for entry in manifest.files.values())


def test_the_verdict_names_the_stage_and_the_bound_that_broke(tmp_path):
    folder = image_bundle(tmp_path / "bundle")
    rewrite(folder, "drift.json", several_stages().model_dump_json())
    page = page_of(folder)
    assert "bundle breaks its gates" in page.text
    assert "Stage engine moved too far: output 'logits': SQNR 17.12 dB is below the gate's 18 dB" in page.text
    assert "✗ failed" in page.text


def test_a_bundle_that_drifts_here_fails_though_its_report_passed(bundles):
    page = page_of(bundles["moved"])
    assert "moved breaks its gates" in page.text
    assert "It passed when it was written, but not here" in page.text
    (now,) = page.figures("drift", stage="now", metric="sqnr_db")
    assert float(now.value) < 40


def test_the_row_now_is_what_check_measures(bundles, tmp_path):
    report = json.loads(toolkit("check", bundles["image"], "--json").stdout)["drift"]["stages"][0]["outputs"][0]
    page = page_of(bundles["image"])
    for metric in METRICS:
        (now,) = page.figures("drift", stage="now", metric=metric)
        assert float(now.value) == float(report[metric])


def test_engine_status_is_said_as_it_is(bundles, monkeypatch):
    page = page_of(bundles["image"], bundles["built"])
    assert "The engine was executed: drift is its own" in page.text
    assert "Built by test builder 1, the engine has not run: drift is that of its graph" in page.text
    assert "no such device here" in page.text
    assert "The engine ran here for the first time" in page.text

    class Elsewhere:
        def session(self, folder, engine):
            raise UnsupportedError("the driver shows no device")

    monkeypatch.setattr(plugins, "runtime", lambda name: Elsewhere())
    page = page_of(bundles["image"], bundles["built"])
    assert "The engine could not run here" in page.text
    assert "the driver shows no device" in page.text
    assert "Run again here: its graph" in page.text


def test_bundles_side_by_side_mark_the_rows_that_differ(bundles):
    page = page_of(bundles["image"], bundles["text"], bundles["built"])
    assert "All 3 bundles keep their gates" in page.text
    assert "model ≠" in page.text
    assert "engine ≠" in page.text
    assert "verdict ≠" not in page.text
    assert "≠" not in page_of(bundles["image"]).text
    assert page_of(bundles["image"], bundles["moved"]).text.count("1 of 2 bundles breaks its gates") == 2


def test_modules_attention_and_ranges_of_a_comparison(bundles):
    page = page_of(bundles["image"], comparisons=[comparison()])
    given = comparison()
    for module in given.modules:
        shown = page.figures("modules", module=module.module, metric="sqnr_db")
        # The guiltiest stand in a table of their own as well.
        assert len(shown) == (0 if module.failure else 1 + (module.module in given.guilty))
        assert all(float(each.value) == module.sqnr_db for each in shown)
    heads = page.figures("attention", metric="divergence")
    assert [float(each.value) for each in heads] == [head.divergence for head in given.attention]
    largest = page.figures("ranges", metric="candidate_absmax")
    assert [float(each.value) for each in largest] == [module.candidate_absmax for module in given.modules[1:-1]]
    for words in (
        f"7 modules of 26 below 20 dB, the first is {HARMED}",
        "1 module overflow",
        f"number type: {HARMED}",
        "holds NaN in 3 of 640 values",
    ):
        assert words in page.text
    pictures = [given["src"] for tag, given in page.tags if tag == "img"]
    assert [base64.b64decode(source.partition(",")[2]) for source in pictures] == [
        base64.b64decode(encoded) for each in given.pictures for encoded in (each.reference_png, each.candidate_png)
    ]


def test_a_search_shows_its_winner_and_why_trials_were_dropped(bundles):
    page = page_of(bundles["image"], tunings=[tuning()])
    for words in (
        "int8 pays here: 1.51 times as fast as fp32.",
        "SQNR 12.4 dB",
        "the kernel is missing",
    ):
        assert words in page.text
    for trial in tuning().trials:
        shown = page.figures("tuning", trial=str(trial.index), metric="median_ms")
        assert [float(each.value) for each in shown] == ([] if trial.median_ms is None else [trial.median_ms])
    stopped = page_of(bundles["image"], tunings=[tuning(finished=False, winner=None, pareto=())])
    assert "It ended before everything was tried" in stopped.text


def test_what_is_not_there_is_said(bundles):
    page = Page(render(gather([bundles["image"]], [], [], layers=True)))
    assert "not measured by module" in page.text
    assert "No search was given" in page.text
    assert "There is no held-out data for this model" in page.text
    assert "of the canonical graph this bundle records nothing" in page.text


def test_a_given_comparison_is_the_bundles_own_by_the_folders_name(bundles, tmp_path):
    file = tmp_path / "compared.json"
    file.write_text(comparison(candidate="elsewhere/image").model_dump_json(), encoding="utf-8")
    sources = gather([bundles["image"], bundles["built"]], [file], [], layers=True)
    assert [label for label, _ in sources.unmeasured] == ["built"]
    assert gather([bundles["image"]], [], [], layers=False).unmeasured == (("image", "left out by --no-layers"),)


def test_a_given_comparison_of_one_of_two_namesakes_is_not_the_others(tmp_path):
    folders = [image_bundle(tmp_path / place / "image") for place in ("a", "b")]
    compared = [comparison(candidate=str(folder)) for folder in folders]
    file = tmp_path / "compared.json"
    file.write_text(compared[0].model_dump_json(), encoding="utf-8")
    assert gather(folders, [file], [], layers=False).unmeasured == ((str(folders[1]), "left out by --no-layers"),)
    page = page_of(*folders, comparisons=compared)
    assert all(f"{folder} against vit-digits" in page.text for folder in folders)


def test_a_bundle_may_be_the_folder_that_one_is_in(tmp_path, monkeypatch):
    monkeypatch.chdir(image_bundle(tmp_path / "image"))
    (subject,) = open_subjects([Path()])
    given = comparison(candidate=".")
    assert is_of(subject, given)
    assert Sources((subject,), (given,)).title(given) == "image against vit-digits"
    assert not is_of(subject, comparison(candidate="x" * 5000))


def test_ids_are_unique_and_every_link_leads_somewhere(bundles):
    page = page_of(bundles["image"], bundles["built"], comparisons=[comparison(), comparison()], tunings=[tuning()])
    ids = [given["id"] for _, given in page.tags if "id" in given]
    assert len(ids) == len(set(ids))
    links = [given["href"].removeprefix("#") for tag, given in page.tags if tag == "a"]
    assert len(links) == 10
    assert set(links) <= set(ids)
    named = [given["aria-labelledby"].split() for tag, given in page.tags if tag == "svg"]
    assert len(named) >= 9
    assert {name for names in named for name in names} <= set(ids)


def test_the_same_sources_make_the_same_page(bundles):
    def once():
        sources = Sources(open_subjects([bundles["image"], bundles["text"]]), (comparison(),), (tuning(),))
        return render(sources)

    assert once() == once()


def test_command_writes_the_page_and_says_what_it_found(bundles, tmp_path):
    output, tuned = tmp_path / "out" / "report.html", tmp_path / "tuned"
    for folder in (output.parent, tuned):
        folder.mkdir()
    (tuned / "tune.json").write_text(tuning().model_dump_json(), encoding="utf-8")
    (tmp_path / "compared.json").write_text(comparison().model_dump_json(), encoding="utf-8")
    arguments = ["--compare", tmp_path / "compared.json", "--tune", tuned, "--output", output]
    result = toolkit("report", bundles["image"], bundles["moved"], *arguments)
    assert result.exit_code == 0, result.output
    assert "image: drift passed" in result.stdout
    assert "moved: drift FAILED" in result.stdout
    assert str(output) in result.stdout
    assert [each.name for each in output.parent.iterdir()] == ["report.html"]
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    page = Page(output.read_text(encoding="utf-8"))
    assert HARMED in page.text
    assert "int8 pays here" in page.text
    answer = json.loads(toolkit("report", bundles["image"], "--output", output, "--json").stdout)
    assert answer["passed"] is True
    assert answer["report"] == str(output)


def test_what_cannot_be_read_or_written_is_a_usage_error(bundles, tmp_path):
    broken = tmp_path / "broken.json"
    broken.write_text("{}", encoding="utf-8")
    output = tmp_path / "report.html"
    output.write_text("before", encoding="utf-8")
    cases = {
        "is not a valid comparison": ["--compare", broken],
        "is not a valid tuning": ["--tune", broken],
        "cannot read": ["--tune", tmp_path],
        "is given twice": [bundles["image"]],
    }
    for words, arguments in cases.items():
        result = toolkit("report", bundles["image"], *arguments, "--output", output)
        assert result.exit_code == 2
        assert words in result.stderr
        # It is no bundle that is to be written anew.
        assert "toolkit export" not in result.stderr
    assert output.read_text(encoding="utf-8") == "before"
    for place in (tmp_path, tmp_path / "nowhere" / "report.html"):
        result = toolkit("report", bundles["image"], "--output", place)
        assert result.exit_code == 2
        assert "cannot write" in result.stderr


def test_the_error_is_candidate_less_reference_without_padding():
    spec = ModelSpec(
        name="t", family="bert", kind="encoder", task="features", source="none", architecture="T", dims={},
        inputs=(TensorSpec("attention_mask", "int64", ("batch", "sequence")),),
        outputs=(TensorSpec("features", "float32", ("batch", "sequence", 2)),),
    )  # fmt: skip
    expected = [{"features": np.zeros((1, 3, 2), np.float32)}]
    answers = [{"features": np.array([[[1, -2], [3, 0], [99, 99]]], np.float32)}]
    inputs = [{"attention_mask": np.array([[1, 1, 0]])}]
    found = error_statistics("features", expected, answers, inputs, spec)
    assert (found.count, found.mean, found.peak) == (4, 0.5, 3.0)
    assert found.rms == math.sqrt((1 + 4 + 9) / 4)
    assert sum(found.histogram.counts) == 4
    assert (found.histogram.edges[0], found.histogram.edges[-1]) == (-3, 3)
    counts = dict(zip(found.histogram.edges, found.histogram.counts, strict=False))
    assert counts[found.histogram.edges[0]] == 0
    assert found.histogram.counts[-1] == 1
    assert found.histogram.counts[20] == 1


def test_an_exact_bundle_has_a_histogram_too():
    spec = ModelSpec(
        name="t", family="vit", kind="vision", task="features", source="none", architecture="T", dims={},
        inputs=(TensorSpec("x", "float32", ("batch",)),), outputs=(TensorSpec("y", "float32", ("batch",)),),
    )  # fmt: skip
    same = [{"y": np.ones(5, np.float32)}]
    found = error_statistics("y", same, same, [{"x": np.ones(5, np.float32)}], spec)
    assert found.histogram.counts[20] == 5
    assert found.peak == 0


def test_numbers_as_the_page_writes_them():
    assert [compact(value) for value in (0.02, 1000, 9500, 150000, 2e6, 0)] == [
        "0.02",
        "1000",
        "9500",
        "150k",
        "2M",
        "0",
    ]
    assert scientific(None) == "\N{EN DASH}"
    assert scientific(-math.inf) == "\N{MINUS SIGN}∞"
    assert scientific(0.00012) == "1.2e-04"


def test_bundle_is_what_open_bundle_opened(bundles):
    (subject,) = open_subjects([bundles["image"]])
    assert subject.bundle == open_bundle(bundles["image"])
    assert subject.label == "image"


@pytest.mark.heavy
def test_a_picture_that_the_model_does_not_take_costs_the_pictures_alone(exported):
    sources = gather([exported], [], [], layers=True, picture="99999")
    (made,) = sources.comparisons
    assert made.modules
    assert made.attention
    assert not made.pictures
    assert sources.unmeasured == ()
    assert f"{exported.name}: not drawn: there is no row 99999" in Page(render(sources)).text


@pytest.mark.heavy
def test_modules_are_compared_here_where_the_reference_can_be_loaded(exported):
    sources = gather([exported], [], [], layers=True)
    assert sources.unmeasured == ()
    (made,) = sources.comparisons
    page = Page(render(sources))
    assert "vit.layers.0.attention.q_proj" in {each.of["module"] for each in page.figures("modules", metric="sqnr_db")}
    assert [float(each.value) for each in page.figures("ranges", metric="weight_absmax")] == [
        module.weight_absmax for module in made.modules if module.weight_absmax is not None
    ]
