"""The web page in headless Chromium, WebAssembly and all: the same self-test, and what a model does with input."""

from __future__ import annotations

import re
import shutil
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from js_programs import node_modules, pixels_bundle, words_bundle, written
from PIL import Image
from tiny_bundles import image_weights

from toolkit.pipeline import export
from toolkit.plan import Request, plan

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
             "--disable-sync", "--no-first-run"]  # fmt: skip
CONTRAST = (Path(__file__).parent / "page_contrast.js").read_text(encoding="utf-8")
LEAST_CONTRAST = 4.5
DONE = "#verdict.passed, #verdict.failed"

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


class Isolated(Quiet):
    """What serve.py beside the page adds."""

    def end_headers(self):
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page with a trained int8 bundle, the same one corrupted after it was written, and two tiny ones."""
    root = tmp_path_factory.mktemp("web")
    request = Request(model="vit-digits", targets=["ort-cpu-int8"], output=root / "out", dims={})
    (digits,) = export(plan(request))
    corrupted = shutil.copytree(digits, root / "corrupted")
    bundles = [digits, corrupted, pixels_bundle(root / "pixels"), words_bundle(root / "words")]
    page = written("web", bundles, root / "page")
    node_modules(page, "web")
    weights = page / "bundles" / "corrupted" / "model.onnx.data"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 1
    weights.write_bytes(bytes(data))
    return page


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@contextmanager
def served(folder, handler=Quiet):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def shown(browser, address, bundle, **context):
    """The page with that bundle chosen. It asks nobody but its own server, and breaks none of its own policy."""
    opened = browser.new_context(**context)
    page = opened.new_page()
    broken, asked = [], []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda message: broken.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(address)
        page.wait_for_selector("#bundle option", state="attached")
        page.select_option("#bundle", bundle)
        yield page
        assert broken == []
        assert [url for url in asked if not url.startswith((address, "data:", f"blob:{address}"))] == []
    finally:
        opened.close()


def outcome_of(page):
    """The lines of the report, and the verdict."""
    page.click("#run")
    page.wait_for_selector(DONE, timeout=60_000)
    return page.locator("#report").text_content().splitlines(), page.locator("#verdict").text_content()


@pytest.mark.parametrize(("handler", "threads"), [(Quiet, "1 thread"), (Isolated, r"\d threads?")])
def test_it_passes_on_a_sound_bundle(browser, site, handler, threads):
    with served(site, handler) as address, shown(browser, address, "vit-digits-ort-cpu-int8") as page:
        lines, verdict = outcome_of(page)
    assert verdict == "selftest passed"
    assert re.fullmatch(
        rf"runtime onnxruntime \S+ CPUExecutionProvider, onnxruntime-web on WebAssembly, {threads}", lines[2]
    )
    drift = re.fullmatch(r"output logits: SQNR (\S+) dB, cosine (\S+), relative L2 \S+, max abs \S+: pass", lines[3])
    assert float(drift[1]) > 40
    assert lines[-1] == "selftest passed"


def test_it_fails_on_a_corrupted_bundle(browser, site):
    with served(site) as address, shown(browser, address, "corrupted") as page:
        lines, verdict = outcome_of(page)
    reason = "model.onnx.data: changed, another SHA-256 than the manifest's"
    assert verdict == lines[-1] == f"selftest FAILED: {reason}"
    assert len(lines) == 2


def test_a_picture_is_classified_as_it_is_in_python(browser, site, tmp_path):
    picture = np.random.default_rng(9).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "grey.png")
    first, second = image_weights()
    logits = np.maximum((picture.astype(np.float32) / 255).reshape(1, 64) @ first, 0) @ second
    shares = np.exp(logits[0]) / np.exp(logits[0]).sum()
    with served(site) as address, shown(browser, address, "pixels") as page:
        lines, _ = outcome_of(page)
        assert "preprocess 2 samples within 1.0e-06" in lines
        page.set_input_files("#picture", str(tmp_path / "grey.png"))
        likeliest = page.locator("#classes li").first
        assert likeliest.text_content() == f"digit {shares.argmax()}: {100 * shares.max():.2f}%"
        assert page.locator("#texts").is_hidden()


def test_texts_are_tokenized_and_held_against_the_first(browser, site):
    with served(site) as address, shown(browser, address, "words") as page:
        lines, _ = outcome_of(page)
        assert "preprocess in JavaScript 3 samples equal" in lines
        page.fill("#lines", "a cat sat\nthe dog\na cat sat")
        page.click("#compare")
        page.wait_for_selector("#cosines li:nth-child(3)")
        said = page.locator("#cosines li").all_text_contents()
    assert [each.partition(": ")[2] for each in said] == ["a cat sat", "the dog", "a cat sat"]
    assert said[0].startswith("1.0000")
    assert not said[1].startswith("1.0000")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(browser, site, scheme):
    phone = {"viewport": {"width": 360, "height": 740}, "color_scheme": scheme, "bypass_csp": True}
    with served(site) as address, shown(browser, address, "corrupted", **phone) as page:
        outcome_of(page)
        width, room = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        texts = page.evaluate(CONTRAST)
        unnamed = page.locator("select:not([id]), input:not([id]), textarea:not([id])").count()
        labelled = page.locator("label[for=bundle], label[for=picture], label[for=lines]").count()
    assert width <= room
    assert len(texts) > 5
    assert min(each["ratio"] for each in texts) >= LEAST_CONTRAST
    assert (unnamed, labelled) == (0, 3)


def test_without_its_runtime_the_page_says_what_to_do(browser, site, tmp_path):
    bare = shutil.copytree(site, tmp_path / "bare", ignore=shutil.ignore_patterns("node_modules"))
    with served(bare) as address:
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#bundle option", state="attached")
        _, verdict = outcome_of(page)
        page.close()
    assert verdict == "selftest FAILED: onnxruntime-web is not beside the page: run npm install in its folder"
