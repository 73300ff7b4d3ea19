"""What runs the device side of TensorRT sessions without a device: host memory, and a graph on ONNX Runtime in place.

Addresses are real, so that a buffer too small, freed or bound to the wrong tensor shows in the numbers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
from onnx import numpy_helper

from runtimes._onnxruntime.feeds import spec_of
from runtimes._tensorrt.profile_choice import Ranges, Shape, choose_profile
from toolkit.errors import StageError
from toolkit.types import DeviceMemory

LAYERS, VOCABULARY, HEADS, SIZE, CONTEXT = 1, 29, 2, 4, 64


class HostMemory:
    """Memory of numpy arrays behind plain addresses; more than `most` bytes are refused as a full device would."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.held: dict[int, np.ndarray] = {}
        self.most, self.allocations, self.copied = most, 0, 0

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in self.held.values())

    def allocate(self, size: int) -> int:
        if self.bytes + size > self.most:
            raise StageError("run", "cudaMalloc answered cudaErrorMemoryAllocation: out of memory")
        array = np.full(size, 0xFF, np.uint8)
        self.allocations += 1
        self.held[array.ctypes.data] = array
        return array.ctypes.data

    def free(self, address: int) -> None:
        del self.held[address]

    allocate_pinned, free_pinned = allocate, free

    def copy(self, target: int, source: int, size: int) -> None:
        self._check(target, size)
        self._check(source, size)
        self.copied += size
        ctypes.memmove(target, source, size)

    def copy_rows(
        self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int
    ) -> None:
        for row in range(height):
            self.copy(target + row * target_pitch, source + row * source_pitch, width)

    def clear(self, address: int, size: int) -> None:
        self._check(address, size)
        ctypes.memset(address, 0, size)

    def synchronize(self) -> None: ...

    def _check(self, address: int, size: int) -> None:
        assert any(start <= address and address + size <= start + a.nbytes for start, a in self.held.items())


