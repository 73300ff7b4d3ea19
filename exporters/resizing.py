"""Antialiased resizing as two matrix products, one an axis.

The Resize that `torch.onnx` writes for it weighs pixels beyond the edge; PyTorch leaves them out and shares their
weight among the others (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18

from toolkit.errors import UnsupportedError

__all__ = ["TRANSLATIONS"]


def _translation(operator: Callable[..., torch.Tensor]) -> Callable[..., Any]:
    """For an image [batch, channels, height, width]. Raises UnsupportedError for sizes that are not fixed."""

    def resized(
        image: Any,
        output_size: Any,
        align_corners: bool = False,
        scales_h: float | None = None,
        scales_w: float | None = None,
    ) -> Any:
        rows, columns = (
            _matrix(operator, have, want, align_corners, scale)
            for have, want, scale in zip(image.shape[-2:], output_size, (scales_h, scales_w), strict=True)
        )
        up = opset18.MatMul(opset18.Constant(value=ir.tensor(rows.numpy())), image)
        return opset18.MatMul(up, opset18.Constant(value=ir.tensor(columns.T.contiguous().numpy())))

    return resized


def _matrix(
    operator: Callable[..., torch.Tensor], have: Any, want: Any, align_corners: bool, scale: float | None
) -> torch.Tensor:
    """What PyTorch makes of each single pixel of an axis: float32 [want, have]."""
    if not isinstance(have, int) or not isinstance(want, int):
        raise UnsupportedError(
            f"antialiased resizing from {have} to {want} pixels, which is not known beforehand",
            hint="Give height and width fixed sizes, or resize without antialias.",
        )
    pixels = torch.eye(have, dtype=torch.float32)[None, None]
    return operator(pixels, [want, have], align_corners, scale, None)[0, 0]


TRANSLATIONS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    operator: _translation(operator)
    for operator in (
        torch.ops.aten._upsample_bicubic2d_aa.default,
        torch.ops.aten._upsample_bilinear2d_aa.default,
    )
}
"""For `torch.onnx.export(custom_translation_table=...)`."""
