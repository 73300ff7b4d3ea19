"""The export stage: fused by construction, portable, reproducible, and held to its contract."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.fx.config as tracing
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    ViTConfig,
    ViTModel,
)

from exporters import UNFUSED
from exporters.reference import TorchSession
from exporters.torch_export import export
from runtimes import portable_session
from toolkit.errors import StageError
from toolkit.types import Dim, Kind, ModelSpec, Tensors, TensorSpec

TEXT = (
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch", "sequence")),
)
IMAGE = (TensorSpec("pixel_values", "float32", ("batch", 3, 16, 16)),)


class Hidden(nn.Module):
    """A Transformers model that answers its last hidden state, under an output name that torch likes to use itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embedding": self.model(**inputs).last_hidden_state}


class HandMade(nn.Module):
    """Attention of one's own: by scaled_dot_product_attention, or by matmul and softmax."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.project = nn.Linear(16, 48)
        self.by_hand = by_hand

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.project(x).chunk(3, dim=-1))
        if self.by_hand:
            mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8), dim=-1) @ v
        else:
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return mixed.transpose(1, 2).flatten(2)


class Own(nn.Module):
    def __init__(self, *by_hand: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(HandMade(each) for each in by_hand)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for block in self.blocks:
            x = x + block(x)
        return {"y": x}


def spec(inputs: tuple[TensorSpec, ...], output: str = "embedding", kind: Kind = "encoder") -> ModelSpec:
    return ModelSpec(
        name="tiny",
        family="auto",
        kind=kind,
        task="features",
        source="here",
        architecture="Tiny",
        inputs=inputs,
        outputs=(TensorSpec(output, "float32", ("batch", "sequence", 16)),),
        dims={"batch": Dim(1, 2, 8), "sequence": Dim(1, 8, 64)},
    )


def bert(**options: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=50, max_position_embeddings=64, **sizes, **options)
    model = BertModel(config, add_pooling_layer=False)
    for bias in (value for name, value in model.named_parameters() if name.endswith("bias")):
        nn.init.normal_(bias)  # equal tensors, as fresh zero biases, are stored once under one name
    return Hidden(model).eval()


def text(batch: int, sequence: int, seed: int = 0) -> Tensors:
    numbers = np.random.default_rng(seed)
    mask = np.ones((batch, sequence), dtype=np.int64)
    mask[0, sequence // 2 :] = 0
    return {"input_ids": numbers.integers(0, 50, (batch, sequence)), "attention_mask": mask}


def counts(path: Path) -> dict[str, int]:
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {name: sum(node.op_type == name for node in nodes) for name in {node.op_type for node in nodes}}


def assert_same(module: nn.Module, path: Path, *batches: Tensors) -> None:
    session = portable_session(path)
    for batch in batches:
        expected = TorchSession(module).run(batch)
        actual = session.run(batch)
        for name, values in expected.items():
            np.testing.assert_allclose(actual[name], values, atol=1e-5)


def test_a_transformers_encoder_runs_at_other_sizes_and_with_padding(tmp_path: Path) -> None:
    module = bert()
    graph = export(module, spec(TEXT), text(2, 8), tmp_path)
    assert counts(graph.path)["FusedAttention"] == 2
    assert_same(module, graph.path, text(2, 8), text(3, 17, seed=1), text(1, 2, seed=2))


def test_a_vision_model_keeps_its_attention_fused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    module = Hidden(ViTModel(config)).eval()
    images = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    graph = export(module, spec(IMAGE, kind="vision"), {"pixel_values": images}, tmp_path)
    assert counts(graph.path)["FusedAttention"] == 3
    assert_same(module, graph.path, {"pixel_values": images}, {"pixel_values": np.repeat(images, 5, axis=0)})


def test_the_module_is_given_back_as_it_was(tmp_path: Path) -> None:
    module = bert()
    before = module.model.config._attn_implementation, tracing.do_not_emit_stack_traces
    seen: list[tuple[object, ...]] = []

    def traced() -> None:
        now = module.model.config._attn_implementation, tracing.do_not_emit_stack_traces
        seen.append((*now, *tmp_path.iterdir()))

    graph = export(module, spec(TEXT), text(2, 8), tmp_path, traced=traced)
    assert seen == [before]  # as it was when tracing is over, and nothing is written yet
    assert graph.path.exists()


def test_rotary_embeddings_and_local_windows_run_at_other_batches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = {f"{name}_token_id": index for index, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = ModernBertConfig(
        vocab_size=50, max_position_embeddings=64, local_attention=4, global_attn_every_n_layers=2, **sizes, **tokens
    )
    module = Hidden(ModernBertModel(config)).eval()
    graph = export(module, spec(TEXT), text(2, 8), tmp_path)
    assert counts(graph.path)["FusedAttention"] == 2
    for batch in (text(1, 2, seed=2), text(3, 17, seed=1)):
        attended = batch["attention_mask"].astype(bool)
        expected, actual = TorchSession(module).run(batch), portable_session(graph.path).run(batch)
        np.testing.assert_allclose(actual["embedding"][attended], expected["embedding"][attended], atol=1e-5)


def test_plain_sdpa_becomes_the_same_node(tmp_path: Path) -> None:
    own = Own(False, False).eval()
    x = {"x": np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)}
    own_spec = spec((TensorSpec("x", "float32", ("batch", "sequence", 16)),), "y", "module")
    graph = export(own, own_spec, x, tmp_path)
    assert counts(graph.path)["FusedAttention"] == 2
    assert_same(own, graph.path, x, {"x": x["x"][:1, :3]})


def test_attention_by_hand_is_named_and_refused(tmp_path: Path) -> None:
    x = {"x": np.zeros((2, 5, 16), dtype=np.float32)}
    own_spec = spec((TensorSpec("x", "float32", ("batch", "sequence", 16)),), "y", "module")
    with pytest.raises(StageError, match=r"1 of 3 attention modules are not fused: blocks\.1$") as raised:
        export(Own(False, True, False).eval(), own_spec, x, tmp_path)
    assert "--allow-unfused" in raised.value.hint


def test_unfused_attention_can_be_allowed_and_is_recorded(tmp_path: Path) -> None:
    own = Own(False, True).eval()
    x = {"x": np.random.default_rng(0).normal(size=(2, 5, 16)).astype(np.float32)}
    own_spec = spec((TensorSpec("x", "float32", ("batch", "sequence", 16)),), "y", "module")
    graph = export(own, own_spec, x, tmp_path, allow_unfused=True)
    assert [(step.count, step.reason) for step in graph.steps if step.what == UNFUSED] == [(1, "blocks.1")]
    assert_same(own, graph.path, x)


def test_a_family_that_bypasses_the_interface_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    module = Hidden(MPNetModel(MPNetConfig(vocab_size=50, max_position_embeddings=64, **sizes))).eval()
    with pytest.raises(StageError, match=r"encoder\.layer\.0\.attention\.attn"):
        export(module, spec(TEXT), text(2, 8), tmp_path)


def test_a_transformer_without_any_attention_is_refused(tmp_path: Path) -> None:
    own_spec = spec((TensorSpec("x", "float32", ("batch", "sequence", 16)),), "y")
    with pytest.raises(StageError, match="no attention at all"):
        export(Own().eval(), own_spec, {"x": np.zeros((2, 5, 16), dtype=np.float32)}, tmp_path)


def test_a_dimension_that_is_not_dynamic_is_named(tmp_path: Path) -> None:
    class Fixed(Own):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"y": super().forward(x)["y"].reshape(2, 5, 16)}

    own_spec = spec((TensorSpec("x", "float32", ("batch", "sequence", 16)),), "y", "module")
    with pytest.raises(StageError, match="export"):
        export(Fixed(False).eval(), own_spec, {"x": np.zeros((2, 5, 16), dtype=np.float32)}, tmp_path)


def test_equal_exports_are_equal_bytes_and_name_no_path_of_this_machine(tmp_path: Path) -> None:
    first = export(bert(), spec(TEXT), text(2, 8), tmp_path / "first")
    second = export(bert(), spec(TEXT), text(3, 9), tmp_path / "second")
    assert first.sha256 == second.sha256
    raw = first.path.read_bytes()
    assert b"site-packages" not in raw
    assert str(Path.cwd()).encode() not in raw


def test_weights_carry_the_names_of_their_modules(tmp_path: Path) -> None:
    graph = export(bert(), spec(TEXT), text(2, 8), tmp_path)
    names = {tensor.name for tensor in onnx.load(graph.path, load_external_data=False).graph.initializer}
    assert "encoder.layer.1.attention.self.query.weight" in names
    assert "encoder.layer.1.attention.self.query.bias" in names


@pytest.mark.parametrize("opset", [20, 23, 24])
def test_the_opset_can_be_chosen(tmp_path: Path, opset: int) -> None:
    module = bert()
    graph = export(module, spec(TEXT), text(2, 8), tmp_path, opset=opset)
    versions = {entry.domain: entry.version for entry in onnx.load(graph.path, load_external_data=False).opset_import}
    assert versions[""] == opset
    assert_same(module, graph.path, text(2, 9))
