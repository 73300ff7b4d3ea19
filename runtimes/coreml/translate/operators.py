"""The table of operators: what each one of ONNX is in an ML Program."""

from __future__ import annotations

from collections.abc import Mapping

from runtimes.coreml.translate.attention import ATTENTION
from runtimes.coreml.translate.elementwise import ELEMENTWISE
from runtimes.coreml.translate.normalisations import NORMALISATIONS
from runtimes.coreml.translate.products import PRODUCTS
from runtimes.coreml.translate.shapes import SHAPES
from runtimes.coreml.translate.values import Translate

__all__ = ["OPERATORS"]

OPERATORS: Mapping[str, Translate] = {**ELEMENTWISE, **SHAPES, **PRODUCTS, **NORMALISATIONS, **ATTENTION}
