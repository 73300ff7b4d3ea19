"""Every encoder and vision transformer family: fused, and the eager outputs at other sizes than the export had."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from eager_parity import compare, spread
from numpy.typing import NDArray

from exporters.fused_attention.node import attention_nodes
from exporters.reference import TorchSession
from exporters.torch_export import export
from model_zoo import resolve
from runtimes import portable_session
from toolkit import plugins
from toolkit.errors import StageError, UnsupportedError
from toolkit.types import ModelSpec, QuantizedGraph

TEXT: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IMAGE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
WINDOWS: dict[str, Any] = {
    "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4,
}  # fmt: skip
PYRAMID: dict[str, Any] = {
    "image_size": 64, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 32, 32], "num_attention_heads": [1, 2, 2, 2],
}  # fmt: skip

FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "roberta": ("RobertaForMaskedLM", TEXT),
    "xlm-roberta": ("XLMRobertaModel", TEXT),
    "distilbert": (
        "DistilBertForSequenceClassification",
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 61},
    ),
    "electra": ("ElectraForTokenClassification", TEXT),
    "albert": ("AlbertForQuestionAnswering", {**TEXT, "embedding_size": 16}),
    "mpnet": ("MPNetModel", TEXT),
    "deberta": (
        "DebertaModel",
        {**TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": -1},
    ),
    "deberta-v2": (
        "DebertaV2Model",
        {
            **TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 4,
            "share_att_key": True, "norm_rel_ebd": "layer_norm",
        },
    ),
    "modernbert": ("ModernBertModel", {**TEXT, "global_attn_every_n_layers": 2, "local_attention": 6}),
    "nomic_bert": ("NomicBertModel", TEXT),
    "roformer": ("RoFormerModel", {**TEXT, "embedding_size": 32}),
    "megatron-bert": ("MegatronBertModel", TEXT),
    "mobilebert": (
        "MobileBertModel",
        {**TEXT, "embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16},
    ),
    "squeezebert": ("SqueezeBertModel", {**TEXT, "embedding_size": 32}),
    "deit": ("DeiTForImageClassificationWithTeacher", IMAGE),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", IMAGE),
    "dinov3_vit": ("DINOv3ViTModel", IMAGE),
    "beit": ("BeitModel", {**IMAGE, "use_relative_position_bias": True}),
    "clip_vision_model": ("CLIPVisionModel", IMAGE),
    "clip_text_model": ("CLIPTextModel", TEXT),
    "siglip_vision_model": ("SiglipVisionModel", IMAGE),
    "siglip_text_model": ("SiglipTextModel", TEXT),
    "swin": ("SwinModel", WINDOWS),
    "swinv2": ("Swinv2ForImageClassification", WINDOWS),
    "pvt": ("PvtModel", {**PYRAMID, "image_size": 32}),
    "pvt_v2": ("PvtV2ForImageClassification", PYRAMID),
    "segformer": ("SegformerForSemanticSegmentation", {**PYRAMID, "decoder_hidden_size": 16}),
    "hiera": (
        "HieraModel",
        {
            "image_size": [32, 32], "embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "mask_unit_size": [4, 4],
            "num_query_pool": 1,
        },
    ),
}  # fmt: skip
ATTENTIONS = {"swin": 4, "swinv2": 4, "pvt": 4, "pvt_v2": 4, "segformer": 4, "siglip_vision_model": 3}


@pytest.mark.parametrize("kind", FAMILIES)
def test_family_is_fused_and_matches_eager_pytorch(kind: str, tmp_path: Path) -> None:
    spec = resolve(str(_folder(kind, tmp_path / kind)), weights="random")
    module = plugins.family(spec.family).load(spec)
    spread(module)
    reference = TorchSession(module)
    batches = _images(spec) if spec.kind == "vision" else _tokens(spec)
    expected = [reference.run(batch) for batch in batches]

    graph = export(module, spec, batches[0], tmp_path / "export")

    canonical = ir.load(graph.path)
    assert len(attention_nodes(canonical)) == ATTENTIONS.get(kind, 2)
    assert not {node.op_type for node in canonical.graph} & {"If", "Loop", "Scan", "SequenceEmpty"}
    compare(portable_session(graph.path), spec, batches, expected)
    quantized = QuantizedGraph(graph.path, spec, graph.steps)
    lowered = plugins.runtime("ort-cpu").lower(quantized, tmp_path / "lowered")
    operators = [node.op_type for node in onnx.load(lowered.path, load_external_data=False).graph.node]
    fused = [each for each in operators if each == "MultiHeadAttention" or each.startswith("Attention")]
    assert len(fused) == ATTENTIONS.get(kind, 2)
    session = plugins.runtime("ort-cpu").session(lowered.path.parent, {"graph": lowered.path.name})
    compare(session, spec, batches, expected)


def test_models_that_mask_at_random_are_refused_but_not_their_encoder(tmp_path: Path) -> None:
    values = {**IMAGE, "model_type": "vit_mae", "architectures": ["ViTMAEModel"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    spec = resolve(str(tmp_path), weights="random")
    with pytest.raises(StageError, match=r"draws random numbers .*embeddings \(rand\)"):
        export(plugins.family("auto").load(spec), spec, _images(spec)[0], tmp_path / "export")
    folder = _folder("hiera", tmp_path / "hiera")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["HieraForPreTraining"], "decoder_hidden_size": 16, "decoder_depth": 1}
    (folder / "config.json").write_text(json.dumps({**config, "decoder_num_heads": 2}))
    with pytest.raises(UnsupportedError, match="cannot be run") as caught:
        resolve(str(folder), weights="random")
    assert "--task features" in caught.value.hint
    assert resolve(str(folder), task="features").architecture == "HieraModel"


def _folder(kind: str, folder: Path) -> Path:
    architecture, config = FAMILIES[kind]
    folder.mkdir()
    values = {**config, "model_type": kind, "architectures": [architecture]}
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def _tokens(spec: ModelSpec) -> list[dict[str, NDArray[Any]]]:
    """Two rows of 9; one of 21; three of 12 padded behind 12, 7 and 1 tokens, then before them; two of one token."""
    padded = _text(spec, 3, 12, (12, 7, 1))
    return [
        _text(spec, 2, 9, (9, 9)),
        _text(spec, 1, 21, (21,)),
        padded,
        {name: np.ascontiguousarray(array[:, ::-1]) for name, array in padded.items()},
        _text(spec, 2, 1, (1, 1)),
    ]


def _text(spec: ModelSpec, rows: int, length: int, real: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    ids = np.random.default_rng(rows).integers(3, 61, (rows, length))
    mask = (np.arange(length) < np.array(real)[:, None]).astype(np.int64)
    types = np.arange(length) % 2 * np.ones_like(ids)
    filled = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": types}
    return {item.name: filled[item.name] for item in spec.inputs}


def _images(spec: ModelSpec) -> list[dict[str, NDArray[Any]]]:
    random, shape = np.random.default_rng(0), [int(size) for size in spec.inputs[0].shape[1:]]
    return [{"pixel_values": random.standard_normal((rows, *shape)).astype(np.float32)} for rows in (2, 1, 3)]
