"""A lowered graph into an `.ort` file, and the list of operators that a reduced build of ONNX Runtime needs for it."""

from __future__ import annotations

import logging
from pathlib import Path

import onnxruntime as ort
from onnxruntime.tools.ort_format_model import create_config_from_models

from runtimes._onnxruntime.failures import as_stage_error

__all__ = ["OPERATORS_FILE", "ORT_FILE", "write_operators", "write_ort"]

ORT_FILE = "model.ort"
OPERATORS_FILE = "required_operators_and_types.config"

_NEVER = ("NchwcTransformer", "MatMulAddFusion")
"""The first writes layouts of x86; the second makes `Gemm`s between `Reshape`s, which hide int8 from its kernels."""
_FOLDING = "ConstantFolding"

# It sets its own level when it is imported, and tells of a file that is renamed here.
logging.getLogger("ort_format_model.utils").setLevel(logging.WARNING)


def write_ort(source: Path, path: Path, scheme: str) -> None:
    """Write `path`, whole or not at all, as `convert_onnx_models_to_ort` does for the platform `arm`.

    fp32 and fp16 keep to standard operators (level basic), which a phone's providers know; int8 is for the CPU, whose
    integer kernels are operators of ONNX Runtime's own (level all). Raises StageError where it is refused.
    """
    level = ort.GraphOptimizationLevel
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = level.ORT_ENABLE_ALL if scheme == "int8" else level.ORT_ENABLE_BASIC
    options.add_session_config_entry("session.save_model_format", "ORT")
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    written = path.with_name(f".{path.name}.writing")
    options.optimized_model_filepath = str(written)
    # Folding would widen the weights that lie in the file in half precision.
    off = [*_NEVER, *([_FOLDING] if scheme == "fp16" else [])]
    try:
        with as_stage_error("build", f"cannot convert {source.name} to an .ort file"):
            ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"], disabled_optimizers=off)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


def write_operators(engine: Path, path: Path) -> None:
    """Write the operators and number types that the `.ort` file uses: `--include_ops_by_config` of a reduced build."""
    written = path.with_name(f".{path.name}.writing")
    try:
        create_config_from_models([engine], written, True)
        # It names the model by its path on this machine.
        written.write_text(written.read_text("utf-8").replace(str(engine), engine.name), "utf-8")
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
