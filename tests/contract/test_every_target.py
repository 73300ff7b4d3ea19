"""Every listed family through every listed runtime and scheme, on tiny models, without a line here for a new one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from test_decoder_families import FAMILIES
from test_encoder_families import FAMILIES as ENCODERS
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from model_zoo import resolve
from toolkit.bundle.read import open_bundle
from toolkit.cli import main
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.plugins import listing
from toolkit.recipe.document import Data
from toolkit.target import all_targets, parse_target
from toolkit.types import Dim, Kind, ModelSpec, TargetOptions

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
    "image_size": 28,
    "patch_size": 14,
}
GENERIC = ("ernie", "vit_msn")
"""Types without a file of their own, which is what `auto` is for."""

OWN_SIZES: dict[str, dict[str, Any]] = {
    "swin": {
        "image_size": 32,
        "patch_size": 4,
        "embed_dim": 32,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
}
DECODER = "llama"
BIASED = ("mpnet", "swin")
"""Of the encoders that test_encoder_families.py holds to parity: attention with a bias, swapped and not."""

DUAL = ("clip", "siglip")
"""Two models in one, each exported by its own task: test_task_heads.py holds them to parity."""

WRAPPED = ("timm_wrapper",)
"""Needs timm: test_timm_models.py holds it to parity where timm is."""

WHOLE = ("bert", "vit", "vit-digits", "module", DECODER)
"""One family of each kind, and the trained one, go to every target; the others to all that gives a graph of its own."""
REPEATED = frozenset(
    {
        "coreml-fp16", "coreml-int8", "coreml-palettized", "openvino-fp32", "openvino-bf16", "ort-cuda-fp32",
        "ort-cuda-fp16", "ort-cuda-int4", "ort-mobile-fp32", "ort-mobile-fp16", "ort-trt-fp32", "ort-trt-fp16",
        "ort-trt-bf16", "trt-fp32", "trt-rtx-fp16",
    }
)  # fmt: skip
"""Lowered by rules that the same graph goes through for coreml-int4, openvino-int8, ort-cpu, ort-cuda-bf16,
ort-mobile-int8, ort-trt-int8 or trt-fp16."""


def subjects() -> Iterator[Any]:
    for name, entry in listing("model_zoo").items():
        types = entry.literals.get("MODEL_TYPES") or []
        if name == "module":
            yield pytest.param("module", id="module")
        elif name == "auto":
            yield from (pytest.param(model_type, id=f"auto-{model_type}") for model_type in GENERIC)
        elif types:
            # They share all but their modelling code, which the tests of families beside this one hold to parity.
            others = (set(FAMILIES) | set(ENCODERS) | set(DUAL) | set(WRAPPED)) - {DECODER, *BIASED}
            wanted = [model_type for model_type in types if model_type not in others]
            yield from (pytest.param(model_type, id=f"{name}-{model_type}") for model_type in wanted)
        else:
            yield pytest.param(name.replace("_", "-"), id=name)


@pytest.fixture
def model(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_module: str) -> str:
    """What to give `--model`: a saved tiny model, a factory, or a short name that is built in."""
    if request.param == "module":
        (tmp_path / "own_contract.py").write_text(own_module, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))
        return "own_contract:make"
    if request.param in {name for entry in listing("model_zoo").values() for name in entry.literals.get("NAMES", ())}:
        return str(request.param)
    torch.manual_seed(0)
    config = AutoConfig.for_model(request.param, **OWN_SIZES.get(request.param, SIZES))
    cls = AutoModelForCausalLM if request.param == DECODER else AutoModel
    cls.from_config(config).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


TRT_ONCE = ("trt-fp32", "trt-fp16", "trt-int8", "trt-rtx-fp16", "trt-rtx-bf16", "trt-rtx-fp8", "trt-rtx-nvfp4")
TRT_DECODER = ("trt-fp16", "trt-int4", "trt-rtx-fp8", "trt-rtx-nvfp4")


def targets_of(kind: Kind, *, whole: bool) -> list[str]:
    """All targets, less those whose TensorRT build would repeat another's: compiling takes most of the suite's time.

    Here both runtimes compile by the same library, so every scheme is built for one of them. A language model is
    compiled for three profiles, so int8 and bf16, which differ from int4 and fp16 in the number type alone, are left
    out; int4 of the others differs from their fp16 in the weights alone.
    """
    once = TRT_DECODER if kind == "decoder" else TRT_ONCE
    names = [str(target) for target in all_targets(kind)]
    taken = [name for name in names if name in once or not name.startswith("trt")]
    return taken if whole else [name for name in taken if name not in REPEATED]


def same_largest(spec: ModelSpec) -> dict[str, Dim]:
    """Sizes that engines of one fixed shape have too, so that one export serves all targets."""
    own = {} if spec.decoder else spec.dims
    return {name: replace(dim, max=dim.opt) for name, dim in own.items() if name != "batch"}


@pytest.mark.heavy
@pytest.mark.parametrize("model", list(subjects()), indirect=True)
def test_every_target_of_a_family_exports_and_checks(
    model: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    spec = resolve(model)
    targets = targets_of(spec.kind, whole=request.node.callspec.params["model"] in WHOLE)
    # One architecture, which every scheme takes: each is compiled in a process of its own, all by the same code.
    options = TargetOptions(architectures=("sm120",))
    few = Data(count=16)  # of the 64 samples that are calibrated on by default: the gates are the same
    asked = Request(model, targets, tmp_path / "out", calibration=few, dims=same_largest(spec), options=options)
    folders = export(plan(asked))
    assert len(folders) == len(targets)
    for folder, target in zip(folders, targets, strict=True):
        manifest = open_bundle(folder).manifest
        assert manifest.target.scheme == parse_target(target).scheme
        assert manifest.drift.passed
        result = CliRunner().invoke(main, ["check", str(folder)])
        assert result.exit_code == 0, f"{target}: {result.output}"
