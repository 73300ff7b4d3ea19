"""The page in a real browser: loads nothing, runs nothing, fits a phone, is readable in light and dark."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from page_values import comparison, tuning
from PIL import Image
from test_page_hostile import hostile_sources
from tiny_bundles import image_bundle, text_bundle

from toolkit.page.render import render
from toolkit.page.sources import Sources, open_subjects

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip
DESKTOP, PHONE = {"width": 1200, "height": 900}, {"width": 360, "height": 740}
VIEWS = [(DESKTOP, "light"), (DESKTOP, "dark"), (PHONE, "light")]
LEAST_CONTRAST = 4.5
CONTRAST = (Path(__file__).parent / "page_contrast.js").read_text(encoding="utf-8")

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A page with everything on it: bundles that pass and fail, a comparison, a search."""
    root = tmp_path_factory.mktemp("page")
    folders = [
        image_bundle(root / "vit-tiny-ort-cpu-int8"),
        image_bundle(root / "vit-tiny-trt-int8", status="built"),
        text_bundle(root / "text-tiny-ort-cpu-fp32"),
        image_bundle(root / "vit-tiny-moved", spoil=0.5),
    ]
    sources = Sources(
        open_subjects(folders), (comparison(),), (tuning(),), (("vit-tiny-moved", "there is no PyTorch"),)
    )
    path = root / "report.html"
    path.write_text(render(sources), encoding="utf-8")
    return path


@contextmanager
def shown(browser, path, view, scheme, *, script=True):
    """The page opened without a network; what it logged and asked for must be nothing when the block ends."""
    context = browser.new_context(viewport=view, color_scheme=scheme, java_script_enabled=script, offline=True)
    page = context.new_page()
    logged, asked = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("dialog", lambda dialog: logged.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(path.as_uri())
        yield page
        assert logged == []
        assert [url for url in asked if not url.startswith("data:image/png;base64,")] == [path.as_uri()]
    finally:
        context.close()


@pytest.mark.parametrize(("view", "scheme"), VIEWS)
def test_without_script_the_page_is_there_in_both_themes(browser, whole, view, scheme):
    with shown(browser, whole, view, scheme, script=False) as page:
        picture = np.asarray(Image.open(BytesIO(page.screenshot())).convert("RGB"))
        assert page.locator("h1").inner_text().startswith("1 of 4 bundles breaks its gates")
        assert page.locator("svg").count() >= 12
    corner = picture[2, 2].astype(int).sum()
    assert corner > 600 if scheme == "light" else corner < 150
    # Neither blank nor one block of colour.
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 30


@pytest.mark.parametrize(("view", "scheme"), VIEWS)
def test_it_fits_and_its_text_can_be_read(browser, whole, view, scheme):
    with shown(browser, whole, view, scheme) as page:
        box = page.locator("article.verdict .badge").first.bounding_box()
        assert 0 <= box["y"] < box["y"] + box["height"] <= view["height"]
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        width, room = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= room
        texts = page.evaluate(CONTRAST)
    assert len(texts) > 300
    worst = min(texts, key=lambda each: each["ratio"])
    assert worst["ratio"] >= LEAST_CONTRAST, worst


def test_the_measure_of_contrast_finds_what_cannot_be_read(browser, tmp_path):
    path = tmp_path / "faint.html"
    path.write_text("<body style='background:#fff'><p style='color:#999'>faint</p><p>black</p>", encoding="utf-8")
    with shown(browser, path, DESKTOP, "light") as page:
        ratios = {each["text"]: each["ratio"] for each in page.evaluate(CONTRAST)}
    assert ratios["black"] == pytest.approx(21)
    assert ratios["faint"] == pytest.approx(2.85, abs=0.01)


def test_a_strangers_names_do_nothing_in_a_browser(browser, tmp_path):
    path = tmp_path / "hostile.html"
    path.write_text(render(hostile_sources(tmp_path)), encoding="utf-8")
    with shown(browser, path, PHONE, "dark") as page:
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.locator("script, iframe, object").count() == 0
        width, room = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert width <= room


def test_the_policy_stops_what_slips_in(browser, whole, tmp_path):
    path = tmp_path / "slipped.html"
    slipped = "<script>document.title = 'taken'</script><img src='https://example.com/x.png'></main>"
    path.write_text(whole.read_text(encoding="utf-8").replace("</main>", slipped), encoding="utf-8")
    context = browser.new_context(offline=True)
    page = context.new_page()
    logged = []
    page.on("console", lambda message: logged.append(message.text))
    page.goto(path.as_uri())
    assert page.title() != "taken"
    assert len([each for each in logged if "Content Security Policy" in each]) == 2
    context.close()


def test_it_prints_what_is_folded_away(browser, whole, tmp_path):
    with shown(browser, whole, DESKTOP, "light") as page:
        page.emulate_media(media="print")
        assert page.locator("nav").is_hidden()
        assert page.locator("#provenance details table").first.bounding_box()["height"] > 50
        assert page.pdf(format="A4").startswith(b"%PDF")
