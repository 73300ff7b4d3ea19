"""Opening graphs whose cache has a fixed length, as TensorRT demands, without paying for all of it."""

from __future__ import annotations

from functools import partial

import onnx

from toolkit.cache_names import ATTENTION_MASK, WRITE_INDICES, is_past, is_present

__all__ = ["LEFT_OPEN", "with_open_length"]

LEFT_OPEN = "cache length left open"
"""What a session adds to where it ran: the graph is the one in the file but for the length of its buffers."""

_LENGTH = "cache_length"


def with_open_length(source: str | bytes) -> bytes | None:
    """The graph of a path, or as bytes, with a cache of any length; None where its cache is no buffer.

    No node holds the length, it is read from the buffers: a buffer of 64 positions gives the numbers of one of 8192
    whose other places are masked, in less memory and time. Only declarations of shapes change.
    """
    load = onnx.load_from_string if isinstance(source, bytes) else partial(onnx.load, load_external_data=False)
    model = load(source)
    graph = model.graph
    if not any(value.name == WRITE_INDICES for value in graph.input):
        return None
    for value in (*graph.input, *graph.output):
        axis = 2 if is_past(value.name) or is_present(value.name) else 1 if value.name == ATTENTION_MASK else None
        if axis is not None:
            value.type.tensor_type.shape.dim[axis].dim_param = _LENGTH
    del graph.value_info[:]
    serialized: bytes = model.SerializeToString()
    return serialized
