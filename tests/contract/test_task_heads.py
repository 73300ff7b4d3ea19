"""Every task head: exported to ONNX Runtime, and `toolkit run` says of it what transformers computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForTokenClassification,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SiglipConfig,
    SiglipModel,
)

from model_zoo import resolve
from toolkit import plugins, token_answers
from toolkit.cli import main
from toolkit.errors import UnsupportedError, UsageError
from toolkit.pipeline import export
from toolkit.plan import Request, plan

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ann", "lives", "in", "new", "york", "##er", "who", "?", "."]
SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
NAMES = {0: "O", 1: "B-PER", 2: "B-LOC", 3: "I-LOC"}
TEXT = "ann lives in new yorker ."


def saved(model: PreTrainedModel, folder: Path) -> Path:
    """The model with weights so large that its answers differ, and a tokenizer of words."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(8)
    model.eval().save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


def bert(cls: Any, folder: Path, **options: Any) -> tuple[Path, Any]:
    torch.manual_seed(0)
    model = cls(BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=32, **options))
    return saved(model, folder), model


def bundle(folder: Path, task: str = "") -> Path:
    request = Request(model=str(folder), targets=["ort-cpu-fp32"], output=folder.parent / "bundles", task=task)
    return export(plan(request))[0]


def run(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["run", *map(str, arguments), "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def shown(*arguments: object) -> str:
    result = CliRunner().invoke(main, ["run", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def ids(*words: str) -> torch.Tensor:
    return torch.tensor([[WORDS.index(word) for word in ("[CLS]", *words, "[SEP]")]])


SENTENCE = ("ann", "lives", "in", "new", "york", "##er", ".")


@pytest.mark.heavy
def test_tokens_get_their_classes_and_entities(tmp_path: Path) -> None:
    folder, model = bert(BertForTokenClassification, tmp_path / "ner", id2label=NAMES, num_labels=4)
    made = bundle(folder)
    row = run(made, TEXT, "ann .")["rows"][0]
    expected = model(ids(*SENTENCE)).logits[0, 1:-1].softmax(-1)
    assert [token["token"] for token in row["tokens"]] == list(SENTENCE)
    assert [token["label"] for token in row["tokens"]] == [NAMES[int(best)] for best in expected.argmax(-1)]
    shares = [token["probability"] for token in row["tokens"]]
    np.testing.assert_allclose(shares, expected.amax(-1).detach().numpy(), atol=1e-4)
    assert row["entities"], "the seed must give one"
    for entity in row["entities"]:
        assert entity["text"] == TEXT[entity["start"] : entity["end"]]
        assert f"{entity['text']} {entity['label']} {entity['probability']:.2%}" in shown(made, TEXT)


def test_the_names_of_classes_group_tokens() -> None:
    labels = ("B-PER", "B-LOC", "I-LOC", "I-LOC", "O", "B-LOC", "B-LOC", "PER", "PER")
    spans = [(0, 3), (4, 7), (8, 12), (12, 14), (15, 16), (17, 20), (21, 24), (25, 28), (29, 32)]
    tokens = [
        {"label": label, "start": start, "end": end, "probability": 0.5}
        for label, (start, end) in zip(labels, spans, strict=True)
    ]
    found = token_answers.entities(tokens, "ann new yorker . rio bar ian bob")
    assert [(entity["text"], entity["label"]) for entity in found] == [
        ("ann", "PER"), ("new yorker", "LOC"), ("rio", "LOC"), ("bar", "LOC"), ("ian bob", "PER"),
    ]  # fmt: skip


@pytest.mark.heavy
def test_a_mask_gets_its_likeliest_words(tmp_path: Path) -> None:
    folder, model = bert(BertForMaskedLM, tmp_path / "mlm")
    made = bundle(folder, "fill-mask")
    row = run(made, "ann lives in [MASK] [MASK] .", "--top-k", 3)["rows"][0]
    logits = model(ids("ann", "lives", "in", "[MASK]", "[MASK]", ".")).logits[0, 4:6]
    expected = logits.softmax(-1).topk(3)
    assert [[one["index"] for one in best] for best in row["masks"]] == expected.indices.tolist()
    found = [[one["probability"] for one in best] for best in row["masks"]]
    np.testing.assert_allclose(found, expected.values.detach().numpy(), atol=1e-4)
    assert row["masks"][0][0]["label"] in shown(made, "ann [MASK]")
    refused = CliRunner().invoke(main, ["run", str(made), "ann lives"])
    assert refused.exit_code == 2
    assert "[MASK]" in refused.stderr


@pytest.mark.heavy
def test_a_question_is_answered_from_the_text(tmp_path: Path) -> None:
    folder, model = bert(BertForQuestionAnswering, tmp_path / "qa")
    made = bundle(folder)
    row = run(made, TEXT, "--question", "who lives ?", "--top-k", 200)["rows"][0]
    tokens = ids("who", "lives", "?", "[SEP]", *SENTENCE)
    types = (torch.arange(tokens.shape[1]) > 4).long()[None]
    answer = model(tokens, token_type_ids=types)
    first, last = (logits[0, 5:-1].softmax(-1) for logits in (answer.start_logits, answer.end_logits))
    joint = torch.outer(first, last).triu()
    assert len(row["answers"]) == 7 * 8 // 2
    assert row["answers"][0]["probability"] == pytest.approx(float(joint.max()), abs=1e-4)
    begin, end = divmod(int(joint.argmax()), 7)
    starts = [(0, 3), (4, 9), (10, 12), (13, 16), (17, 21), (21, 23), (24, 25)]
    assert row["answers"][0]["answer"] == TEXT[starts[begin][0] : starts[end][1]]
    best = row["answers"][0]
    assert f"{best['answer']} {best['probability']:.2%}" in shown(made, TEXT, "--question", "who lives ?")
    without = CliRunner().invoke(main, ["run", str(made), TEXT])
    assert without.exit_code == 2
    assert "--question" in without.stderr


@pytest.mark.heavy
def test_pixels_get_classes_and_a_map(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"depths": [1] * 4, "hidden_sizes": [16, 32, 32, 32], "num_attention_heads": [1, 2, 2, 2]}
    torch.manual_seed(0)
    config = SegformerConfig(image_size=64, decoder_hidden_size=16, num_labels=5, **sizes)
    model = SegformerForSemanticSegmentation(config)
    made = bundle(saved(model, tmp_path / "segformer"))
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    row = run(made, tmp_path / "street.png", "--output", tmp_path / "classes.png")["rows"][0]
    values = torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)
    logits = torch.nn.functional.interpolate(model(values).logits, size=(64, 64), mode="bilinear")
    expected = logits[0].argmax(0).numpy()
    with Image.open(tmp_path / "classes.png") as image:
        assert image.mode == "P"
        assert (np.asarray(image) == expected).mean() > 0.999
    assert len(row["classes"]) > 1
    for entry in row["classes"]:
        assert entry["label"] == f"LABEL_{entry['index']}"
        assert entry["share"] == pytest.approx((expected == entry["index"]).mean(), abs=1e-3)
    assert f"{row['classes'][0]['label']} {row['classes'][0]['share']:.2%}" in shown(made, tmp_path / "street.png")
    several = CliRunner().invoke(main, ["run", str(made), *[str(tmp_path / "street.png")] * 2, "--output", "a.png"])
    assert several.exit_code == 2


def clip() -> CLIPModel:
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16, "eos_token_id": 3}
    image = {**SMALL, "image_size": 32, "patch_size": 8}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=24))


