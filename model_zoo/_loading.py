"""Weights into a Transformers model: fp32, eager attention, and every weight accounted for."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging

from model_zoo import _gguf, _source
from model_zoo._resolve import needs_no_files
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.plugins import nearest
from toolkit.types import ModelRequest, ModelSpec

__all__ = [
    "architecture", "asset_files", "check_files", "check_finite", "find_class", "load", "make_config", "model_folder",
    "request_config", "source_config",
]  # fmt: skip

_PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt", "pytorch_model.bin.index.json")
_BUFFERS = re.compile(r"(^|\.)position_ids$|num_batches_tracked$")
_ASSETS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
    "chat_template.jinja", "preprocessor_config.json", "generation_config.json", "config.json",
)  # fmt: skip


def architecture(config: Mapping[str, Any], default: str = "") -> str:
    """The class that the configuration names. Raises UsageError when it names none."""
    named = config.get("architectures") or ([default] if default else [])
    if not named:
        raise UsageError(
            "config.json names no architecture",
            hint='Add "architectures": ["<class of transformers>"] to it, as `save_pretrained` does.',
        )
    return str(named[0])


def find_class(name: str, *, source: str, config: Mapping[str, Any], trust_remote_code: bool) -> type:
    """The model class: from transformers, or from the model's own code when that is trusted."""
    found = getattr(transformers, name, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    remote = [value for value in (config.get("auto_map") or {}).values() if str(value).endswith(f".{name}")]
    if not remote:
        raise UnsupportedError(
            f"transformers {transformers.__version__} has no model class '{name}'",
            hint="Upgrade transformers, or give your own module as `module:factory`.",
        )
    if not trust_remote_code:
        raise _untrusted(f"'{name}'")
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    cls: type = get_class_from_dynamic_module(str(remote[0]), source)
    return cls


def model_folder(spec: ModelSpec, *, weights: bool = False) -> Path | None:
    """The folder of the model's files; None for random weights of a short name, which needs no files."""
    if needs_no_files(spec):
        return None
    return _source.files(spec.source, revision=spec.revision, offline=spec.offline, weights=weights)


def source_config(spec: ModelSpec, literals: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """The `config.json` the spec was made from, or the family's literal for random weights of a short name."""
    folder = model_folder(spec)
    if folder is None:
        return literals[spec.name]
    return _source.read_json(folder / "config.json")


def make_config(values: Mapping[str, Any], *, source: str = "", trust_remote_code: bool = False) -> Any:
    """The configuration object. Raises UsageError when transformers does not know it or refuses a value."""
    kind = values.get("model_type")
    if kind is None:
        raise UsageError("config.json has no model_type", hint="Save it with `save_pretrained`, which writes one.")
    known = kind in transformers.CONFIG_MAPPING
    own = not known and bool(values.get("auto_map"))
    if own and not trust_remote_code:
        raise _untrusted(f"model_type '{kind}'")
    if not known and not own:
        raise UsageError(
            f"transformers {transformers.__version__} has no model_type '{kind}'",
            hint=f"{nearest(str(kind), transformers.CONFIG_MAPPING)}Upgrade transformers, or correct config.json.",
        )
    try:
        if own:
            return AutoConfig.from_pretrained(source, trust_remote_code=True)
        return transformers.CONFIG_MAPPING[kind].from_dict(dict(values))
    except Exception as error:
        raise UsageError(
            f"transformers {transformers.__version__} does not take this config.json (model_type '{kind}'): "
            f"{_line(error)}",
            hint="Upgrade transformers, or correct the file.",
        ) from error


def load(cls: type, spec: ModelSpec, config: Any, *, ignore: Collection[str] = (), **arguments: Any) -> PreTrainedModel:
    """The model of class `cls` in eval mode, fp32, eager attention.

    Random weights are seeded with `spec.seed`. Pretrained ones come from safetensors, or from a GGUF file tensor by
    tensor; `ignore` lists prefixes of weights that the checkpoint may hold beyond what is used here. Raises UsageError
    for a missing or superfluous weight, a NaN, a broken file or a pickle.
    """
    if spec.weights == "random":
        return _random(cls, spec.seed, config, arguments)
    if _gguf.is_gguf(spec.source):
        return _from_gguf(cls, Path(spec.source), config, ignore, arguments)
    folder = model_folder(spec, weights=True)
    if folder is None:
        raise StageError("resolve", f"no files for {spec.source}")
    check_files(folder, spec)
    model, info = _pretrained(cls, spec, folder, config, arguments)
    _account(folder, info, ignore)
    check_finite(model)
    return model


def asset_files(spec: ModelSpec) -> tuple[Path, ...]:
    """The tokenizer, image-processor and configuration files that the model's folder has."""
    folder = model_folder(spec)
    if folder is None:
        return ()
    return tuple(folder / name for name in _ASSETS if (folder / name).is_file())


def check_files(folder: Path, spec: ModelSpec) -> None:
    """Open the header of every weight file. Raises UsageError for a pickle, a missing shard or a broken file."""
    paths = _weight_files(folder, spec)
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except (SafetensorError, OSError) as error:
            raise UsageError(
                f"{path} is not a whole safetensors file: {_line(error)}", hint="Download or save it again."
            ) from error


def _weight_files(folder: Path, spec: ModelSpec) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return _shards(index)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UsageError(
            f"{folder / pickles[0]} is a pickle checkpoint, which can run any code when opened",
            hint="Where you trust it, load it in Python and call `model.save_pretrained(folder)`: "
            "that writes model.safetensors.",
        )
    if not _source.is_local(spec.source):
        raise UsageError(f"'{spec.source}' has no weights in safetensors on the Hub", hint=_saving(spec))
    raise UsageError(
        f"{folder} has no weights (model.safetensors)",
        hint="Save them there, or pass `--weights random` to export without them.",
    )


def _saving(spec: ModelSpec) -> str:
    """How to turn a repository that has only a pickle into a folder with safetensors."""
    reader = "AutoImageProcessor" if spec.kind == "vision" else "AutoTokenizer"
    saved = "; ".join(
        f"transformers.{name}.from_pretrained('{spec.source}').save_pretrained('{spec.name}')"
        for name in (spec.architecture, reader)
    )
    return (
        "It may have a pickle. Where you trust it, save it anew (transformers reads tensors from a pickle and runs "
        f'nothing in it): python -c "import transformers; {saved}", then give --model ./{spec.name}. '
        "Or pass `--weights random` to export without weights."
    )


def _shards(index: Path) -> list[Path]:
    mapping = _source.read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise UsageError(f"{index} has no weight_map", hint="Download or save the model again.")
    paths = [index.parent / name for name in sorted(set(mapping.values()))]
    for path in paths:
        if path.parent != index.parent or not path.is_file():
            raise UsageError(f"{index} names {path.name}, which is not there", hint="Download the model again.")
    return paths


def _random(cls: type, seed: int, config: Any, arguments: Mapping[str, Any]) -> PreTrainedModel:
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = cls(config, **arguments)
    return model.eval().float()


def _pretrained(
    cls: Any, spec: ModelSpec, folder: Path, config: Any, arguments: Mapping[str, Any]
) -> tuple[PreTrainedModel, Mapping[str, Any]]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = cls.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=spec.trust_remote_code,
            **arguments,
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise UsageError(
            f"the weights in {folder} do not fit {cls.__name__}: {_line(error)}",
            hint="Check that config.json and the weights belong together.",
        ) from error
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
    return model.eval(), info


def _from_gguf(
    cls: Any, path: Path, config: Any, ignore: Collection[str], arguments: Mapping[str, Any]
) -> PreTrainedModel:
    """Parameters are allocated empty and decoded into, so that the weights are in memory once."""
    config._attn_implementation = "eager"
    with no_init_weights():
        model: PreTrainedModel = cls(config, **arguments).float()
    model.tie_weights()
    info = _gguf.read_into(path, dict(model.named_parameters()), f"{model.base_model_prefix}.")
    _account(path, info, ignore)
    check_finite(model)
    return model.eval()


def _account(folder: Path, info: Mapping[str, Any], ignore: Collection[str]) -> None:
    wrong = [f"{name} {list(stored)} for {list(wanted)}" for name, stored, wanted in sorted(info["mismatched_keys"])]
    if wrong:
        raise UsageError(
            f"{folder} has {len(wrong)} weights of another shape than config.json says: {_some(wrong)}",
            hint="Check that config.json and the weights belong together.",
        )
    missing = sorted(key for key in info["missing_keys"] if not _BUFFERS.search(key))
    if missing:
        raise UsageError(
            f"{folder} lacks {len(missing)} of the model's weights: {_some(missing)}",
            hint="They would be random. Save the whole model, or set the architecture it was saved from.",
        )
    extra = sorted(
        key
        for key in info["unexpected_keys"]
        if not _BUFFERS.search(key) and not any(key.startswith(prefix) for prefix in ignore)
    )
    if extra:
        raise UsageError(
            f"{folder} has {len(extra)} weights that its architecture does not use: {_some(extra)}",
            hint="Check that `architectures` in config.json names the class it was saved from.",
        )


def check_finite(model: nn.Module) -> None:
    """Refuse NaN and Inf by name. The extremes need no copy of the tensor, unlike an elementwise test."""
    for name, tensor in model.named_parameters():
        low, high = torch.aminmax(tensor.detach()) if tensor.numel() else (torch.zeros(()),) * 2
        if not (math.isfinite(low.item()) and math.isfinite(high.item())):
            raise UsageError(
                f"weight '{name}' holds NaN or infinity",
                hint="The checkpoint is damaged or was saved after training diverged.",
            )


def _untrusted(what: str) -> UsageError:
    return UsageError(f"{what} is code that comes with the model", hint="Read it, then pass --trust-remote-code.")


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def request_config(request: ModelRequest) -> Any:
    """The configuration object of a request."""
    return make_config(request.config, source=request.source, trust_remote_code=request.trust_remote_code)