class HostProgram:
    """A graph as a `Program`: ONNX Runtime reads and writes at the addresses that are bound."""

    ran_on = "onnxruntime on host memory"

    def __init__(self, path: Path, profiles: tuple[Ranges, ...] = (), most: int = 1 << 30) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.inputs = tuple(spec_of(item) for item in self.session.get_inputs())
        self.outputs = tuple(spec_of(item) for item in self.session.get_outputs())
        self.aliases = aliases_of(path)
        self.memory = HostMemory(most)
        self.profiles, self.chosen = profiles, list[int]()
        self.addresses: dict[str, int] = {}
        self.runs, self.closed, self.fails = 0, False, False

    def shape(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        if self.profiles:
            self.chosen.append(choose_profile(self.profiles, shapes))
        self.shapes = dict(shapes)
        sizes = {d: n for s in self.inputs for d, n in zip(s.shape, shapes[s.name], strict=True) if isinstance(d, str)}
        return {s.name: tuple(sizes[d] if isinstance(d, str) else d for d in s.shape) for s in self.outputs}

    def bind(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def enqueue(self) -> None:
        if self.fails:
            raise StageError("run", "the engine did not run: it was told to fail")
        assert all(self.addresses[one] == self.addresses[other] for one, other in self.aliases.items())
        self.runs += 1
        binding = self.session.io_binding()
        shapes = self.shapes | self.shape(self.shapes)
        for bind, specs in ((binding.bind_input, self.inputs), (binding.bind_output, self.outputs)):
            for spec in specs:
                dtype = np.dtype(spec.dtype)
                size = dtype.itemsize * int(np.prod(shapes[spec.name]))
                self.memory._check(self.addresses[spec.name], size)
                bind(spec.name, "cpu", 0, dtype.type, shapes[spec.name], self.addresses[spec.name])
        self.session.run_with_iobinding(binding)

    def device_memory(self, buffers: int) -> DeviceMemory:
        return DeviceMemory(self.memory.bytes, 0, buffers)

    def close(self) -> None:
        self.closed = True


_LANGUAGE = """
<ir_version: 11, opset_import: ["": OPSET]>
lm (int64[batch, sequence] input_ids, int64[batch, TOTAL] attention_mask, int64[batch, sequence] position_ids,
    CACHE[batch, 2, PAST, 4] past_key_values.0.key, CACHE[batch, 2, PAST, 4] past_key_values.0.value MORE)
=> (CACHE[batch, sequence, 29] logits,
    CACHE[batch, 2, TOTAL, 4] present.0.key, CACHE[batch, 2, TOTAL, 4] present.0.value)
{
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    word = Gather(table, input_ids)
    place = Gather(places, position_ids)
    x = Add(word, place)
    heads = Constant <value_ints = [0, 0, 2, 4]> ()
    apart = Reshape(x, heads)
    q = Transpose <perm = [0, 2, 1, 3]> (apart)
    v = Tanh(q)
    shape = Shape <start = 1> (attention_mask)
    steps = Shape <start = 1> (input_ids)
    total = Squeeze(shape)
    new = Squeeze(steps)
    all = Range(zero, total, one)
    JOIN
    turned = Transpose <perm = [0, 1, 3, 2]> (key)
    raw = MatMul(q, turned)
    causal = LessOrEqual(all, column)
    middle = Constant <value_ints = [1, 2]> ()
    wide = Unsqueeze(attention_mask, middle)
    real = Cast <to = 9> (wide)
    seen = And(real, causal)
    never = Constant <value_float = -1e9> ()
    scores = Where(seen, raw, never)
    weights = Softmax <axis = -1> (scores)
    mixed = MatMul(weights, value)
    back = Transpose <perm = [0, 2, 1, 3]> (mixed)
    flat = Constant <value_ints = [0, 0, 8]> ()
    joined = Reshape(back, flat)
    wide_logits = MatMul(joined, out)
    logits = Cast <to = TYPE> (wide_logits)
}
"""
_CONCAT = """
    old_key = Cast <to = 1> (past_key_values.0.key)
    old_value = Cast <to = 1> (past_key_values.0.value)
    key = Concat <axis = 2> (old_key, q)
    value = Concat <axis = 2> (old_value, v)
    present.0.key = Cast <to = TYPE> (key)
    present.0.value = Cast <to = TYPE> (value)
    past = Sub(total, new)
    mine = Range(past, total, one)
    axis = Constant <value_ints = [1]> ()
    column = Unsqueeze(mine, axis)
"""
_STATIC = """
    new_key = Cast <to = TYPE> (q)
    new_value = Cast <to = TYPE> (v)
    present.0.key = TensorScatter <axis = 2, mode = "linear"> (past_key_values.0.key, new_key, write_indices)
    present.0.value = TensorScatter <axis = 2, mode = "linear"> (past_key_values.0.value, new_value, write_indices)
    key = Cast <to = 1> (present.0.key)
    value = Cast <to = 1> (present.0.value)
    counted = Range(zero, new, one)
    starts_axes = Constant <value_ints = [1, 2, 3]> ()
    starts = Unsqueeze(write_indices, starts_axes)
    counted_axis = Constant <value_ints = [1]> ()
    counts = Unsqueeze(counted, counted_axis)
    column = Add(starts, counts)
"""
_FORMS = {
    "concat": {"OPSET": "21", "MORE": "", "JOIN": _CONCAT, "TOTAL": "total_sequence", "PAST": "past_sequence"},
    "static": {
        "OPSET": "24",
        "MORE": ", int64[batch] write_indices",
        "JOIN": _STATIC,
        "TOTAL": str(CONTEXT),
        "PAST": str(CONTEXT),
    },
}


def language_graph(path: Path, dtype: str = "float", form: str = "concat") -> Path:
    """One attention layer with a cache, as a decoder's graph is after lowering; `form` is the cache's."""
    text = _LANGUAGE
    types = {"CACHE": dtype, "TYPE": {"float": "1", "float16": "10"}[dtype]}
    for word, meant in (_FORMS[form] | types).items():
        text = text.replace(word, meant)
    for name in ("past_key_values.0.key", "past_key_values.0.value", "present.0.key", "present.0.value"):
        text = text.replace(name, f'"{name}"')
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(3)
    for name, shape in {"table": (VOCABULARY, 8), "places": (CONTEXT, 8), "out": (8, VOCABULARY)}.items():
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


def aliases_of(path: Path) -> dict[str, str]:
    """The outputs that a graph's nodes write into an input in place, and that input."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return {node.output[0]: node.input[0] for node in nodes if node.op_type == "TensorScatter"}
