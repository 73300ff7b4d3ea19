"""Which engine is opened, and what is said where none can be: judged before any device is touched."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from runtimes._tensorrt import runtime
from runtimes._tensorrt.devices import Device
from runtimes.trt_rtx import RUNTIME
from toolkit.errors import MissingDependencyError, UnsupportedError, UsageError
from toolkit.types import DecoderSpec

FILES = ["engine-sm80.plan", "engine-sm89.plan"]
ENTRY = {"files": FILES, "details": {"library": "tensorrt_rtx"}}
needs_rtx = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")


def present(monkeypatch: pytest.MonkeyPatch, name: str, architecture: str) -> None:
    """As if the driver showed this device."""
    monkeypatch.setattr(runtime, "devices", lambda: ((Device(name, architecture),), ""))


@pytest.mark.parametrize("architecture", ["sm120", "sm75"])
def test_a_device_for_which_nothing_was_compiled(
    architecture: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    present(monkeypatch, "Some GPU", architecture)
    for opened in (
        lambda: RUNTIME.session(tmp_path, ENTRY),
        lambda: RUNTIME.decoder(tmp_path, ENTRY, DecoderSpec(1, 8, 8), limit=8, rows=1),
    ):
        with pytest.raises(UnsupportedError, match=rf"no engine for Some GPU \({architecture}\)") as caught:
            opened()
        assert caught.value.hint == f"The bundle has: sm80, sm89. Export again with --arch {architecture}."


@needs_rtx
def test_without_cuda_bindings_the_session_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    present(monkeypatch, "RTX 4090", "sm89")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(MissingDependencyError) as caught:
        RUNTIME.session(tmp_path, ENTRY)
    assert "cuda-bindings" in caught.value.hint


def test_without_the_engines_own_library_the_session_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    present(monkeypatch, "RTX 4090", "sm89")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingDependencyError, match="tensorrt_rtx is not installed") as caught:
        RUNTIME.session(tmp_path, ENTRY)
    assert "tensorrt-rtx-cu13" in caught.value.hint


def test_a_module_that_a_manifest_names_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    present(monkeypatch, "RTX 4090", "sm89")
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a_strangers_module.py").write_text("")
    with pytest.raises(UsageError, match="a library that is not known: 'a_strangers_module'"):
        RUNTIME.session(tmp_path, {"files": FILES, "details": {"library": "a_strangers_module"}})
    assert "a_strangers_module" not in sys.modules


@needs_rtx
def test_an_engine_that_cannot_be_tried_for_want_of_cuda_bindings_is_built_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    present(monkeypatch, "RTX 4090", "sm89")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    reason = RUNTIME._unrun(tmp_path, (Path(FILES[1]),), ENTRY["details"])  # type: ignore[arg-type]
    assert reason.startswith("cuda.bindings is not installed (pip install")


@needs_rtx
def test_a_device_without_cuda_bindings_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, "RTX 4090", "sm89")
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    ready = RUNTIME.readiness()
    assert ready.build
    assert not ready.run
    assert "engines do not run: cuda.bindings is not installed" in ready.reason
    assert ready.device == "RTX 4090 (sm89)"


@needs_rtx
def test_a_device_that_the_library_does_not_compile_for_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    present(monkeypatch, "H100", "sm90")
    monkeypatch.setattr(runtime, "missing", lambda: "")
    ready = RUNTIME.readiness()
    assert (ready.build, ready.run) == (True, False)
    assert ready.reason.startswith("engines do not run: tensorrt_rtx 1.")
    assert ready.reason.endswith("does not compile for sm90")
    present(monkeypatch, "RTX 4090", "sm89")
    assert RUNTIME.readiness().run


def test_an_engine_for_other_devices_is_built_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    present(monkeypatch, "H100", "sm90")
    reason = RUNTIME._unrun(tmp_path, (Path(FILES[1]),), ENTRY["details"])  # type: ignore[arg-type]
    assert reason == "no engine for H100 (sm90)"
