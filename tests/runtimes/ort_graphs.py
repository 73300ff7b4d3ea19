"""Tiny graphs for the ONNX Runtime tests, written as ONNX text."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from scipy.special import erf

from exporters.fused_attention.function import attach_function
from runtimes._onnxruntime.kernels import build
from toolkit.hashing import data_path
from toolkit.types import DecoderSpec, Dim, Engine, ModelSpec, QuantizedGraph, Runtime, TensorSpec

DTYPES = {"float": "float32", "float16": "float16", "bool": "bool", "int64": "int64"}


def spec_of(model: ir.Model) -> ModelSpec:
    inputs = tuple(
        TensorSpec(
            value.name, value.dtype.numpy().name, tuple(d if isinstance(d, int) else d.value for d in value.shape)
        )
        for value in model.graph.inputs
    )
    names = {dim for tensor in inputs for dim in tensor.shape if isinstance(dim, str)}
    dims = {name: Dim(1, 2, 4) for name in names}
    return ModelSpec("tiny", "tiny", "module", "raw", "m:f", "Tiny", inputs, (), dims)


def opened(model: ir.Model, library: Path | None = None, threads: int = 1) -> ort.InferenceSession:
    """The model on the CPU, its own operators from `library` or else from the functions in it."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    if library is not None:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def activated(y: np.ndarray, name: str) -> np.ndarray:
    """An activation of our own Linears in float64; y itself where there is none."""
    bent = np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)
    forms = {
        "Relu": lambda: np.maximum(y, 0),
        "Gelu": lambda: y * 0.5 * (1 + erf(y / np.sqrt(2))),
        "GeluTanh": lambda: y * 0.5 * (1 + np.tanh(bent)),
        "QuickGelu": lambda: y / (1 + np.exp(-1.702 * y)),
    }
    return forms[name]() if name else y


def written(model: ir.Model, folder: Path, scheme: str = "fp32") -> QuantizedGraph:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "canonical.onnx"
    ir.save(model, path, external_data=data_path(path).name)
    return QuantizedGraph(path, spec_of(model), scheme=scheme)


def in_every_form(
    runtime: Runtime, engine: Engine, feeds: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, np.ndarray]]:
    """What an engine answers without our kernels, with their plain form and with their fastest."""
    answers = []
    for switch in ("0", "portable", ""):
        monkeypatch.setenv(build.SWITCH, switch)
        session = runtime.session(engine.graph.path.parent, {"graph": engine.graph.path.name, **engine.details})
        answers.append(session.run(feeds))
        session.close()
    return answers