def siglip() -> SiglipModel:
    text = {**SMALL, "vocab_size": len(WORDS), "max_position_embeddings": 16, "projection_size": 32}
    return SiglipModel(SiglipConfig(text_config=text, vision_config={**SMALL, "image_size": 32, "patch_size": 8}))


@pytest.mark.heavy
@pytest.mark.parametrize("make", [clip, siglip])
def test_a_tower_of_a_dual_model(make: Callable[[], PreTrainedModel], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = make()
    folder = saved(model, tmp_path / "dual")
    with pytest.raises(UsageError) as caught:
        resolve(str(folder))
    assert caught.value.hint == "Give --task image-embedding or --task text-embedding."
    made = bundle(folder, "text-embedding")
    row = run(made, "ann lives in york")["rows"][0]
    tokens = ids("ann", "lives", "in", "york")
    if make is siglip:
        tokens = torch.nn.functional.pad(tokens, (0, 10))
    expected = torch.nn.functional.normalize(model.get_text_features(input_ids=tokens).pooler_output[0], dim=-1)
    np.testing.assert_allclose(row["embedding"]["first"], expected[:8].detach().numpy(), atol=1e-4)
    spec = resolve(str(folder), task="image-embedding")
    pixels = torch.randn(2, 3, 32, 32)
    answer = plugins.family(spec.family).load(spec)(pixel_values=pixels)["embedding"]
    expected = torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_a_tower_that_was_saved_by_itself(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = saved(clip(), tmp_path / "dual")
    config = {**SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 24}
    alone: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    spec = resolve(str(saved(alone, tmp_path / "alone")))
    assert (spec.task, spec.outputs[0].shape) == ("embedding", ("batch", 24))
    pixels = torch.randn(2, 3, 32, 32)
    expected = torch.nn.functional.normalize(alone(pixels).image_embeds, dim=-1)
    torch.testing.assert_close(plugins.family(spec.family).load(spec)(pixel_values=pixels)["embedding"], expected)
    with pytest.raises(UnsupportedError, match="'fill-mask'"):
        resolve(str(folder), task="fill-mask")
    for task, config in (("image-classification", "CLIPForImageClassification"), ("features", "CLIPVisionModel")):
        kind = "clip" if "For" in config else "clip_vision_model"
        (tmp_path / task).mkdir()
        values = {"architectures": [config], "model_type": kind}
        (tmp_path / task / "config.json").write_text(json.dumps(values))
        assert resolve(str(tmp_path / task), weights="random").task == task


def test_another_task_than_the_checkpoints_own(tmp_path: Path) -> None:
    folder, model = bert(BertForTokenClassification, tmp_path / "ner", num_labels=4)
    spec = resolve(str(folder), task="features")
    module = plugins.family(spec.family).load(spec)
    inputs = {"input_ids": ids(*SENTENCE), "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    hidden = module(**inputs, token_type_ids=torch.zeros(1, 9, dtype=torch.long))["last_hidden_state"]
    torch.testing.assert_close(hidden, model.bert(**inputs).last_hidden_state)
    with pytest.raises(UsageError, match="would be random"):
        resolve(str(folder), task="text-classification")
    with pytest.raises(UnsupportedError) as caught:
        resolve(str(folder), task="semantic-segmentation")
    assert "question-answering" in caught.value.hint
    random = resolve(str(folder), task="text-classification", weights="random")
    assert [item.shape for item in random.outputs] == [("batch", 4)]
    with pytest.raises(UnsupportedError):
        resolve("vit-digits", task="text-generation")
