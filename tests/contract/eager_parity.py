"""What the contract tests of model families share: weights that show a wrong mask, and the eager model's outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from toolkit.drift.padding import at_attended
from toolkit.types import ModelSpec, Session


def compare(session: Session, spec: ModelSpec, batches: list[Any], expected: list[dict[str, NDArray[Any]]]) -> None:
    try:
        answers = at_attended([session.run(batch) for batch in batches], batches, spec)
    finally:
        session.close()
    for answer, wanted in zip(answers, at_attended(expected, batches, spec), strict=True):
        for output in spec.outputs:
            largest = np.abs(wanted[output.name]).max()
            np.testing.assert_allclose(answer[output.name], wanted[output.name], atol=1e-4 * largest, rtol=0)


def spread(module: torch.nn.Module) -> None:
    """Transformers starts weights near zero, biases of positions at zero: a wrong mask or bias would hardly show."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim >= 2:
                torch.nn.init.normal_(parameter, std=0.5) if not parameter.any() else parameter.mul_(6)
