"""What `--model` resolves to, and the error for each thing that it cannot be."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    LlamaConfig,
    LlamaModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTForImageClassification,
)

from model_zoo import resolve
from model_zoo._resolve import short_names
from toolkit import plugins
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.types import Dim


def shapes(items: tuple[object, ...]) -> dict[str, tuple[int | str, ...]]:
    return {item.name: item.shape for item in items}  # type: ignore[attr-defined]


def test_a_sentence_encoder_folder(tmp_path: Path) -> None:
    spec = resolve(str(tiny_models.sentence_encoder(tmp_path / "mine")))
    assert (spec.name, spec.family, spec.kind, spec.task) == ("mine", "bert", "encoder", "embedding")
    assert shapes(spec.outputs) == {"embedding": ("batch", 16)}
    assert shapes(spec.inputs) == dict.fromkeys(
        ["input_ids", "attention_mask", "token_type_ids"], ("batch", "sequence")
    )
    assert spec.dims["sequence"] == Dim(1, 48, 48)
    assert spec.source == str(tmp_path / "mine")


def test_bert_heads(tmp_path: Path) -> None:
    plain = resolve(str(tiny_models.bert(tmp_path / "plain")))
    assert shapes(plain.outputs) == {
        "last_hidden_state": ("batch", "sequence", 16),
        "pooler_output": ("batch", 16),
    }
    masked = resolve(str(tiny_models.bert(tmp_path / "masked", BertForMaskedLM)))
    assert shapes(masked.outputs) == {"last_hidden_state": ("batch", "sequence", 16)}
    labels = {0: "bad", 1: "fair", 2: "good"}
    head = tiny_models.bert(tmp_path / "head", BertForSequenceClassification, id2label=labels)
    classifier = resolve(str(head))
    assert (classifier.task, classifier.labels) == ("text-classification", ("bad", "fair", "good"))
    assert shapes(classifier.outputs) == {"logits": ("batch", 3)}


def test_vision_folders(tmp_path: Path) -> None:
    plain = resolve(str(tiny_models.vit(tmp_path / "plain")))
    assert shapes(plain.inputs) == {"pixel_values": ("batch", 3, 16, 16)}
    assert shapes(plain.outputs) == {"last_hidden_state": ("batch", 17, 16), "pooler_output": ("batch", 16)}
    head = resolve(str(tiny_models.vit(tmp_path / "head", ViTForImageClassification, num_labels=4)))
    assert (head.family, head.task, len(head.labels)) == ("vit", "image-classification", 4)


def test_dinov2_takes_the_size_of_its_image_processor(tmp_path: Path) -> None:
    folder = tiny_models.dinov2(tmp_path / "d")
    assert shapes(resolve(str(folder)).inputs) == {"pixel_values": ("batch", 3, 16, 16)}
    processor = {"image_processor_type": "BitImageProcessor", "crop_size": 24}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = resolve(str(folder))
    assert shapes(spec.inputs) == {"pixel_values": ("batch", 3, 24, 24)}
    assert shapes(spec.outputs)["last_hidden_state"] == ("batch", 37, 16)


@pytest.mark.parametrize("name", sorted(short_names()))
def test_every_short_name_resolves_without_a_network(name: str) -> None:
    built_in = name == "vit-digits"
    spec = resolve(name, weights="pretrained" if built_in else "random", offline=True)
    assert spec.name == name
    assert spec.family == short_names()[name][0]
    assert spec.outputs
    assert json.loads(json.dumps(dataclasses.asdict(spec)))["name"] == name


def test_random_weights_are_never_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="--offline") as caught:
        resolve("vit-base", offline=True)
    assert "--weights random" in caught.value.hint
    assert "local folder" in caught.value.hint


def test_a_hub_id_offline(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nobody/nothing.*not in the cache"):
        resolve("nobody/nothing-of-this-name", offline=True)


def test_models_of_any_image_size_take_that_of_their_image_processor(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 518, "patch_size": 14}
    values = {**small, "model_type": "dinov2_with_registers", "architectures": ["Dinov2WithRegistersModel"]}
    (tmp_path / "config.json").write_text(json.dumps(values))
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, "crop_size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    spec = resolve(str(tmp_path), weights="random")
    assert shapes(spec.inputs) == {"pixel_values": ("batch", 3, 224, 224)}
    assert shapes(spec.outputs)["last_hidden_state"] == ("batch", 261, 16)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(UsageError, match="unknown model 'vit-bose'") as caught:
        resolve("vit-bose")
    assert "Did you mean vit-base" in caught.value.hint
    with pytest.raises(UsageError, match="no folder"):
        resolve("./no/such/folder")


def test_a_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match=r"config\.json is not readable JSON"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="must hold a JSON object"):
        resolve(str(tmp_path))
    with pytest.raises(UsageError, match="is a file"):
        resolve(str(tmp_path / "config.json"))


def test_configurations_that_cannot_be_used(tmp_path: Path) -> None:
    folder = tiny_models.bert(tmp_path)
    with pytest.raises(UsageError, match="no architecture"):
        resolve(str(tiny_models.edit_config(folder, model_type="llama", architectures=None)))
    with pytest.raises(UsageError, match="model_type 'nonesuch'"):
        resolve(str(tiny_models.edit_config(folder, model_type="nonesuch", architectures=["X"])))
    with pytest.raises(UsageError, match="no model_type"):
        resolve(str(tiny_models.edit_config(folder, model_type=None)))
    odd = tiny_models.edit_config(folder, model_type="roberta", architectures=["OwnModel"])
    with pytest.raises(UnsupportedError, match="no model class 'OwnModel'"):
        resolve(str(odd))
    with pytest.raises(UsageError, match="code that comes with the model") as caught:
        resolve(str(tiny_models.edit_config(odd, auto_map={"AutoModel": "modeling_own.OwnModel"})))
    assert "--trust-remote-code" in caught.value.hint


def test_an_encoder_whose_file_names_no_class(tmp_path: Path) -> None:
    """As microsoft/deberta-v3-base: the encoder is taken, or the head that is asked for and is there."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    masked = DebertaV2ForMaskedLM(DebertaV2Config(vocab_size=20, **small))
    folder = tiny_models.edit_config(tiny_models.save(masked, tmp_path / "own"), architectures=None)
    for task, architecture in (("", "DebertaV2Model"), ("fill-mask", "DebertaV2ForMaskedLM")):
        spec = resolve(str(folder), task=task)
        assert spec.architecture == architecture
        plugins.family("deberta-v2").load(spec)
    with pytest.raises(UsageError, match=r"lacks .*classifier"):
        plugins.family("deberta-v2").load(resolve(str(folder), task="text-classification"))


