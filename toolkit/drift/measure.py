"""Measuring one stage: its outputs against the reference's on the same inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.drift import metrics
from toolkit.drift.gates import judge
from toolkit.drift.padding import at_attended
from toolkit.drift.report import OutputDrift, StageDrift, TaskDrift
from toolkit.errors import UsageError
from toolkit.types import Evaluation, Gate, ModelSpec, Session, Tensors

__all__ = ["measure", "observe", "task_output"]


def observe(session: Session, batches: Sequence[Tensors]) -> list[dict[str, NDArray[Any]]]:
    """Run every batch and keep its outputs."""
    return [session.run(batch) for batch in batches]


def measure(
    stage: str,
    ran_on: str,
    reference: Sequence[Tensors],
    candidate: Sequence[Tensors],
    spec: ModelSpec,
    *,
    inputs: Sequence[Tensors] = (),
    gate: Gate | None = None,
    evaluation: Evaluation | None = None,
    evaluation_reference: Sequence[Tensors] = (),
    evaluation_candidate: Sequence[Tensors] = (),
) -> StageDrift:
    """Compare every output of `spec` at its worst over all batches, and the task metric, under `gate`.

    `reference` and `candidate` are the outputs of the same batches, in order; the `evaluation_` pair
    likewise, of `evaluation.batches`. Given the `inputs` of the batches, padded positions do not count. What
    cannot be compared (missing, NaN, Inf, wrong shape) is a failure in the answer.
    Raises UsageError when there is nothing to compare on or the numbers of batches differ.
    """
    _require_same_count(stage, reference, candidate)
    if inputs:
        reference, candidate = at_attended(reference, inputs, spec), at_attended(candidate, inputs, spec)
    outputs = tuple(_output(tensor.name, reference, candidate) for tensor in spec.outputs)
    task = None
    if evaluation is not None:
        _require_same_count(stage, evaluation_reference, evaluation_candidate)
        task = _task(evaluation, task_output(spec), evaluation_reference, evaluation_candidate)
    return judge(StageDrift(stage=stage, ran_on=ran_on, outputs=outputs, task=task), gate or Gate())


def task_output(spec: ModelSpec) -> str:
    """The output the task metric reads: the first of rank 2, as logits [batch, classes], else the first."""
    flat = (tensor.name for tensor in spec.outputs if len(tensor.shape) == 2)
    return next(flat, spec.outputs[0].name)


def _output(name: str, reference: Sequence[Tensors], candidate: Sequence[Tensors]) -> OutputDrift:
    reason = _why_not(name, reference, candidate)
    if reason:
        return OutputDrift(name=name, failure=reason)
    pairs = zip(reference, candidate, strict=True)
    sums = [metrics.moments(left[name], right[name]) for left, right in pairs]
    return OutputDrift(
        name=name,
        sqnr_db=min(batch.sqnr_db for batch in sums),
        cosine=min(batch.cosine for batch in sums),
        relative_l2=max(batch.relative_l2 for batch in sums),
        max_abs=max(batch.peak for batch in sums),
    )


def _task(evaluation: Evaluation, name: str, reference: Sequence[Tensors], candidate: Sequence[Tensors]) -> TaskDrift:
    reason = _why_not(name, reference, candidate)
    if reason:
        return TaskDrift(metric=evaluation.metric, output=name, count=0, failure=reason)
    left, right = _rows(name, reference), _rows(name, candidate)
    if evaluation.metric == "retrieval":
        overlap = metrics.overlap_at_k(left, right, 10)
        return TaskDrift(metric="retrieval", output=name, count=len(left), overlap_at_10=overlap)
    return _accuracy(evaluation, name, left, right)


def _accuracy(evaluation: Evaluation, name: str, left: NDArray[Any], right: NDArray[Any]) -> TaskDrift:
    if evaluation.labels is None:
        raise UsageError("an evaluation of accuracy needs labels", hint="Give labels, or use retrieval.")
    before = metrics.accuracy(left, evaluation.labels)
    after = metrics.accuracy(right, evaluation.labels)
    return TaskDrift(
        metric="accuracy",
        output=name,
        count=len(left),
        reference_accuracy=before,
        candidate_accuracy=after,
        accuracy_drop=before - after,
        top1_agreement=metrics.top1_agreement(left, right),
    )


def _why_not(name: str, reference: Sequence[Tensors], candidate: Sequence[Tensors]) -> str:
    for index, (left, right) in enumerate(zip(reference, candidate, strict=True)):
        reason = metrics.failure(left.get(name), right.get(name))
        if reason:
            return f"{reason} (batch {index})"
    return ""


def _rows(name: str, batches: Sequence[Tensors]) -> NDArray[Any]:
    parts = [batch[name].reshape(len(batch[name]), -1) for batch in batches]
    widths = {part.shape[1] for part in parts}
    if len(widths) > 1:
        raise UsageError(f"the task metric needs rows of one width, output '{name}' has {sorted(widths)}")
    return np.concatenate(parts)


def _require_same_count(stage: str, reference: Sequence[Tensors], candidate: Sequence[Tensors]) -> None:
    if not reference or len(reference) != len(candidate):
        raise UsageError(
            f"stage '{stage}': drift needs the same batches on both sides, at least one; "
            f"the reference has {len(reference)}, the candidate {len(candidate)}"
        )
