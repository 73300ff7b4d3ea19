"""What the providers of a phone would take of a graph, by ONNX Runtime's own lists of their operators.

It is what `onnxruntime.tools.check_onnx_model_mobile_usability` counts: known operators in as few parts as possible.
It goes by names, shapes and ranks; a provider may still refuse a node when it sees it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.tools.mobile_helpers import usability_checker as checker

__all__ = ["Usability", "usability"]

_ML_PROGRAM = "coreml_supported_mlprogram_ops.md"


@dataclass(frozen=True, slots=True)
class Usability:
    """Of `nodes` nodes a provider knows `taken`, in `parts` parts; `left` are the operators that it does not know.

    `verdict` is ONNX Runtime's: YES, MAYBE or NO.
    """

    nodes: int
    taken: int
    parts: int
    left: tuple[str, ...]
    verdict: str

    @property
    def said(self) -> str:
        """In short, as `60 of 61 nodes in 1 part`."""
        return f"{self.taken} of {self.nodes} nodes in {self.parts} {'part' if self.parts == 1 else 'parts'}"

    def as_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def usability(path: Path) -> dict[str, Usability]:
    """By provider: Core ML (ML Program) and NNAPI. Reads the graph without its weights."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    found = {
        "Core ML": checker.check_coreml_partitions(model, True, _ML_PROGRAM),
        "NNAPI": checker.check_nnapi_partitions(model, True),
    }
    return {name: _told(info) for name, info in found.items()}


def _told(info: checker.PartitioningInfo) -> Usability:
    left = sorted({*info.unsupported_ops, *info.ops_with_unsupported_rank})
    return Usability(
        info.num_nodes,
        info.num_supported_nodes,
        info.num_partitions,
        tuple(name.removeprefix("ai.onnx:") for name in left),
        info.suitability().name,
    )