@dataclass(frozen=True)
class Case:
    """One attention: what its node says and what it is fed."""

    heads: int = 4
    kv_heads: int = 4
    size: int = 8
    value_size: int = 8
    queries: int = 5
    keys: int = 5
    batch: int = 2
    mask: str = "none"
    causal: int = 0
    softcap: float = 0.0
    left: int = -1
    right: int = -1
    alibi: bool = False
    flat: bool = True
    layers: int = 1
    opset: int = 23
    dtype: str = "float"

    @property
    def mask_shape(self) -> tuple[int | str, ...]:
        return {
            "padding": ("batch", 1, 1, "keys"),
            "rows": ("batch", 1, "queries", "keys"),
            "float": ("batch", self.heads, "queries", "keys"),
            "float-padding": ("batch", 1, 1, "keys"),
            "float-2d": ("queries", "keys"),
            "heads-3d": (self.heads, "queries", "keys"),
            "empty-row": ("batch", 1, "queries", "keys"),
        }[self.mask]

    def text(self) -> str:
        shapes = (
            (self.heads, self.size, "queries"),
            (self.kv_heads, self.size, "keys"),
            (self.kv_heads, self.value_size, "keys"),
        )
        kind = self.dtype if self.mask.startswith("float") else "bool"
        inputs, infos, body = [], [], []
        for name, (heads, size, length) in zip("qkv", shapes, strict=True):
            if self.flat:
                inputs.append(f"{self.dtype}[batch, {length}, {heads * size}] {name}")
                body.append(f"{name}4 = Reshape({name}, {name}_sizes)\n{name}t = Transpose<perm=[0, 2, 1, 3]>({name}4)")
                infos.append(f"int64[4] {name}_sizes = {{0, 0, {heads}, {size}}}")
                infos.append(f"{self.dtype}[batch, {length}, {heads}, {size}] {name}4")
                infos.append(f"{self.dtype}[batch, {heads}, {length}, {size}] {name}t")
            else:
                inputs.append(f"{self.dtype}[batch, {heads}, {length}, {size}] {name}t")
        if self.mask != "none":
            inputs.append(f"{kind}[{', '.join(map(str, self.mask_shape))}] mask")
        if self.alibi:
            infos.append(f"{self.dtype}[{self.heads}] slopes = {{{', '.join(self._slopes())}}}")
        extra = (", mask" if self.mask != "none" else (', ""' if self.alibi else "")) + (
            ", slopes" if self.alibi else ""
        )
        attributes = f"scale = 0.3, is_causal = {self.causal}, softcap = {float(self.softcap)}, "
        attributes += f"left_window_size = {self.left}, right_window_size = {self.right}"
        outputs = []
        for layer in range(self.layers):
            body.append(f"a{layer} = toolkit.FusedAttention<{attributes}>(qt, kt, vt{extra})")
            infos.append(f"{self.dtype}[batch, {self.heads}, queries, {self.value_size}] a{layer}")
            if not self.flat:
                body.append(f"y{layer} = Identity(a{layer})")
                outputs.append(f"{self.dtype}[batch, {self.heads}, queries, {self.value_size}] y{layer}")
                continue
            width = self.heads * self.value_size
            body.append(f"m{layer} = Transpose<perm=[0, 2, 1, 3]>(a{layer})\ny{layer} = Reshape(m{layer}, joined)")
            infos.append(f"{self.dtype}[batch, queries, {self.heads}, {self.value_size}] m{layer}")
            outputs.append(f"{self.dtype}[batch, queries, {width}] y{layer}")
        if self.flat:
            infos.append(f"int64[3] joined = {{0, 0, {self.heads * self.value_size}}}")
        body_text = "\n".join(body)
        return (
            f'<ir_version: 10, opset_import: ["" : {self.opset}, "toolkit" : 1]>\n'
            f"tiny ({', '.join(inputs)}) => ({', '.join(outputs)})\n<{', '.join(infos)}>\n{{\n{body_text}\n}}"
        )

    def _slopes(self) -> list[str]:
        slopes = [2.0**-i for i in range(self.heads)]
        # ONNX text writes a half-precision number as the integer of its bits.
        return [str(x if self.dtype == "float" else np.float16(x).view(np.uint16)) for x in slopes]

    def model(self) -> ir.Model:
        model = ir.from_proto(onnx.parser.parse_model(self.text()))
        attach_function(model)
        return model

    def feeds(self, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        dtype = np.dtype(DTYPES[self.dtype])
        feeds = {}
        shapes = (
            (self.heads, self.size, self.queries),
            (self.kv_heads, self.size, self.keys),
            (self.kv_heads, self.value_size, self.keys),
        )
        for name, (heads, size, length) in zip("qkv", shapes, strict=True):
            shape = (self.batch, length, heads * size) if self.flat else (self.batch, heads, length, size)
            feeds[name if self.flat else f"{name}t"] = rng.standard_normal(shape).astype(dtype)
        if self.mask != "none":
            sizes = {"batch": self.batch, "queries": self.queries, "keys": self.keys}
            shape = tuple(sizes.get(dim, dim) for dim in self.mask_shape)
            feeds["mask"] = self._mask(rng, shape, dtype)
        return feeds

    def _mask(self, rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if self.mask.startswith("float"):
            return rng.standard_normal(shape).astype(dtype)
        mask = rng.random(shape) > 0.4
        if self.mask == "empty-row":
            mask[0, 0, 0] = False
        return mask


@dataclass(frozen=True)
class CachedCase:
    """Layers of attention with a cache, as a decoder's canonical graph has them; rows come in ready [B, S, H·D].

    `rotary` is `none`, `whole`, `partial`, `interleaved`, `stretched` (angles depend on the longest position) or
    `query` (the key does not rotate). `mask` is `padding`, `none` or `foreign` (not made of attention_mask alone).
    """

    heads: int = 4
    kv_heads: int = 2
    size: int = 16
    left: int = -1
    softcap: float = 0.0
    alibi: bool = False
    causal: int = 1
    rotary: str = "none"
    mask: str = "padding"
    layers: int = 2

    def model(self) -> ir.Model:
        model = ir.from_proto(onnx.parser.parse_model(self._text()))
        names = {value.name: value for value in model.graph.inputs}
        names |= {value.name: value for node in model.graph for value in node.outputs}
        for layer in range(self.layers):
            for short, long in (("k", "key"), ("v", "value")):
                names[f"past{layer}{short}"].name = f"past_key_values.{layer}.{long}"
                names[f"present{layer}{short}"].name = f"present.{layer}.{long}"
        attach_function(model)
        return model

    def quantized(self, folder: Path) -> QuantizedGraph:
        graph = written(self.model(), folder)
        return replace(graph, spec=decoder_spec(graph.spec, self.layers, 1))

    def _text(self) -> str:
        hq, hk, d = self.heads, self.kv_heads, self.size
        inputs = ["int64[batch, total_sequence] attention_mask", "int64[batch, sequence] position_ids"]
        outputs, body = [], ["real = Cast<to=9>(attention_mask)", "row = Unsqueeze(real, middle)"]
        infos = ["int64[2] middle = {1, 2}", "int64[1] last = {2}", "bool[batch, 1, 1, total_sequence] row"]
        infos += [f"int64[4] split_q = {{0, 0, {hq}, {d}}}", f"int64[4] split_k = {{0, 0, {hk}, {d}}}"]
        infos += [f"int64[3] joined = {{0, 0, {hq * d}}}"]
        if self.alibi:
            infos.append(f"float[{hq}] slopes = {{{', '.join(str(2.0**-i) for i in range(hq))}}}")
        if self.mask == "foreign":
            inputs.append("bool[batch, 1, 1, total_sequence] other")
            body.append("seen = And(row, other)")
            infos.append("bool[batch, 1, 1, total_sequence] seen")
        if self.rotary != "none":
            self._angles(body, infos)
        for n in range(self.layers):
            for name, heads in (("q", hq), ("k", hk), ("v", hk)):
                inputs.append(f"float[batch, sequence, {heads * d}] {name}{n}")
                split = "split_q" if name == "q" else "split_k"
                body.append(f"{name}{n}s = Reshape({name}{n}, {split})")
                body.append(f"{name}{n}h = Transpose<perm=[0, 2, 1, 3]>({name}{n}s)")
                infos.append(f"float[batch, sequence, {heads}, {d}] {name}{n}s")
                infos.append(f"float[batch, {heads}, sequence, {d}] {name}{n}h")
            for part in "kv":
                inputs.append(f"float[batch, {hk}, past_sequence, {d}] past{n}{part}")
                outputs.append(f"float[batch, {hk}, total_sequence, {d}] present{n}{part}")
            query = self._rotated(f"q{n}h", hq, body, infos)
            key = self._rotated(f"k{n}h", hk, body, infos) if self.rotary != "query" else f"k{n}h"
            mask = {"padding": "row", "none": '""', "foreign": "seen"}[self.mask]
            slopes = "slopes" if self.alibi else '""'
            attributes = f"scale = 0.3, is_causal = {self.causal}, softcap = {float(self.softcap)}, "
            attributes += f"left_window_size = {self.left}, right_window_size = -1"
            body.append(
                f"a{n}, present{n}k, present{n}v = toolkit.FusedAttention<{attributes}>"
                f"({query}, {key}, v{n}h, {mask}, {slopes}, past{n}k, past{n}v)"
            )
            body.append(f"m{n} = Transpose<perm=[0, 2, 1, 3]>(a{n})\ny{n} = Reshape(m{n}, joined)")
            infos += [f"float[batch, {hq}, sequence, {d}] a{n}", f"float[batch, sequence, {hq}, {d}] m{n}"]
            outputs.append(f"float[batch, sequence, {hq * d}] y{n}")
        text = "\n".join(body)
        return (
            f'<ir_version: 10, opset_import: ["" : 23, "toolkit" : 1]>\n'
            f"tiny ({', '.join(inputs)}) => ({', '.join(outputs)})\n<{', '.join(infos)}>\n{{\n{text}\n}}"
        )

    @property
    def _width(self) -> int:
        return self.size // 2 if self.rotary == "partial" else self.size

    def _angles(self, body: list[str], infos: list[str]) -> None:
        half = self._width // 2
        infos.append(f"float[{half}] speeds = {{{', '.join(str(10.0**-i) for i in range(half))}}}")
        body.append("column = Unsqueeze(position_ids, last)\nplaces = Cast<to=1>(column)")
        if self.rotary == "stretched":
            body.append("far = ReduceMax<keepdims=0>(places)\nplain = Mul(places, speeds)\nangles = Div(plain, far)")
        else:
            body.append("angles = Mul(places, speeds)")
        body.append("cosines = Cos(angles)\nsines = Sin(angles)")

    def _rotated(self, name: str, heads: int, body: list[str], infos: list[str]) -> str:
        if self.rotary == "none":
            return name
        attributes = f"<interleaved = {int(self.rotary == 'interleaved')}, num_heads = {heads}>"
        turned = f"{name}r"
        infos.append(f"float[batch, {heads}, sequence, {self.size}] {turned}")
        if self.rotary != "partial":
            body.append(f"{turned} = RotaryEmbedding{attributes}({name}, cosines, sines)")
            return turned
        w = self._width
        infos += [f"int64[1] {name}z = {{0}}", f"int64[1] {name}w = {{{w}}}", f"int64[1] {name}e = {{{2**63 - 1}}}"]
        infos += [f"int64[1] {name}x = {{3}}", f"float[batch, {heads}, sequence, {w}] {name}a"]
        infos += [f"float[batch, {heads}, sequence, {w}] {name}b"]
        body.append(
            f"{name}a = Slice({name}, {name}z, {name}w, {name}x)\n{name}c = Slice({name}, {name}w, {name}e, {name}x)"
        )
        body.append(f"{name}b = RotaryEmbedding{attributes}({name}a, cosines, sines)")
        body.append(f"{turned} = Concat<axis=-1>({name}b, {name}c)")
        return turned


def decoder_spec(
    spec: ModelSpec, layers: int, vocabulary: int, *, positions: int = 64, last: bool = False
) -> ModelSpec:
    """The spec as that of a language model with so many positions."""
    sizes = {"batch": Dim(1, 1, 4), "sequence": Dim(1, 8, positions), "past_sequence": Dim(0, 8, positions)}
    sizes["total_sequence"] = Dim(1, 16, positions)
    decoder = DecoderSpec(layers, vocabulary, positions, last_logits=last)
    return replace(spec, kind="decoder", task="text-generation", dims=sizes, decoder=decoder)


def decoder_feeds(spec: ModelSpec, rows: int, steps: int, past: int, lengths: list[int] | None = None, seed: int = 0):
    """Random inputs; row r's first `lengths[r]` new tokens are real, and all of the past."""
    rng = np.random.default_rng(seed)
    sizes = {"batch": rows, "sequence": steps, "past_sequence": past, "total_sequence": past + steps}
    real = np.arange(steps) < np.array(lengths or [steps] * rows)[:, None]
    feeds = {}
    for tensor in spec.inputs:
        shape = [sizes.get(dim, dim) for dim in tensor.shape]
        if tensor.name == "attention_mask":
            feeds[tensor.name] = np.concatenate([np.ones((rows, past), bool), real], axis=1).astype(np.int64)
        elif tensor.name == "position_ids":
            feeds[tensor.name] = np.tile(np.arange(past, past + steps), (rows, 1))
        elif tensor.name == "input_ids":
            feeds[tensor.name] = rng.integers(0, spec.decoder.vocabulary, shape)
        elif tensor.dtype == "bool":
            feeds[tensor.name] = np.ones(shape, bool)
        else:
            feeds[tensor.name] = rng.standard_normal(shape).astype(tensor.dtype)
    return feeds


def exported_decoder(kind: str, folder: Path, *, last: bool = False, **config: object) -> QuantizedGraph:
    """The canonical graph of a tiny random Transformers model: 2 layers, 4 heads of 16, 97 tokens, 64 positions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from exporters.decoder import CausalLM, past_names, present_names
    from exporters.torch_export import export

    sizes = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    settings = AutoConfig.for_model(kind, **{**sizes, **config})
    module = AutoModelForCausalLM.from_config(settings, attn_implementation="eager").eval()
    heads = getattr(settings, "num_key_value_heads", None) or settings.num_attention_heads
    cache = ("batch", heads, "past_sequence", settings.hidden_size // settings.num_attention_heads)
    inputs = [TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "position_ids")]
    inputs.insert(1, TensorSpec("attention_mask", "int64", ("batch", "total_sequence")))
    inputs += [TensorSpec(name, "float32", cache) for name in past_names(2)]
    present = (*cache[:2], "total_sequence", cache[3])
    outputs = [TensorSpec("logits", "float32", ("batch", 1 if last else "sequence", 97))]
    outputs += [TensorSpec(name, "float32", present) for name in present_names(2)]
    spec = ModelSpec(kind, kind, "decoder", "text-generation", "m:f", kind, tuple(inputs), tuple(outputs), {})
    spec = decoder_spec(spec, 2, 97, last=last)
    wrapped = CausalLM(module, 2, last_logits=last).eval()
    graph = export(wrapped, spec, decoder_feeds(spec, 2, 5, 7), folder)
    return QuantizedGraph(graph.path, graph.spec, graph.steps)
