"""Top-1 agreement where a model answers with a class for each token or each pixel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from toolkit.drift import metrics
from toolkit.drift.report import TaskDrift
from toolkit.types import Evaluation, Tensors

__all__ = ["CLASS_AXIS", "dense_agreement"]

CLASS_AXIS: Mapping[str, int] = {"fill-mask": -1, "semantic-segmentation": 1, "token-classification": -1}
"""Where the classes are in the logits of each of these tasks."""


def dense_agreement(
    evaluation: Evaluation, name: str, axis: int, reference: Sequence[Tensors], candidate: Iterable[Tensors]
) -> TaskDrift:
    """The fraction of attended tokens or of pixels that both give the same class; `count` is how many there are.

    `axis` is that of the classes in the output `name`. The candidate's batches are judged as they are read. A batch
    that cannot be compared is a failure in the answer; so is one that is missing on either side.
    """
    agreed = count = compared = 0
    for index, (batch, left, right) in enumerate(zip(evaluation.batches, reference, candidate, strict=False)):
        reason = metrics.failure(left.get(name), right.get(name))
        if reason:
            return TaskDrift(metric="accuracy", output=name, count=0, failure=f"{reason} (batch {index})")
        same = np.argmax(left[name], axis) == np.argmax(right[name], axis)
        mask = batch.get("attention_mask")
        kept = same if mask is None or mask.shape != same.shape else same[mask != 0]
        agreed, count, compared = agreed + int(kept.sum()), count + kept.size, compared + 1
    if not count or compared != len(evaluation.batches):
        reason = f"{compared} of {len(evaluation.batches)} batches could be compared"
        return TaskDrift(metric="accuracy", output=name, count=0, failure=reason)
    return TaskDrift(metric="accuracy", output=name, count=count, top1_agreement=agreed / count)
