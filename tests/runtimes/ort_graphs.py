"""Tiny graphs for the ONNX Runtime tests, written as ONNX text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from exporters.fused_attention.function import attach_function
from toolkit.hashing import data_path, graph_sha256
from toolkit.types import Dim, ModelSpec, QuantizedGraph, TensorSpec

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


def written(model: ir.Model, folder: Path, scheme: str = "fp32") -> QuantizedGraph:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "canonical.onnx"
    ir.save(model, path, external_data=data_path(path).name)
    return QuantizedGraph(path, graph_sha256(path), spec_of(model), scheme=scheme)


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
