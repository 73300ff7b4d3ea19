"""timm: vision models of PyTorch Image Models, by Hub id (timm/vit_small_patch16_224) or folder; needs [timm]."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from exporters.fused_attention.interface import NAME
from model_zoo import _loading, _source, _timm_config, _vision
from model_zoo._skeleton import shapes_only
from model_zoo._timm_config import Settings
from toolkit.errors import MissingDependencyError, UnsupportedError, UsageError
from toolkit.plugins import nearest
from toolkit.types import ModelRequest, ModelSpec, TensorSpec

__all__ = ["CONFIG_KEY", "FAMILY", "HUB_OWNER", "MODEL_TYPES", "NAMES"]

MODEL_TYPES = ["timm_wrapper"]
NAMES: dict[str, str] = {}
HUB_OWNER = "timm"
CONFIG_KEY = "architecture"

_INSTALL = "pip install 'transformer-export-toolkit[timm]'"
_TASKS = ("image-classification", "features")
_WRAPPED = "timm_model."
_LARGEST_SCALE = math.log(100.0)


class TimmEncoder(nn.Module):
    """A timm model with its outputs by name: float32 [batch, C, H, W] in, the named ones out.

    timm has attention that calls `scaled_dot_product_attention` only when told to, and attention that never does;
    both do while the toolkit's implementation is selected, and are timm's own code otherwise.
    """

    def __init__(self, model: nn.Module, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.outputs = outputs
        self.config = SimpleNamespace(_attn_implementation="eager")
        parts: list[Any] = list(model.modules())
        self._flags = [(part, bool(part.fused_attn)) for part in parts if hasattr(part, "fused_attn")]
        self._by_hand = [(part, _BY_HAND[_path(part)]) for part in parts if _path(part) in _BY_HAND]
        self.train(model.training)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """The named outputs."""
        model: Any = self.model
        if self.outputs == ("logits",):
            return {"logits": model(pixel_values)}
        states = model.forward_features(pixel_values)
        return {"last_hidden_state": states, "pooler_output": model.forward_head(states, pre_logits=True)}

    def set_attn_implementation(self, name: str) -> None:
        """Select the toolkit's attention by its name, or timm's own by any other."""
        self.config._attn_implementation = name
        for part, own in self._flags:
            part.fused_attn = own or name == NAME
        for part, fused in self._by_hand:
            part.__dict__.pop("forward", None)
            if name == NAME:
                part.forward = partial(fused, part)


class Timm(_vision.Photographs):
    """An architecture of timm's registry: `logits`, or what comes before the head."""

    name = "timm"

    def describe(self, request: ModelRequest) -> ModelSpec:
        """The spec. Raises MissingDependencyError without timm, UsageError for an architecture that it has not."""
        request = request if request.config else _from_hub(request)
        made = _timm_config.settings(request.config)
        _check_architecture(made.architecture)
        channels, height, width = made.input_size
        task = request.task or _TASKS[0 if made.classes else 1]
        if task not in _TASKS or (task == _TASKS[0] and not made.classes):
            raise UnsupportedError(
                f"no task '{task}' for {made.architecture} with {made.classes} classes",
                hint=f"Its tasks: {', '.join(_TASKS if made.classes else _TASKS[1:])}.",
            )
        return _vision.vision_spec(
            request,
            family=self.name,
            task=task,
            architecture=made.architecture,
            channels=channels,
            size=(height, width),
            outputs=_features(made) if task == "features" else [_logits(made)],
            labels=() if task == "features" else made.labels or _imagenet_labels(made.classes),
        )

    def load(self, spec: ModelSpec) -> TimmEncoder:
        """The model in eval mode, fp32; weights from safetensors. Raises UsageError where they do not fit."""
        folder = _loading.model_folder(spec, weights=spec.weights == "pretrained")
        made = _timm_config.settings(
            _registered(spec.source) if folder is None else _source.read_json(folder / "config.json")
        )
        outputs = tuple(item.name for item in spec.outputs)
        if spec.weights == "pretrained" and folder is not None:
            _loading.check_files(folder, spec)
            return TimmEncoder(_pretrained(made, folder), outputs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            return TimmEncoder(_created(made), outputs)


def _library() -> Any:
    """The package timm. Raises MissingDependencyError where it or what it needs is not there or does not import."""
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"timm models need {error.name}, which is not installed", hint=_INSTALL) from error
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"timm is installed but does not import: {str(error).partition(chr(10))[0]}",
            hint=f"torchvision must be of the same build (CPU or CUDA) as torch {torch.__version__}: "
            "pip install --force-reinstall --no-deps torchvision --index-url https://download.pytorch.org/whl/cpu "
            "(for the CPU build).",
        ) from error


def _from_hub(request: ModelRequest) -> ModelRequest:
    """The request with the configuration of a model of the Hub's `timm`: from there, or from timm where it suffices.

    A name without a tag stands for the weights that timm takes for it.
    """
    registered = _registered(request.source) if request.weights == "random" else {}
    if registered:
        return replace(request, config=registered)
    source = request.source
    if "." not in source:
        source = _registered(source)["hf_hub_id"] or source
    folder = _source.files(source, revision=request.revision, offline=request.offline)
    return replace(request, source=source, config=_source.read_json(folder / "config.json"), revision=folder.name)


