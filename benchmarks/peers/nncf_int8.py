"""NNCF's post-training int8 of an ONNX file as an OpenVINO model; runs in the environment `openvino`.

python nncf_int8.py MODEL.onnx OUTPUT CALIBRATION

Model type `transformer`, NNCF's preset for it (weights symmetric, activations asymmetric), all the rest its defaults;
calibrated with the .npz files of a folder, one sample each.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def main() -> None:
    source, output, calibration = map(Path, sys.argv[1:])
    model = openvino.Core().read_model(str(source))
    taken = {item.get_any_name() for item in model.inputs}
    samples = [dict(np.load(path)) for path in sorted(calibration.glob("*.npz"))]
    data = nncf.Dataset([{name: array for name, array in sample.items() if name in taken} for sample in samples])
    quantized = nncf.quantize(
        model,
        data,
        preset=nncf.QuantizationPreset.MIXED,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )
    output.mkdir(parents=True, exist_ok=True)
    openvino.save_model(quantized, output / "model.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main()
