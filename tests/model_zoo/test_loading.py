"""Weights: what is loaded equals transformers, and each broken checkpoint has its own error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ErnieConfig,
    ErnieForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
    ViTMSNConfig,
    ViTMSNForImageClassification,
)

from model_zoo import resolve
from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import ModelSpec


def load(spec: ModelSpec) -> Any:
    return plugins.family(spec.family).load(spec)


@torch.no_grad()
def outputs(spec: ModelSpec, module: Any, batch: int = 1) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    golden = plugins.family(spec.family).golden(spec)[batch]
    inputs = {name: torch.from_numpy(array) for name, array in golden.items()}
    return inputs, module(**inputs)


def check(folder: Path, reference: PreTrainedModel) -> ModelSpec:
    """Each output of the spec has its shape, and equals the same output of the model as transformers loads it."""
    spec = resolve(str(folder))
    module = load(spec)
    assert not module.training
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert module.model.config._attn_implementation == "eager"
    inputs, found = outputs(spec, module)
    with torch.no_grad():
        expected = reference.eval()(**inputs)
    assert list(found) == [item.name for item in spec.outputs]
    for item in spec.outputs:
        torch.testing.assert_close(found[item.name], expected[item.name], rtol=1e-4, atol=1e-5)
        for size, axis in zip(found[item.name].shape, item.shape, strict=True):
            names = {"batch": len(inputs[spec.inputs[0].name]), "sequence": next(iter(inputs.values())).shape[1]}
            assert size == (axis if isinstance(axis, int) else names[axis])
    return spec


def test_families_equal_transformers(tmp_path: Path) -> None:
    check(tiny_models.bert(tmp_path / "bert"), BertModel.from_pretrained(tmp_path / "bert"))
    check(tiny_models.dinov2(tmp_path / "dino"), AutoModel.from_pretrained(tmp_path / "dino"))
    check(tiny_models.vit(tmp_path / "vit"), AutoModel.from_pretrained(tmp_path / "vit"))
    head = tiny_models.vit(tmp_path / "head", ViTForImageClassification, num_labels=5)
    check(head, ViTForImageClassification.from_pretrained(head))


def test_a_model_without_a_family_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    ernie = ErnieForSequenceClassification(ErnieConfig(**tiny_models.BERT, num_labels=3))
    spec = check(tiny_models.save(ernie, tmp_path / "ernie"), ernie)
    assert (spec.family, spec.task) == ("auto", "text-classification")
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    msn = ViTMSNConfig(image_size=32, patch_size=8, num_labels=3, **small)
    spec = check(tiny_models.save(ViTMSNForImageClassification(msn), tmp_path / "msn"),
                 ViTMSNForImageClassification.from_pretrained(tmp_path / "msn"))  # fmt: skip
    assert (spec.family, spec.kind) == ("auto", "vision")


def test_a_family_that_is_little_more_than_names(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 48}
    distil = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=60, num_labels=3, **small))
    spec = check(tiny_models.save(distil, tmp_path / "distil"), distil)
    assert (spec.family, spec.task) == ("distilbert", "text-classification")
    assert [item.name for item in spec.inputs] == ["input_ids", "attention_mask"]
    swin = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4)
    spec = check(tiny_models.save(SwinForImageClassification(swin), tmp_path / "swin"),
                 SwinForImageClassification.from_pretrained(tmp_path / "swin"))  # fmt: skip
    assert (spec.family, spec.kind) == ("swin", "vision")


def test_positions_that_roberta_does_not_have_are_not_offered(tmp_path: Path) -> None:
    config = RobertaConfig(**{**tiny_models.BERT, "max_position_embeddings": 50, "type_vocab_size": 1})
    model = RobertaModel(config)
    spec = check(tiny_models.save(model, tmp_path / "roberta"), model)
    assert spec.dims["sequence"].max == 48
    longest = torch.full((1, 48), 5)
    assert load(spec)(input_ids=longest, attention_mask=torch.ones_like(longest))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("mode", ["cls_token", "mean_tokens", "max_tokens"])
def test_pooling_is_in_the_module(mode: str, normalize: bool, tmp_path: Path) -> None:
    folder = tiny_models.sentence_encoder(tmp_path, f"pooling_mode_{mode}", normalize=normalize)
    spec = resolve(str(folder))
    inputs, found = outputs(spec, load(spec))
    assert (inputs["attention_mask"] == 0).any(), "the golden batch must have padding"
    hidden = BertModel.from_pretrained(folder)(**inputs).last_hidden_state
    for row, embedding in enumerate(found["embedding"]):
        tokens = hidden[row, : int(inputs["attention_mask"][row].sum())]
        vector = {"cls_token": tokens[0], "mean_tokens": tokens.mean(0), "max_tokens": tokens.amax(0)}[mode]
        vector = vector / vector.norm() if normalize else vector
        torch.testing.assert_close(embedding, vector, rtol=1e-4, atol=1e-5)


def test_unknown_pooling_is_refused(tmp_path: Path) -> None:
    folder = tiny_models.sentence_encoder(tmp_path / "a", "pooling_mode_weightedmean_tokens")
    with pytest.raises(UnsupportedError, match="weightedmean"):
        resolve(str(folder))
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UnsupportedError, match="Dense"):
        resolve(str(folder))


def test_random_weights_follow_the_seed(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path)
    (folder / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    weights = [load(resolve(str(folder), weights="random", seed=seed)).state_dict() for seed in (1, 1, 2)]
    name = "model.embeddings.word_embeddings.weight"
    assert weights[0][name].equal(weights[1][name])
    assert not weights[0][name].equal(weights[2][name])
    assert state.equal(torch.random.get_rng_state())


def test_half_precision_and_shards_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = BertModel(tiny_models.BertConfig(**tiny_models.BERT)).half()
    tiny_models.save(model, tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    found = load(resolve(str(tmp_path))).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert found[name].equal(tensor.float())
    next(iter(tmp_path.glob("*.safetensors"))).unlink()
    with pytest.raises(UsageError, match=r"names model-0000.*not there"):
        load(resolve(str(tmp_path)))


def test_the_head_of_a_masked_language_model_is_left_out(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path, BertForMaskedLM)
    found = load(resolve(str(folder))).model
    expected = BertForMaskedLM.from_pretrained(folder).bert
    assert found.encoder.layer[1].output.dense.weight.equal(expected.encoder.layer[1].output.dense.weight)
    assert found.pooler is None


@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_truncated_weights(keep: int, tmp_path: Path) -> None:
    path = tiny_models.bert(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"model\.safetensors is not a whole safetensors file"):
        load(resolve(str(tmp_path)))


def test_a_pickle_checkpoint_is_not_opened(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="has no weights") as caught:
        load(resolve(str(folder)))
    assert "--weights random" in caught.value.hint
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is a pickle") as caught:
        load(resolve(str(folder)))
    assert "save_pretrained" in caught.value.hint


def change(folder: Path, change: Any) -> Path:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    folder = change(tiny_models.bert(tmp_path), lambda weights: weights.pop("pooler.dense.bias"))
    with pytest.raises(UsageError, match=r"lacks 1 of the model's weights: pooler\.dense\.bias"):
        load(resolve(str(folder)))


def test_a_superfluous_weight_is_named(tmp_path: Path) -> None:
    folder = change(tiny_models.vit(tmp_path), lambda weights: weights.update(extra=torch.ones(2)))
    with pytest.raises(UsageError, match="does not use: extra"):
        load(resolve(str(folder)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_named(value: float, tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.weight"
    folder = change(tiny_models.bert(tmp_path), lambda weights: weights[name][3].fill_(value))
    with pytest.raises(UsageError, match=rf"'{name}' holds NaN"):
        load(resolve(str(folder)))


def test_weights_of_another_size(tmp_path: Path) -> None:
    folder = tiny_models.edit_config(tiny_models.bert(tmp_path), hidden_size=8)
    with pytest.raises(UsageError, match=r"weights of another shape .* \[60, 16\] for \[60, 8\]"):
        load(resolve(str(folder)))


def test_a_sentence_encoder_of_the_generic_family(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"dim": 16, "hidden_dim": 32, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 48}
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=60, **small))
    folder = tiny_models.sentence_encoder(tmp_path)
    tiny_models.save(model, folder)
    spec = resolve(str(folder))
    assert (spec.family, spec.task) == ("distilbert", "embedding")
    inputs, found = outputs(spec, load(spec))
    hidden = model.eval().distilbert(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    expected = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    torch.testing.assert_close(found["embedding"], expected, rtol=1e-4, atol=1e-5)


OWN_CODE = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

class OwnConfig(PreTrainedConfig):
    model_type = "own"
    vocab_size: int = 30
    hidden_size: int = 8

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()
    def _init_weights(self, module):
        pass
    def forward(self, input_ids, attention_mask=None):
        return BaseModelOutput(last_hidden_state=self.table(input_ids))
"""


def test_code_that_comes_with_the_model_runs_only_when_trusted(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path / "own")
    (folder / "modeling_own.py").write_text(OWN_CODE)
    table = torch.randn(30, 8)
    save_file({"table.weight": table}, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "own",
        "architectures": ["OwnModel"],
        "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"},
        "vocab_size": 30,
        "hidden_size": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="'own' is code that comes with the model"):
        resolve(str(folder))
    spec = resolve(str(folder), trust_remote_code=True)
    inputs, found = outputs(spec, load(spec))
    assert found["last_hidden_state"].equal(table[inputs["input_ids"]])
