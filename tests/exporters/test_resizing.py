"""Antialiased resizing in the graph is PyTorch's, where `torch.onnx` alone would weigh pixels beyond the edge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from exporters.torch_export import export
from runtimes import portable_session
from toolkit.types import Dim, ModelSpec, TensorSpec


class Resized(nn.Module):
    """A learnt picture and the input, both brought to one size."""

    def __init__(self, mode: str, align_corners: bool) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, 2, 11, 7, generator=torch.Generator().manual_seed(0)))
        self.how = {"size": (4, 9), "mode": mode, "antialias": True, "align_corners": align_corners}

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": nn.functional.interpolate(self.table, **self.how) + nn.functional.interpolate(x, **self.how)}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_antialiased_resizing_is_that_of_pytorch(mode: str, align_corners: bool, tmp_path: Path) -> None:
    module = Resized(mode, align_corners).eval()
    spec = ModelSpec(
        name="resized",
        family="module",
        kind="module",
        task="raw",
        source="none",
        architecture="Resized",
        inputs=(TensorSpec("x", "float32", ("batch", 2, 13, 5)),),
        outputs=(TensorSpec("y", "float32", ("batch", 2, 4, 9)),),
        dims={"batch": Dim(1, 2, 4)},
    )
    x = np.random.default_rng(0).standard_normal((3, 2, 13, 5)).astype(np.float32)

    graph = export(module, spec, {"x": x[:2]}, tmp_path)

    assert "Resize" not in {node.op_type for node in onnx.load(graph.path).graph.node}
    session = portable_session(graph.path)
    wanted = module(torch.from_numpy(x))["y"].detach().numpy()
    np.testing.assert_allclose(session.run({"x": x})["y"], wanted, atol=2e-6)
    session.close()