def test_a_hub_repository_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--some--deberta"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"model_type": "deberta-v2", "vocab_size": 20}))
    spec = resolve("some/deberta", offline=True)
    with pytest.raises(UsageError, match="'some/deberta' has no weights in safetensors on the Hub") as caught:
        plugins.family("deberta-v2").load(spec)
    for wanted in (
        "transformers.DebertaV2Model.from_pretrained('some/deberta').save_pretrained('deberta')",
        "transformers.AutoTokenizer.",
        "--model ./deberta",
    ):
        assert wanted in caught.value.hint


def test_models_with_two_sides_or_without_a_head_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    llama = tiny_models.save(LlamaModel(LlamaConfig(vocab_size=20, **small)), tmp_path / "llama")
    t5 = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    seq2seq = tiny_models.save(T5ForConditionalGeneration(t5), tmp_path / "t5")
    for folder in (llama, seq2seq):
        with pytest.raises(UnsupportedError) as caught:
            resolve(str(folder))
        assert "to come" in caught.value.hint


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ({"height": Dim(1, 1, 1)}, "no dimension 'height'"),
        ({"batch": Dim(4, 2, 8)}, "must rise"),
        ({"batch": Dim(0, 1, 8)}, "must rise"),
        ({"sequence": Dim(1, 32, 64)}, "at most 48"),
    ],
)
def test_dims_outside_their_range(dims: dict[str, Dim], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(str(tiny_models.bert(tmp_path)), dims=dims)


def test_dims_that_fit_override(tmp_path: Path) -> None:
    spec = resolve(str(tiny_models.bert(tmp_path)), dims={"sequence": Dim(8, 8, 8)})
    assert spec.dims["sequence"] == Dim(8, 8, 8)
    assert spec.dims["batch"] == Dim(1, 8, 64)


FACTORIES = """
import torch
class Half(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 2)
        self.example_inputs = {"x": torch.ones(3, 4)}
    def forward(self, x):
        return self.linear(x), x.sum(1)
def pair():
    return torch.nn.Linear(4, 2), {"input": torch.ones(2, 4)}
def bare():
    return torch.nn.Linear(4, 2)
def number():
    return 3
def broken():
    raise OSError("disk on fire")
class Flat(torch.nn.Linear):
    def forward(self, input):
        return super().forward(input).sum(0)
def flat():
    return Flat(4, 2), {"input": torch.ones(2, 4)}
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_factories", raising=False)


@pytest.mark.usefixtures("factories")
def test_own_modules() -> None:
    spec = resolve("my_factories:Half")
    assert (spec.name, spec.kind, spec.architecture) == ("my_factories-Half", "module", "Half")
    assert shapes(spec.inputs) == {"x": ("batch", 4)}
    assert shapes(spec.outputs) == {"output_0": ("batch", 2), "output_1": ("batch",)}
    assert shapes(resolve("my_factories:pair").outputs) == {"output": ("batch", 2)}
    family = plugins.family("module")
    assert [batch["x"].shape for batch in family.golden(spec)] == [(3, 4), (1, 4)]
    first, second = (family.load(spec).state_dict()["model.linear.weight"] for _ in range(2))
    assert first.equal(second)


@pytest.mark.usefixtures("factories")
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("my_factories:bare", UsageError, "no example inputs"),
        ("my_factories:number", UsageError, "not an nn.Module"),
        ("my_factories:broken", StageError, "disk on fire"),
        ("my_factories:absent", UsageError, "no function 'absent'"),
        ("my_factories:flat", UsageError, "Axis 0|for 3 rows"),
        ("nowhere_at_all:f", UsageError, "cannot import"),
    ],
)
def test_factories_that_cannot_be_used(model: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve(model)


def test_resolving_imports_no_torch() -> None:
    code = "import sys, model_zoo; sys.exit(bool({'torch', 'transformers', 'onnx'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
