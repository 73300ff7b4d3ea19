"""Every scheme on graphs that the exporter itself made, against the fp32 PyTorch model."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from quantize_graphs import by_type, sqnr
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from exporters.torch_export import export
from quantize import quantize
from runtimes import portable_session
from toolkit.types import Calibration, Dim, ModelSpec, TensorSpec

DIMS = {"batch": Dim(1, 2, 8), "sequence": Dim(1, 8, 16)}
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
CASES = {
    "vit": (
        lambda: ViTModel(ViTConfig(image_size=16, patch_size=4, **SIZES), add_pooling_layer=False),
        (TensorSpec("pixel_values", "float32", ("batch", 3, 16, 16)),),
        {"int8 Linears": 6, "int8 patch convolutions": 1},
    ),
    "bert": (
        lambda: BertModel(BertConfig(vocab_size=50, **SIZES), add_pooling_layer=False),
        tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")),
        {"int8 Linears": 6, "int8 patch convolutions": 0},
    ),
}


class Hidden(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        return {"hidden": self.model(**inputs).last_hidden_state}


def sample(spec, seed):
    rng = np.random.default_rng(seed)
    if spec.kind == "vision":
        return {"pixel_values": rng.normal(size=(3, 3, 16, 16)).astype(np.float32)}
    mask = np.ones((3, 9), np.int64)
    mask[1, 6:] = 0
    return {"input_ids": rng.integers(0, 50, (3, 9)), "attention_mask": mask}


@pytest.fixture(scope="module", params=CASES)
def exported(request, tmp_path_factory):
    make, inputs, counts = CASES[request.param]
    kind = "vision" if request.param == "vit" else "encoder"
    hidden = (TensorSpec("hidden", "float32", ("batch", "tokens", 32)),)
    spec = ModelSpec(request.param, "test", kind, "raw", "test:tiny", "Tiny", inputs, hidden, DIMS)
    torch.manual_seed(0)
    module = Hidden(make().eval())
    folder = tmp_path_factory.mktemp(request.param)
    return module, export(module, spec, sample(spec, 0), folder), counts


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("scheme", "least"),
    [
        ("fp32", 90),
        ("fp16", 50),
        ("bf16", 36),
        ("int8", 20),
        ("int8-dynamic", 20),
        ("fp8", 20),
        ("int4", 14),
        ("nvfp4", 8),
    ],
)
def test_a_scheme_keeps_the_outputs_of_the_torch_model(exported, tmp_path, scheme, least):
    module, graph, _ = exported
    data = Calibration(lambda: (sample(graph.spec, seed) for seed in range(8)), 8, "random inputs")
    made = quantize(graph, scheme, data, tmp_path)
    onnx.checker.check_model(made.path, full_check=True)
    feed = sample(graph.spec, 99)
    with torch.no_grad():
        reference = module(**{name: torch.from_numpy(array) for name, array in feed.items()})["hidden"].numpy()
    candidate = portable_session(made.path).run(feed)["hidden"]
    assert candidate.dtype == np.float32
    assert sqnr(reference, candidate) > least


@pytest.mark.heavy
def test_all_linears_of_an_exported_model_are_found(exported, tmp_path):
    _, graph, counts = exported
    made = quantize(graph, "int8-dynamic", None, tmp_path)
    found = {step.what: step.count for step in made.steps}
    assert {what: found[what] for what in counts} == counts
    model = ir.load(made.path)
    assert len(by_type(model, "DynamicQuantizeLinear")) == found["quantized activations"]
    assert all(node.inputs[1].producer().op_type == "DequantizeLinear" for node in by_type(model, "MatMul"))
