"""What a stranger's bundle, comparison or search can do to the page and to who makes it: nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys

import pytest
from click.testing import CliRunner
from page_reader import Page
from page_values import HARMED, comparison, picture, rewrite, several_stages, tuning
from tiny_bundles import image_bundle

from toolkit.cli import main
from toolkit.compare.result import Histogram
from toolkit.errors import UsageError
from toolkit.page.gather import gather
from toolkit.page.picture import png_address
from toolkit.page.render import render
from toolkit.page.sources import Sources, open_subjects

PAYLOAD = "\"><script>alert(1)</script><img src=x onerror=alert(1)>'{{ 7*7 }}"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return image_bundle(tmp_path_factory.mktemp("bundle") / "image")


def hostile_sources(tmp_path):
    folder = image_bundle(tmp_path / "bundle", status="built")
    report = json.loads(several_stages().model_dump_json())
    for stage in report["stages"]:
        stage["stage"] += PAYLOAD
        stage["ran_on"] = PAYLOAD
        stage["failures"] = [PAYLOAD for _ in stage["failures"]]
        stage["outputs"][0]["name"] = PAYLOAD
    report["reference"] = PAYLOAD
    rewrite(folder, "drift.json", json.dumps(report))
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["command"] = manifest["toolkit"] = PAYLOAD
    manifest["model"] |= {"name": PAYLOAD, "architecture": PAYLOAD, "source": PAYLOAD, "revision": PAYLOAD}
    manifest["engine"] |= {"builder": PAYLOAD, "reason": PAYLOAD}
    manifest["steps"] = [{"stage": PAYLOAD, "what": PAYLOAD, "count": 1, "reason": f"{PAYLOAD}; " * 9}]
    manifest["libraries"] = {PAYLOAD: PAYLOAD}
    manifest["canonical"] = {PAYLOAD: {PAYLOAD: 3}}
    manifest["calibration"] = {"source": PAYLOAD, "count": 1, "method": PAYLOAD, "sha256": PAYLOAD}
    path.write_text(json.dumps(manifest), encoding="utf-8")
    given = comparison()
    found = [module.model_copy(update={"module": module.module + PAYLOAD, "kind": PAYLOAD}) for module in given.modules]
    hostile = comparison(
        candidate=PAYLOAD, reference=PAYLOAD, inputs=PAYLOAD, modules=found, guilty=(HARMED + PAYLOAD,),
        first_bad=HARMED + PAYLOAD, skipped={PAYLOAD: PAYLOAD},
        attention=[head.model_copy(update={"module": PAYLOAD}) for head in given.attention],
        pictures=[each.model_copy(update={"module": PAYLOAD, "labels": (PAYLOAD,)}) for each in given.pictures],
    )  # fmt: skip
    trials = [each.model_copy(update={"target": PAYLOAD, "reason": PAYLOAD}) for each in tuning().trials]
    search = tuning(model=PAYLOAD, verdict=PAYLOAD, machine=PAYLOAD, trials=trials)
    return Sources(open_subjects([folder]), (hostile,), (search,), ((PAYLOAD, PAYLOAD),))


def hostile_page(tmp_path):
    """A bundle, a comparison and a search whose every free text is an attack."""
    return Page(render(hostile_sources(tmp_path)))


def test_names_from_files_are_words_and_never_tags(tmp_path):
    page = hostile_page(tmp_path)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "iframe", "object", "link", "base", "form"} & set(tags)
    assert not [name for _, given in page.tags for name in given if name.startswith("on") or name == "style"]
    assert all(given["src"].startswith("data:image/png;base64,") for tag, given in page.tags if tag == "img")
    assert all(given["href"].startswith("#") for tag, given in page.tags if tag == "a")
    assert page.text.count("<script>alert(1)</script>") > 30
    assert "{{ 7*7 }}" in page.text
    assert page.open == []


def test_the_policy_lets_in_this_style_sheet_and_pictures_only(bundle):
    source = render(Sources(open_subjects([bundle])))
    page = Page(source)
    (policy,) = [given["content"] for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy"]
    style = source.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.split("; ")[:3] == ["default-src 'none'", f"style-src 'sha256-{digest}'", "img-src data:"]
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", ["drift.json", "model.onnx.data", "test_data_set_0/output_0.pb"])
def test_a_changed_bundle_is_refused_as_check_refuses_it(tmp_path, name):
    folder = image_bundle(tmp_path / "bundle")
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).unlink()
    (folder / name).write_bytes(content)
    output = tmp_path / "report.html"
    result, checked = (
        CliRunner().invoke(main, [*words, str(folder)]) for words in (["report", "--output", str(output)], ["check"])
    )
    assert result.exit_code == checked.exit_code == 2
    assert result.stderr == checked.stderr
    assert not output.exists()


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        ("no base64!", "is not base64"),
        (base64.b64encode(b"<svg onload=alert(1)>").decode(), "is not a whole PNG"),
        (picture(0)[: len(picture(0)) // 2 // 4 * 4], "is not a whole PNG"),
        (base64.b64encode(b"GIF89a" + bytes(32)).decode(), "is not a whole PNG"),
        (picture(0, size=2100), "pixels|bytes"),
    ],
)
def test_what_is_no_picture_is_refused(bundle, encoded, why):
    with pytest.raises(UsageError, match=why):
        png_address(encoded, "of a layer")
    pictures = [{**comparison().pictures[0].model_dump(), "candidate_png": encoded}]
    with pytest.raises(UsageError, match="the picture of"):
        render(Sources(open_subjects([bundle]), (comparison(pictures=pictures),)))


def test_a_model_that_is_code_is_not_imported_because_a_bundle_names_it(tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    folder = image_bundle(tmp_path / "bundle", family="module", source_name="trap:make")
    ((label, reason),) = gather([folder], [], [], layers=True).unmeasured
    assert label == "bundle"
    assert "Python code (trap:make)" in reason
    assert "trap" not in sys.modules


def test_a_histogram_that_does_not_fit_together_is_no_histogram():
    for edges, counts in (((0, 1), (1, 2)), ((0, 0), (1,)), ((0, math.inf), (1,)), ((0, 1), (-1,)), ((), ())):
        with pytest.raises(ValueError, match=r"histogram|finite|greater|at least"):
            Histogram(edges=edges, counts=counts)