def _registered(source: str) -> dict[str, Any]:
    """What timm's registry has for `timm/<architecture>[.<tag>]`, as a `config.json` of the old layout."""
    library, name = _library(), source.partition("/")[2]
    _check_architecture(name.partition(".")[0])
    found = library.get_pretrained_cfg(name)
    if found is None:
        known = library.list_pretrained(f"{name.partition('.')[0]}.*")
        raise UsageError(f"timm {library.__version__} has no weights '{name}'", hint=f"It has: {', '.join(known)}.")
    return {**asdict(found), "architecture": name.partition(".")[0]}


def _check_architecture(name: str) -> None:
    library = _library()
    if not library.is_model(name):
        raise UsageError(
            f"timm {library.__version__} has no architecture '{name}'",
            hint=f"{nearest(name, library.list_models())}Correct the name, or upgrade timm.",
        )


def _created(made: Settings, **more: Any) -> nn.Module:
    """Where classes or channels of the two configurations differ, timm would replace weights without a word."""
    library = _library()
    known = {item.name for item in fields(library.models.PretrainedCfg)}
    counted = {**made.pretrained, "num_classes": made.classes, "input_size": made.input_size}
    given = {key: value for key, value in counted.items() if key in known}
    model: nn.Module = library.create_model(
        made.architecture, **{"pretrained": False, "pretrained_cfg": given, **made.arguments, **more}
    )
    return model.eval().float()


def _pretrained(made: Settings, folder: Path) -> nn.Module:
    """timm assigns the weights itself, since it knows how those of older releases are called today."""
    path = folder / "model.safetensors"
    if not path.is_file():
        raise UsageError(f"{folder} has its weights in parts, which timm does not read", hint=f"Save them as {path}.")
    try:
        model = _created(
            made, pretrained=True, pretrained_cfg_overlay={"source": "", "custom_load": False, **_weights(path)}
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise UsageError(
            f"the weights in {folder} do not fit {made.architecture}: {' '.join(str(error).split())[:300]}",
            hint="Check that config.json and the weights belong together.",
        ) from error
    _loading.check_finite(model)
    return model


def _weights(path: Path) -> dict[str, Any]:
    """The file; or its tensors by timm's names, where Transformers' wrapper saved them under `timm_model.`."""
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if not all(name.startswith(_WRAPPED) for name in names):
            return {"file": str(path)}
        return {"state_dict": {name.removeprefix(_WRAPPED): file.get_tensor(name) for name in names}}


def _logits(made: Settings) -> TensorSpec:
    return TensorSpec("logits", "float32", ("batch", made.classes))


def _features(made: Settings) -> list[TensorSpec]:
    """Shapes of what is before the head, learnt by running without memory for weights."""
    names = ("last_hidden_state", "pooler_output")
    try:
        with torch.device("meta"):
            model = TimmEncoder(_created(made), names)
        found = shapes_only(lambda: model(torch.ones(2, *made.input_size, device="meta")))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedError(
            f"{made.architecture} has no features before its head that can be taken apart: {error}",
            hint="Leave --task out, or give the model as `module:factory`.",
        ) from error
    return [TensorSpec(name, "float32", ("batch", *found[name].shape[1:])) for name in names]


def _imagenet_labels(classes: int) -> tuple[str, ...]:
    """timm's descriptions of ImageNet's classes, where the number of classes is that of one of its lists."""
    data = importlib.import_module("timm.data")
    subset = data.infer_imagenet_subset({"num_classes": classes})
    return tuple(data.ImageNetInfo(subset).label_descriptions()) if subset else ()


def _path(part: nn.Module) -> str:
    return f"{type(part).__module__}.{type(part).__name__}"


def _swin_v2(own: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Cosine attention in windows [batch · windows, positions, C]; a mask [windows, positions, positions] is added."""
    rows, positions, width = x.shape
    query, key, value = _packed(own, x).reshape(rows, positions, 3, own.num_heads, -1).permute(2, 0, 3, 1, 4)
    scale = own.logit_scale.clamp(max=_LARGEST_SCALE).exp()
    query, key = nn.functional.normalize(query, dim=-1) * scale, nn.functional.normalize(key, dim=-1)
    table = own.cpb_mlp(own.relative_coords_table).view(-1, own.num_heads)
    bias = table[own.relative_position_index.view(-1)].view(1, positions, positions, -1)
    bias = 16 * bias.permute(0, 3, 1, 2).sigmoid()
    if mask is not None:
        windows = mask.reshape(-1, positions, positions).unsqueeze(1)
        whole = (bias + windows).unsqueeze(0)
        bias = whole.expand(rows // windows.shape[0], -1, -1, -1, -1).flatten(0, 1)
    mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
    answer: Tensor = own.proj(mixed.transpose(1, 2).reshape(rows, positions, width))
    return answer


def _packed(own: Any, x: Tensor) -> Tensor:
    if own.q_bias is None:
        packed: Tensor = own.qkv(x)
        return packed
    bias = torch.cat((own.q_bias, own.k_bias, own.v_bias))
    return own.qkv(x) + bias if own.qkv_bias_separate else nn.functional.linear(x, own.qkv.weight, bias)


_BY_HAND: Mapping[str, Callable[..., Tensor]] = {"timm.models.swin_transformer_v2.WindowAttention": _swin_v2}
"""By the path of a class: attention that never calls `scaled_dot_product_attention`, written so that it does."""

FAMILY = Timm()
