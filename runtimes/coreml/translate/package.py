"""An ML Program into the folder that Xcode takes: the same bytes each time for the same program."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coremltools.converters.mil.backend.mil.load import load
from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

from runtimes.coreml.translate.mil import TARGET, ct
from toolkit.errors import StageError

__all__ = ["Written", "tidy", "write_package"]

_PASSES = (
    "common::const_elimination",
    "common::dead_code_elimination",
    "common::remove_redundant_ops",
    "common::merge_consecutive_reshapes",
    "common::merge_consecutive_transposes",
    "common::cast_optimization",
    "common::noop_elimination",
    "common::const_deduplication",
    "common::dead_code_elimination",
    "mil_backend::sanitize_name_strings",
    "common::dedup_op_and_var_names",
)
"""Only what leaves attention, weights and precisions as our own graph has them: no fusions, no casts of its own."""

_AUTHOR = "com.apple.CoreML"
_MODEL, _WEIGHTS = "model.mlmodel", "weights"


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: the files relative to the package's folder, their bytes, and how often each operator occurs."""

    files: tuple[Path, ...]
    bytes: int
    operators: Mapping[str, int]
    inputs: Mapping[str, Mapping[str, Any]]
    outputs: Mapping[str, str]
    states: Mapping[str, Mapping[str, Any]]


def tidy(program: Any) -> None:
    """Fold what is known, drop what nobody reads, and give every variable a name that Core ML takes."""
    for name in _PASSES:
        PASS_REGISTRY[name](program)


def write_package(program: Any, folder: Path, metadata: Mapping[str, str]) -> Written:
    """Write `program` as `folder`, an .mlpackage; `metadata` goes into the model's description.

    Raises StageError where coremltools or the disk refuses it.
    """
    data = folder / "Data" / _AUTHOR
    try:
        (data / _WEIGHTS).mkdir(parents=True)
        spec = load(program, weights_dir=str(data / _WEIGHTS), specification_version=TARGET, convert_to="mlprogram")
        spec.description.metadata.userDefined.update(metadata)
        (data / _MODEL).write_bytes(spec.SerializeToString(deterministic=True))
        (folder / "Manifest.json").write_text(_manifest(), encoding="utf-8")
    except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise StageError(
            "build",
            f"coremltools cannot write {folder.name}: {error}",
            hint="Check free space; else report the model.",
        ) from error
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return Written(
        files=tuple(path.relative_to(folder.parent) for path in paths),
        bytes=sum(path.stat().st_size for path in paths),
        operators=_operators(program),
        inputs={feature.name: _described(feature.type.multiArrayType) for feature in spec.description.input},
        outputs={feature.name: _dtype(feature.type.multiArrayType) for feature in spec.description.output},
        states={feature.name: _described(feature.type.stateType.arrayType) for feature in spec.description.state},
    )


def _manifest() -> str:
    """Apple's index of a package. Its identifiers are free, so they are made from what they name."""
    items = {
        _identifier(name): {
            "author": _AUTHOR,
            "description": f"CoreML Model {what}",
            "name": name,
            "path": f"{_AUTHOR}/{name}",
        }
        for name, what in ((_MODEL, "Specification"), (_WEIGHTS, "Weights"))
    }
    root = _identifier(_MODEL)
    content = {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": root}
    return json.dumps(content, indent=4, sort_keys=True) + "\n"


def _identifier(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{_AUTHOR}/{name}")).upper()


def _operators(program: Any) -> dict[str, int]:
    counted = Counter(operation.op_type for operation in program.functions["main"].operations)
    del counted["const"]
    return dict(sorted(counted.items()))


def _described(array: Any) -> dict[str, Any]:
    """An input's number type, default shape and, where it varies, the range of each axis."""
    ranges = [[size.lowerBound, size.upperBound] for size in array.shapeRange.sizeRanges]
    return {"dtype": _dtype(array), "shape": list(array.shape), **({"ranges": ranges} if ranges else {})}


def _dtype(array: Any) -> str:
    return str(ct.proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Name(array.dataType)).lower()
