"""Optimum's ONNX export, and its int8 with the avx512_vnni configuration; runs in the environment `optimum`.

    python optimum_exports.py {fp32,dynamic,static} SOURCE OUTPUT [TASK | CALIBRATION]

`fp32` exports a Transformers folder for a task; the others quantize the folder that this wrote, `static` with the .npz
files of a folder, one sample each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def export(source: Path, output: Path, task: str) -> None:
    from optimum.exporters.onnx import main_export

    # Batch and sequence stay dynamic; `library_name` keeps sentence-transformers out of it.
    main_export(str(source), output, task=task, library_name="transformers", do_validation=False, local_files_only=True)


def quantize(source: Path, output: Path, calibration: Path | None = None) -> None:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    quantizer = ORTQuantizer(source / "model.onnx")
    if calibration is None:
        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
        quantizer.quantize(config, output, file_suffix="")
        return
    from datasets import Dataset

    samples = [dict(np.load(path)) for path in sorted(calibration.glob("*.npz"))]
    rows = Dataset.from_list([{name: array[0].tolist() for name, array in sample.items()} for sample in samples])
    config = AutoQuantizationConfig.avx512_vnni(is_static=True, per_channel=True)
    ranges = quantizer.fit(
        rows, AutoCalibrationConfig.minmax(rows), output / "augmented.onnx",
        operators_to_quantize=config.operators_to_quantize,
    )  # fmt: skip
    quantizer.quantize(config, output, file_suffix="", calibration_tensors_range=ranges)
    (output / "augmented.onnx").unlink(missing_ok=True)


def main() -> None:
    what, source, output, *rest = sys.argv[1:]
    Path(output).mkdir(parents=True, exist_ok=True)
    if what == "fp32":
        export(Path(source), Path(output), rest[0])
    else:
        quantize(Path(source), Path(output), Path(rest[0]) if what == "static" else None)


if __name__ == "__main__":
    main()
