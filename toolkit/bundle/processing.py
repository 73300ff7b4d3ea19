"""Writing what stands before and after the model in a bundle: its graphs and their samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from toolkit.bundle.manifest import ProcessingEntry
from toolkit.processing import Processing
from toolkit.types import TensorSpec

__all__ = ["GRAPHS", "SAMPLES", "Place", "write_processing"]

Place = Literal["preprocess", "postprocess"]
GRAPHS: dict[Place, str] = {"preprocess": "preprocess.onnx", "postprocess": "postprocess.onnx"}
SAMPLES: dict[Place, str] = {place: f"{place}_data_set_" for place in GRAPHS}
"""What the folders of their samples begin with, before the number."""


def write_processing(folder: Path, place: Place, processing: Processing) -> ProcessingEntry:
    """Write the graph and its samples, `preprocess_data_set_N/input_I.pb` and `output_I.pb`; answer their entry."""
    from toolkit.bundle.testdata import write_sets

    if processing.graph is None:
        return ProcessingEntry(reason=processing.reason)
    (folder / GRAPHS[place]).write_bytes(processing.graph.SerializeToString())
    inputs, outputs = _specs(processing.graph.graph.input), _specs(processing.graph.graph.output)
    given, expected = [pair[0] for pair in processing.samples], [pair[1] for pair in processing.samples]
    write_sets(folder, SAMPLES[place], given, expected, (inputs, outputs))
    return ProcessingEntry(
        graph=GRAPHS[place],
        inputs=inputs,
        outputs=outputs,
        exact=processing.exact,
        bound=processing.bound,
        compared=processing.compared,
        reason=processing.reason,
        needs=processing.needs,
    )


def _specs(values: Sequence[Any]) -> tuple[TensorSpec, ...]:
    from onnx import TensorProto
    from onnx.helper import tensor_dtype_to_np_dtype

    specs = []
    for value in values:
        tensor = value.type.tensor_type
        text = tensor.elem_type == TensorProto.STRING
        dtype = "string" if text else tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
        specs.append(TensorSpec(value.name, dtype, shape))
    return tuple(specs)
