"""What tests share: the models that scripts/fetch_models.py brings, and the switch that forbids device skips."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import own_scripts
import pytest
from cpp_program import built

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # OpenMP's threads wait for one another in loops: more of them than cores, and they take the other process's.
    own_cores = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, own_cores)))

OWN_MODULE = """
import torch
from torch import nn


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(32, 96)
        self.mix = nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, 16)).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return {"y": self.mix(y.transpose(1, 2).flatten(2))}


def make():
    torch.manual_seed(0)
    return Own(), {"x": torch.randn(2, 7, 32)}
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-devices", action="store_true", help="a test that would skip for want of a device fails")


def pytest_configure(config: pytest.Config) -> None:
    """A suite in the background ignores Ctrl-C, and its children inherit that; tests that send one need it back."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    devices = {"requires_gpu", "requires_rtx"} & {mark.name for mark in item.iter_markers()}
    if devices and report.skipped and item.config.getoption("--require-devices"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but --require-devices was given ({', '.join(sorted(devices))})"
    return report


@pytest.fixture(scope="session")
def own_module() -> str:
    """The source of a module whose `make` answers one attention layer and its sample input."""
    return OWN_MODULE


@pytest.fixture(scope="session")
def cpp_programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the C++ project's programs, built once; skips where there is no compiler or no headers."""
    return built(tmp_path_factory)


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    """all-MiniLM-L6-v2, trained, with its tokenizer."""
    return _fetched("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def dinov2_folder() -> Path:
    """A trained DINOv2 ViT-S/14."""
    return _fetched("dinov2-small-focus")


def _fetched(name: str) -> Path:
    folder: Path = own_scripts.load("fetch_models").default_folder() / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"{name} is not here: run python scripts/fetch_models.py")
    json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return folder


@pytest.fixture(scope="session")
def gated_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of vit-digits in int8, its bundle, and the baseline that `toolkit gate` wrote."""
    from click.testing import CliRunner

    from toolkit.cli import main

    folder = tmp_path_factory.mktemp("gated")
    (folder / "recipes").mkdir()
    recipe = folder / "recipes" / "digits.yaml"
    recipe.write_text("version: 1\nmodel: vit-digits\ntargets:\n- ort-cpu-int8\n", encoding="utf-8")
    places = ["--baseline", str(folder / "drift-baseline.json"), "--output", str(folder / "bundles")]
    result = CliRunner().invoke(main, ["gate", str(recipe), *places, "--update"])
    assert result.exit_code == 0, result.output
    return folder
