"""Optimum's ONNX export, and its int8 with the avx512_vnni configuration; runs in the environment `optimum`.

    python optimum_exports.py {fp32,dynamic,static} SOURCE OUTPUT CALIBRATION [TASK]

`fp32` exports a Transformers folder for a task; the others quantize the folder that this wrote, `static` with the .npz
files of a folder, one sample each. An image's size is fixed to that of the samples, as it is in our graphs: otherwise
DINOv2 would interpolate its position embedding in every run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np


def export(source: Path, output: Path, calibration: Path, task: str) -> None:
    from optimum.exporters.onnx import main_export

    # Batch and sequence stay dynamic; `library_name` keeps sentence-transformers out of it.
    main_export(str(source), output, task=task, library_name="transformers", do_validation=False, local_files_only=True)
    fix_image_size(output / "model.onnx", samples(calibration)[0])


def fix_image_size(path: Path, sample: dict[str, np.ndarray]) -> None:
    import onnx

    model = onnx.load(path)
    for given in model.graph.input:
        dims = given.type.tensor_type.shape.dim
        if len(dims) == 4:
            for dim, size in zip(dims[1:], sample[given.name].shape[1:], strict=True):
                dim.dim_value = size
    onnx.save(model, path)


def quantize(source: Path, output: Path, calibration: Path, static: bool) -> None:
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoCalibrationConfig, AutoQuantizationConfig

    quantizer = ORTQuantizer(source / "model.onnx")
    config = AutoQuantizationConfig.avx512_vnni(is_static=static, per_channel=True)
    if not static:
        quantizer.quantize(config, output, file_suffix="")
        return
    from datasets import Dataset

    rows = [{name: array[0].tolist() for name, array in sample.items()} for sample in samples(calibration)]
    data = Dataset.from_list(rows)
    ranges = quantizer.fit(
        data, AutoCalibrationConfig.minmax(data), output / "augmented.onnx",
        operators_to_quantize=config.operators_to_quantize,
    )  # fmt: skip
    quantizer.quantize(config, output, file_suffix="", calibration_tensors_range=ranges)
    (output / "augmented.onnx").unlink(missing_ok=True)


def samples(folder: Path) -> list[dict[str, np.ndarray]]:
    return [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]


def main() -> None:
    what, source, output, calibration, *task = sys.argv[1:]
    Path(output).mkdir(parents=True, exist_ok=True)
    if what == "fp32":
        export(Path(source), Path(output), Path(calibration), *task)
    else:
        quantize(Path(source), Path(output), Path(calibration), what == "static")


if __name__ == "__main__":
    main()
