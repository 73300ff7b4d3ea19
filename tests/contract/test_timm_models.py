"""timm's vision transformers, from folders that timm saved: fused, with timm's own outputs and pre-processing.

Skipped where timm does not import, which it does only beside a torchvision of torch's own build.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from eager_parity import compare, spread
from numpy.typing import NDArray
from PIL import Image
from transformers import TimmWrapperForImageClassification

from exporters.fused_attention.node import attention_nodes
from exporters.torch_export import export
from model_zoo import _image_graph, _preprocess, resolve
from runtimes import portable_session
from toolkit import plugins
from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import ModelSpec, QuantizedGraph

try:
    import timm
    from timm.data import create_transform, resolve_data_config
    from timm.models import save_for_hf
except (ImportError, OSError, RuntimeError) as error:
    pytest.skip(f"timm does not import: {error}", allow_module_level=True)

PHOTOS = Path(_preprocess.__file__).parent / "data" / "photos" / "golden"
PLAIN: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
WINDOWS: dict[str, Any] = {
    "img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4,
}  # fmt: skip
MODELS: dict[str, tuple[dict[str, Any], int]] = {
    "vit_tiny_patch16_224": (PLAIN, 2),
    "vit_base_patch16_siglip_224": (PLAIN, 3),
    "vit_relpos_small_patch16_224": (PLAIN, 2),
    "deit_tiny_distilled_patch16_224": (PLAIN, 2),
    "eva02_tiny_patch14_224": (PLAIN, 2),
    "beit_base_patch16_224": (PLAIN, 2),
    "swin_tiny_patch4_window7_224": (WINDOWS, 4),
    "swinv2_tiny_window8_256": (WINDOWS, 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_timm_model_is_fused_and_matches_timm(name: str, tmp_path: Path) -> None:
    arguments, count = MODELS[name]
    original = _saved(name, tmp_path / "own", arguments)
    spec = resolve(str(tmp_path / "own"))
    module = plugins.family("timm").load(spec)
    batches = _images(spec)
    expected = [_run(original, batch) for batch in batches]

    graph = export(module, spec, batches[0], tmp_path / "export")

    assert (spec.family, spec.task, spec.architecture) == ("timm", "image-classification", name)
    assert [_same(_named(module, batch), wanted) for batch, wanted in zip(batches, expected, strict=True)] == [True] * 3
    assert len(attention_nodes(ir.load(graph.path))) == count
    compare(portable_session(graph.path), spec, batches, expected)
    lowered = plugins.runtime("ort-cpu").lower(QuantizedGraph(graph.path, spec, graph.steps), tmp_path / "lowered")
    operators = [node.op_type for node in onnx.load(lowered.path, load_external_data=False).graph.node]
    assert operators.count("Attention") + operators.count("MultiHeadAttention") == count
    compare(
        plugins.runtime("ort-cpu").session(lowered.path.parent, {"graph": lowered.path.name}), spec, batches, expected
    )


def test_features_are_what_timm_has_before_the_head(tmp_path: Path) -> None:
    original = _saved("vit_tiny_patch16_224", tmp_path / "own", PLAIN)
    spec = resolve(str(tmp_path / "own"), task="features")
    assert {item.name: item.shape for item in spec.outputs} == {
        "last_hidden_state": ("batch", 17, 32),
        "pooler_output": ("batch", 32),
    }
    batch = _images(spec)[0]
    states = original.forward_features(torch.from_numpy(batch["pixel_values"]))
    wanted = {"last_hidden_state": states, "pooler_output": original.forward_head(states, pre_logits=True)}
    assert _same(_named(plugins.family("timm").load(spec), batch), {k: v.detach().numpy() for k, v in wanted.items()})


def test_a_folder_that_transformers_wrapper_saved(tmp_path: Path) -> None:
    _saved("vit_tiny_patch16_224", tmp_path / "own", PLAIN)
    _edit(tmp_path / "own", lambda config: config["model_args"].pop("num_classes"))
    wrapper = TimmWrapperForImageClassification.from_pretrained(tmp_path / "own").eval()
    wrapper.save_pretrained(tmp_path / "saved")
    spec = resolve(str(tmp_path / "saved"))
    batch = _images(spec)[0]
    wanted = wrapper(torch.from_numpy(batch["pixel_values"])).logits.detach().numpy()
    assert spec.family == "timm"
    assert _same(_named(plugins.family("timm").load(spec), batch), {"logits": wanted})


@pytest.mark.parametrize("crop_pct", [0.9, 0.95, 1.0])
@pytest.mark.parametrize("mode", ["center", "squash"])
def test_images_are_prepared_as_timm_does(mode: str, crop_pct: float, tmp_path: Path) -> None:
    data = {"crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3]}
    _saved("vit_tiny_patch16_224", tmp_path / "own", {**PLAIN, "img_size": 104})
    _edit(tmp_path / "own", lambda config: config["pretrained_cfg"].update(data))
    spec = resolve(str(tmp_path / "own"))
    own = json.loads((tmp_path / "own" / "config.json").read_text())["pretrained_cfg"]
    transform = create_transform(**resolve_data_config(pretrained_cfg=own), is_training=False)
    images = [Image.open(path).convert("RGB").crop((0, 0, 191, 163 + row)) for row, path in enumerate(_photographs())]

    made = _preprocess.images(images, tmp_path / "own", spec.inputs[0].shape)
    graph = _image_graph.preprocessing(spec, plugins.family("timm").assets(spec))

    np.testing.assert_allclose(made, np.stack([transform(image).numpy() for image in images]), atol=1e-6)
    assert graph.graph is not None and graph.exact, graph.reason


def test_a_name_of_timms_registry_needs_no_files() -> None:
    tagged = resolve("timm/vit_tiny_patch16_224.augreg_in21k", weights="random", offline=True)
    plain = resolve("timm/vit_tiny_patch16_224", weights="random", offline=True)
    assert (tagged.outputs[0].shape, plain.outputs[0].shape) == (("batch", 21843), ("batch", 1000))
    assert plain.labels[0] == "tench, Tinca tinca"
    with pytest.raises(UsageError, match="not in the cache"):
        resolve("timm/vit_tiny_patch16_224", offline=True)
    with pytest.raises(UsageError, match=r"no architecture 'vit_tinny_patch16_224'") as caught:
        resolve("timm/vit_tinny_patch16_224", weights="random")
    assert "Did you mean vit_tiny_patch16_224" in caught.value.hint


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    _saved("vit_tiny_patch16_224", tmp_path / "own", PLAIN)
    with pytest.raises(UnsupportedError, match="no task 'fill-mask'"):
        resolve(str(tmp_path / "own"), task="fill-mask")
    _edit(tmp_path / "own", lambda config: config["model_args"].update(num_classes=6))
    with pytest.raises(UsageError, match="do not fit vit_tiny_patch16_224"):
        plugins.family("timm").load(resolve(str(tmp_path / "own")))
    (tmp_path / "own" / "model.safetensors").unlink()
    torch.save({}, tmp_path / "own" / "pytorch_model.bin")
    with pytest.raises(UsageError, match="pickle checkpoint"):
        plugins.family("timm").load(resolve(str(tmp_path / "own")))


def _saved(name: str, folder: Path, arguments: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model: Any = timm.create_model(name, num_classes=5, **arguments).eval()
    spread(model)
    size = (3, arguments["img_size"], arguments["img_size"])
    save_for_hf(model, folder, model_args=arguments, safe_serialization=True)
    _edit(folder, lambda config: config["pretrained_cfg"].update(input_size=size, num_classes=5))
    return model


def _edit(folder: Path, change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def _photographs() -> list[Path]:
    return sorted(PHOTOS.iterdir())


def _images(spec: ModelSpec) -> list[dict[str, NDArray[Any]]]:
    random, shape = np.random.default_rng(0), [int(size) for size in spec.inputs[0].shape[1:]]
    return [{"pixel_values": random.standard_normal((rows, *shape)).astype(np.float32)} for rows in (2, 1, 3)]


def _run(model: Any, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    with torch.inference_mode():
        return {"logits": model(torch.from_numpy(batch["pixel_values"])).numpy()}


def _named(module: torch.nn.Module, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    with torch.inference_mode():
        return {name: value.numpy() for name, value in module(torch.from_numpy(batch["pixel_values"])).items()}


def _same(made: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> bool:
    return made.keys() == wanted.keys() and all(np.array_equal(made[name], wanted[name]) for name in wanted)
