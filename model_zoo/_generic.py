"""What the families share whose files hold little of their own: any encoder, vision model or causal language model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.models.auto import modeling_auto

from model_zoo import _heads, _loading, _source, _text, _vision
from model_zoo._calibration import OWN
from model_zoo._decoder import CausalFamily
from model_zoo._resolve import needs_no_files
from model_zoo._skeleton import shapes_only, skeleton
from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, Kind, ModelRequest, ModelSpec, Tensors, TensorSpec

__all__ = ["Adapt", "GenericFamily", "split_heads"]

Adapt = Callable[[PreTrainedModel], None]
"""Changes a loaded model in place, as `swap_attention` does."""

Bare = Callable[[type], PreTrainedModel]
"""The model of a class without memory for its weights."""

_LATER = (
    "Encoders, vision models and causal language models are supported; seq2seq, speech and multi-modal are to come."
)


@dataclass(frozen=True)
class GenericFamily:
    """The class is `architectures[0]`; the outputs are the tensors that the class gives, by name.

    `configs` are the configurations of the family's short names; `adapt` is called on each model; `pooling`
    says of short names that are sentence encoders what their `modules.json` says: the mode, and whether to normalise.
    `default_size` says that the model takes images of any size, as in `_vision.input_size`.
    """

    name: str
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapt: Adapt | None = None
    pooling: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    default_size: int | None = None

    def describe(self, request: ModelRequest) -> ModelSpec:
        """The spec. The class is run without weights, for shapes only, to learn its outputs."""
        config = _loading.request_config(request)
        own = _named(request.config)
        pooling = self._pooling_of(request)
        architecture = _heads.chosen(request, own, pooled=pooling is not None) or _loading.architecture(
            request.config, _encoder_of(config)
        )
        cls = _loading.find_class(
            architecture,
            source=request.source,
            config=request.config,
            trust_remote_code=request.trust_remote_code,
        )
        kind = _kind(cls, config)
        if kind == "decoder":
            return self._causal.describe(request)

        def bare(of: type) -> PreTrainedModel:
            return self._adapted(skeleton(of, config, **({} if architecture == own else _without_pooler(of))))

        if kind == "vision":
            made = _vision_spec(request, cls, config, bare, self.default_size)
        else:
            made = _text_spec(
                request, cls, config, bare, pooled=pooling is not None and request.task in ("", "embedding")
            )
        return replace(made, family=self.name)

    def load(self, spec: ModelSpec) -> nn.Module:
        """The model, wrapped so that its outputs are named as in the spec."""
        if spec.kind == "decoder":
            return self._causal.load(spec)
        values = _loading.source_config(spec, self.configs)
        config = _loading.make_config(values, source=spec.source, trust_remote_code=spec.trust_remote_code)
        cls: Any = _loading.find_class(
            spec.architecture, source=spec.source, config=values, trust_remote_code=spec.trust_remote_code
        )
        names = [item.name for item in spec.outputs]
        if spec.task == "embedding":
            return self._sentence_encoder(spec, config)
        ignore = _other_heads(cls, spec, _named(values))
        arguments = {} if "pooler_output" in names or not ignore else _without_pooler(cls)
        model = self._adapted(_loading.load(cls, spec, config, ignore=ignore, **arguments))
        return _vision.VisionEncoder(model, names) if spec.kind == "vision" else _text.TextEncoder(model, names)

    def golden(self, spec: ModelSpec) -> tuple[Tensors, ...]:
        """Photographs or passages, as the model takes them."""
        if spec.kind == "decoder":
            return self._causal.golden(spec)
        return _vision.golden(spec) if spec.kind == "vision" else _text.golden(spec, self._vocabulary(spec))

    def calibration(self, spec: ModelSpec, data: Data = OWN) -> Calibration:
        """Photographs or passages: the user's, or the shipped ones."""
        if spec.kind == "decoder":
            return self._causal.calibration(spec, data)
        if spec.kind == "vision":
            return _vision.calibration(spec, data)
        return _text.calibration(spec, data, self._vocabulary(spec))

    def evaluation(self, spec: ModelSpec, data: Data = OWN) -> Evaluation | None:
        """The user's; or retrieval over held-out passages for sentence encoders, their text for language models."""
        if spec.kind == "decoder":
            return self._causal.evaluation(spec, data)
        if spec.kind == "vision":
            return _vision.evaluation(spec, data)
        return _text.evaluation(spec, self._vocabulary(spec), data)

    def assets(self, spec: ModelSpec) -> tuple[Path, ...]:
        """What the model's folder has of tokenizer, image processor and configuration."""
        return _loading.asset_files(spec)

    def _sentence_encoder(self, spec: ModelSpec, config: Any) -> _text.SentenceEncoder:
        pooling, base = self._pooling_of(spec), _base(config)
        if pooling is None:
            raise UsageError(f"modules.json of {spec.source} is gone", hint="Resolve the model again.")
        ignore = ("",) if spec.architecture != base.__name__ else ("pooler.",)
        model = _loading.load(base, spec, config, ignore=ignore, **_without_pooler(base))
        return _text.SentenceEncoder(self._adapted(model), *pooling)

    def _pooling_of(self, model: ModelRequest | ModelSpec) -> tuple[str, bool] | None:
        if needs_no_files(model):
            return self.pooling.get(model.name)
        return _text.pooling_of(_source.files(model.source, revision=model.revision, offline=model.offline))

    @property
    def _causal(self) -> CausalFamily:
        return CausalFamily(self.name, self.configs)

    def _adapted(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.adapt is not None:
            self.adapt(model)
        return model

    def _vocabulary(self, spec: ModelSpec) -> int:
        return int(_loading.source_config(spec, self.configs).get("vocab_size", 1000))


def split_heads(states: torch.Tensor, size: int) -> torch.Tensor:
    """[batch, positions, heads · size] as [batch, heads, positions, size]."""
    return states.view(*states.shape[:-1], -1, size).transpose(1, 2)


def _kind(cls: type, config: Any) -> Kind:
    """Encoder, vision or decoder; refuses what has two sides or takes more than one kind of input."""
    name, kind = cls.__name__, config.model_type
    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    two_sided = getattr(config, "is_encoder_decoder", False) and not name.endswith("EncoderModel")
    taken = getattr(cls, "input_modalities", ())
    given = (taken,) if isinstance(taken, str) else tuple(taken)
    if not two_sided and issubclass(cls, GenerationMixin) and causal and set(given) <= {"text"}:
        return "decoder"
    if two_sided or issubclass(cls, GenerationMixin) or (causal and not masked):
        raise UnsupportedError(f"'{name}' ({kind}) is no causal language model that is known here", hint=_LATER)
    if getattr(config, "is_decoder", False):
        raise UnsupportedError(f"'{name}' ({kind}) is set up as a decoder (is_decoder)", hint=_LATER)
    main = getattr(cls, "main_input_name", "")
    if main == "pixel_values" and given == ("image",):
        return "vision"
    if main == "input_ids" and given == ("text",):
        return "encoder"
    raise UnsupportedError(f"'{name}' takes {', '.join(given) or main or 'unknown inputs'}", hint=_LATER)


def _text_spec(request: ModelRequest, cls: type, config: Any, bare: Bare, *, pooled: bool) -> ModelSpec:
    if pooled:
        task = "embedding"
        outputs = [TensorSpec("embedding", "float32", ("batch", config.hidden_size))]
        model = bare(_base(config))
    else:
        task, model = _heads.task_of(cls.__name__), bare(cls)
        outputs = _outputs(model, "input_ids", ((2, 16), (3, 24)), torch.long, ("batch", "sequence"))
    return _text.text_spec(
        request,
        family=request.name,
        task=task,
        architecture=cls.__name__,
        names=_text.input_names(config, cls),
        outputs=outputs,
        longest=_longest(model, config),
        labels=_vision.labels_of(config) if task in _heads.LABELLED else (),
    )


def _vision_spec(request: ModelRequest, cls: type, config: Any, bare: Bare, default_size: int | None) -> ModelSpec:
    size, channels = _vision.input_size(request, config, default_size), int(getattr(config, "num_channels", 3))
    pixels = [(rows, channels, *size) for rows in (2, 3)]
    task = _heads.task_of(cls.__name__)
    return _vision.vision_spec(
        request,
        family=request.name,
        task=task,
        architecture=cls.__name__,
        channels=channels,
        size=size,
        outputs=_outputs(bare(cls), "pixel_values", pixels, torch.float32, ("batch",)),
        labels=_vision.labels_of(config) if task in _heads.LABELLED else (),
    )


def _without_pooler(cls: Any) -> dict[str, Any]:
    """Arguments by which a class leaves out the layer that only its encoder's own checkpoints hold weights of."""
    takes = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    return {"add_pooling_layer": False} if takes else {}


def _other_heads(cls: Any, spec: ModelSpec, own: str) -> tuple[str, ...]:
    """Prefixes of what a checkpoint that was saved from the class `own` holds beyond what the spec's class uses.

    Checkpoints of masked language models may have kept what was trained beside that head.
    """
    if spec.architecture != own:
        return ("",)
    return (f"{cls.base_model_prefix}.pooler.", "cls.seq_relationship.") if spec.task == "fill-mask" else ()


def _outputs(
    model: PreTrainedModel, name: str, probes: Sequence[Sequence[int]], dtype: torch.dtype, axes: Sequence[str]
) -> list[TensorSpec]:
    """Run on inputs of two shapes: an output axis that follows one of the input's is named after it."""

    def run(shape: Sequence[int]) -> dict[str, Any]:
        return dict(model(**{name: torch.ones(*shape, dtype=dtype, device="meta")}).items())

    try:
        small, large = shapes_only(lambda: [run(shape) for shape in probes])
    except Exception as error:
        raise UnsupportedError(
            f"{type(model).__name__} cannot be run on {name} alone: {error}",
            hint="Of a checkpoint of pre-training, --task features exports the encoder; "
            "else wrap it in a module of your own and give that as `module:factory`.",
        ) from error
    return [
        TensorSpec(key, str(value.dtype).removeprefix("torch."), _shape(value, large[key], probes, axes))
        for key, value in small.items()
        if isinstance(value, torch.Tensor)
    ]


def _shape(
    small: torch.Tensor, large: torch.Tensor, probes: Sequence[Sequence[int]], axes: Sequence[str]
) -> tuple[int | str, ...]:
    named = {(probes[0][axis], probes[1][axis]): name for axis, name in enumerate(axes)}
    pairs = zip(small.shape, large.shape, strict=True)
    shape = tuple(a if a == b else named.get((a, b), "") for a, b in pairs)
    if "" in shape:
        raise UnsupportedError(
            f"an output has the shape {tuple(small.shape)} for an input {tuple(probes[0])}, "
            f"but {tuple(large.shape)} for {tuple(probes[1])}",
            hint="Axes of outputs must be fixed or equal the batch or the sequence.",
        )
    return shape


def _longest(model: PreTrainedModel, config: Any) -> int:
    """Positions that exist; RoBERTa and its kin lose those up to the padding index."""
    most = int(getattr(config, "max_position_embeddings", 0) or 512)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return most if module.padding_idx is None else most - module.padding_idx - 1
    return most


def _named(config: Mapping[str, Any]) -> str:
    """The class that the configuration names, or nothing: older checkpoints name none."""
    return _loading.architecture(config) if config.get("architectures") else ""


def _encoder_of(config: Any) -> str:
    """The class without a head, where the model type is that of an encoder: as Transformers' `AutoModel` takes it."""
    headless = modeling_auto.MODEL_MAPPING_NAMES.get(config.model_type, "")
    causal = config.model_type in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    masked = config.model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return str(headless) if isinstance(headless, str) and (masked or not causal) else ""


def _base(config: Any) -> Any:
    return transformers.MODEL_MAPPING[type(config)]
