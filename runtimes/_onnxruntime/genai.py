"""What onnxruntime-genai needs to drive a lowered language model: `genai_config.json` beside the graph.

Every API of that library (Python, C, C++, C#, Java, Objective-C) opens the folder that holds this file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from runtimes._onnxruntime import marks
from toolkit.cache_names import is_past
from toolkit.types import DecoderSpec, ModelSpec, TensorSpec

__all__ = ["GENAI_CONFIG", "GenaiFiles", "genai_config", "genai_refusal", "write_genai"]

GENAI_CONFIG = "genai_config.json"
_TYPE = "decoder"
"""The library's model type for any causal language model with named caches; the others only select quirks of theirs."""
_FED = ("input_ids", "attention_mask", "position_ids")
_ATTENTION = "GroupQueryAttention"
_DOMAINS = frozenset({"", "com.microsoft"})


@dataclass(frozen=True, slots=True)
class GenaiFiles:
    """What was written, relative to the graph's folder; where that is nothing, `reason` says why."""

    files: tuple[Path, ...] = ()
    reason: str = ""


def write_genai(folder: Path, spec: ModelSpec, graph_path: Path) -> GenaiFiles:
    """Write `genai_config.json` into `folder`, where the graph lies, unless the library could not drive the graph.

    The file appears whole or not at all. Tokenizer files have to lie beside it: `toolkit.bundle.write` sees to that.
    """
    model = ir.load(graph_path)
    reason = genai_refusal(spec, model)
    if reason or spec.decoder is None:
        return GenaiFiles(reason=reason)
    path = folder / GENAI_CONFIG
    text = json.dumps(genai_config(spec, spec.decoder, graph_path.name, model), indent=2) + "\n"
    unfinished = path.with_name(f".{path.name}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
    return GenaiFiles((Path(path.name),))


def genai_refusal(spec: ModelSpec, model: ir.Model) -> str:
    """Why onnxruntime-genai cannot drive the graph, or nothing."""
    if spec.decoder is None:
        return f"it is a model of kind {spec.kind}, not a language model"
    own = {function.domain for function in model.functions.values()} | _DOMAINS
    foreign = sorted({node.domain for node in model.graph} - own)
    if foreign:
        return f"it has operators of {', '.join(foreign)}, which are not ONNX Runtime's own"
    names = {str(value.name) for value in model.graph.inputs}
    caches = _caches(spec.inputs)
    unknown = sorted(names - {*_FED, *(cache.name for cache in caches)})
    if unknown:
        return f"nothing feeds its inputs {', '.join(unknown)}"
    if len({cache.shape for cache in caches}) != 1 or len(caches) != 2 * spec.decoder.layers:
        return "its caches are not of one shape in every layer"
    return ""


def genai_config(spec: ModelSpec, decoder: DecoderSpec, graph_file: str, model: ir.Model) -> dict[str, Any]:
    """The content of `genai_config.json` for a graph that `genai_refusal` finds no fault with.

    Generation is greedy by default, as in `toolkit run`, and `max_length` is the whole context: whoever generates less
    sets it lower, for a shared cache is allocated for that many positions. Threads are left to the library.
    """
    context = _context(spec, decoder, model.metadata_props)
    shared = marks.IN_PLACE in model.metadata_props
    return {
        "model": {
            "type": _TYPE,
            "context_length": context,
            "vocab_size": decoder.vocabulary,
            **_special_tokens(decoder),
            "decoder": {
                "filename": graph_file,
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                **_sizes(spec, decoder, model),
                "inputs": _inputs(model),
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": False,
            "max_length": context,
            "num_beams": 1,
            "past_present_share_buffer": shared,
            "repetition_penalty": 1.0,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
        },
    }


def _context(spec: ModelSpec, decoder: DecoderSpec, metadata: Mapping[str, str]) -> int:
    """The most positions: of the model, of the export, and of the rotary tables in the graph."""
    total, held = spec.dims.get("total_sequence"), metadata.get(marks.POSITIONS)
    limits = [decoder.context, *([total.max] if total else []), *([int(held)] if held else [])]
    return min(limits)


def _special_tokens(decoder: DecoderSpec) -> dict[str, Any]:
    """Without a token for padding the end of text serves, as it does in Transformers."""
    pad = decoder.pad if decoder.pad is not None else next(iter(decoder.eos), 0)
    found: dict[str, Any] = {"pad_token_id": pad}
    if decoder.bos is not None:
        found["bos_token_id"] = decoder.bos
    if decoder.eos:
        found["eos_token_id"] = list(decoder.eos) if len(decoder.eos) > 1 else decoder.eos[0]
    return found


def _sizes(spec: ModelSpec, decoder: DecoderSpec, model: ir.Model) -> dict[str, int]:
    """The library goes by the cache's sizes; query heads and hidden size are there for readers, if the graph tells."""
    _, heads, _, size = _caches(spec.inputs)[0].shape
    found = {"num_hidden_layers": decoder.layers, "num_key_value_heads": int(heads), "head_size": int(size)}
    attention = next((node for node in model.graph if node.op_type == _ATTENTION), None)
    if attention is not None:
        found["num_attention_heads"] = attention.attributes.get_int("num_heads", 0)
    hidden = _embedding_width(model)
    return found | ({"hidden_size": hidden} if hidden else {})


def _embedding_width(model: ir.Model) -> int | None:
    """The last dimension of what is looked up for `input_ids`, where shapes were inferred."""
    tokens = next((value for value in model.graph.inputs if value.name == _FED[0]), None)
    lookups = [node for node in tokens.consumers() if "Gather" in node.op_type] if tokens is not None else []
    shapes = [node.outputs[0].shape for node in lookups]
    widths = [shape[-1] for shape in shapes if shape is not None and len(shape) == 3]
    return next((width for width in widths if isinstance(width, int)), None)


def _inputs(model: ir.Model) -> dict[str, str]:
    names = {value.name for value in model.graph.inputs}
    patterns = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    return {name: name for name in _FED if name in names} | patterns


def _caches(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    return [item for item in inputs if is_past(item.name)]
