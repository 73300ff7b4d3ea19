"""Measuring one stage: its outputs against the reference's on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from toolkit.continuation import every_position
from toolkit.drift import metrics
from toolkit.drift.dense import CLASS_AXIS, dense_agreement
from toolkit.drift.gates import judge
from toolkit.drift.language import Reference, Whole, language_drift
from toolkit.drift.padding import at_attended
from toolkit.drift.report import OutputDrift, StageDrift, TaskDrift
from toolkit.drift.summary import Summary, is_summary
from toolkit.errors import UsageError
from toolkit.types import Evaluation, Gate, ModelSpec, Session, Tensors

__all__ = ["LOGITS", "answers", "judged", "mapped", "measure", "observe", "task_output"]

LOGITS = "logits"
_ROUNDING = "golden inputs moved by no more than rounding"


def answers(
    session: Session, batches: Iterable[Tensors], outputs: Collection[str] | None = None
) -> Iterator[dict[str, NDArray[Any]]]:
    """Run batch after batch, each when it is asked for, and keep only the named outputs, all by default."""
    for batch in batches:
        yield _kept(session.run(batch), outputs)


def judged(session: Session, evaluation: Evaluation | None, spec: ModelSpec) -> Iterator[dict[str, NDArray[Any]]]:
    """What the task metric reads of each held-out batch, run as it is read: a text's logits need not be in memory."""
    batches = evaluation.batches if evaluation is not None else ()
    return answers(every_position(session, spec), batches, {task_output(spec)})


def observe(
    session: Session,
    batches: Iterable[Tensors],
    *,
    outputs: Collection[str] | None = None,
    spill: Path | None = None,
) -> list[dict[str, NDArray[Any]]]:
    """Run every batch and keep its outputs: those that are named, all by default.

    With `spill`, a folder that is made, each array is written there and answered memory-mapped, read-only, so that
    a text's logits take no memory. The folder must outlive what is answered, and is the caller's to remove.
    """
    kept = answers(session, batches, outputs)
    if spill is None:
        return list(kept)
    spill.mkdir(parents=True, exist_ok=True)
    return [_spilled(answer, spill / str(index)) for index, answer in enumerate(kept)]


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
    evaluation_candidate: Iterable[Tensors] = (),
    spare_above_db: float = math.inf,
) -> StageDrift:
    """Compare every output of `spec` at its worst over all batches, and the task metric, under `gate`.

    `reference` and `candidate` are the outputs of the same batches, in order; the `evaluation_` pair
    likewise, of `evaluation.batches`, where the candidate's may be run as they are read (`answers`), and the
    reference's may be summaries of its logits; the task metric is spared where no output's SQNR is below
    `spare_above_db`. Given the `inputs` of the batches, padded positions do not count.
    What cannot be compared (missing, NaN, Inf, wrong shape) is a failure in the answer.
    Raises UsageError when there is nothing to compare on or the numbers of batches differ.
    """
    _require_same_count(stage, reference, candidate)
    if inputs:
        reference, candidate = at_attended(reference, inputs, spec), at_attended(candidate, inputs, spec)
    outputs = tuple(_output(tensor.name, reference, candidate) for tensor in spec.outputs)
    task = None
    if evaluation is not None and _all_above(outputs, spare_above_db):
        task = TaskDrift(metric=evaluation.metric, output=task_output(spec), count=0, skipped=_ROUNDING)
    elif evaluation is not None:
        task = _evaluated(stage, spec, evaluation, evaluation_reference, evaluation_candidate)
    return judge(StageDrift(stage=stage, ran_on=ran_on, outputs=outputs, task=task), gate or Gate())


def _all_above(outputs: Sequence[OutputDrift], bound: float) -> bool:
    return all(output.sqnr_db is not None and output.sqnr_db > bound for output in outputs)


def task_output(spec: ModelSpec) -> str:
    """The output the task metric reads: a decoder's logits; else the first of rank 2, else the first."""
    if spec.kind == "decoder":
        return LOGITS
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


def _evaluated(
    stage: str, spec: ModelSpec, evaluation: Evaluation, reference: Sequence[Tensors], candidate: Iterable[Tensors]
) -> TaskDrift:
    name = task_output(spec)
    if evaluation.metric == "language":
        _require_batches(stage, len(evaluation.batches), len(reference))
        return language_drift(name, evaluation.batches, [_reference(batch, name) for batch in reference], candidate)
    if spec.task in CLASS_AXIS:
        return dense_agreement(evaluation, name, CLASS_AXIS[spec.task], reference, candidate)
    kept = list(candidate)
    _require_same_count(stage, reference, kept)
    return _task(evaluation, name, reference, kept)


def _reference(batch: Tensors, name: str) -> Reference:
    if is_summary(batch, name):
        return Summary.of(batch, name)
    if name not in batch:
        raise UsageError(f"the reference of the evaluation has no '{name}'")
    return Whole(batch[name])


def _kept(answer: dict[str, NDArray[Any]], outputs: Collection[str] | None) -> dict[str, NDArray[Any]]:
    return {name: array for name, array in answer.items() if outputs is None or name in outputs}


def _spilled(answer: Tensors, place: Path) -> dict[str, NDArray[Any]]:
    place.mkdir()
    return {name: mapped(array, place / f"{index}.npy") for index, (name, array) in enumerate(answer.items())}


def mapped(array: NDArray[Any], path: Path) -> NDArray[Any]:
    """The array written to that file and answered memory-mapped, read-only."""
    np.save(path, array, allow_pickle=False)
    # An empty file cannot be mapped, and costs nothing.
    mode: Literal["r"] | None = "r" if array.size else None
    answer: NDArray[Any] = np.load(path, mmap_mode=mode, allow_pickle=False)
    return answer


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
    agreement = metrics.top1_agreement(left, right)
    if evaluation.labels is None:
        return TaskDrift(metric="accuracy", output=name, count=len(left), top1_agreement=agreement)
    before = metrics.accuracy(left, evaluation.labels)
    after = metrics.accuracy(right, evaluation.labels)
    return TaskDrift(
        metric="accuracy",
        output=name,
        count=len(left),
        reference_accuracy=before,
        candidate_accuracy=after,
        accuracy_drop=before - after,
        top1_agreement=agreement,
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


def _require_batches(stage: str, batches: int, reference: int) -> None:
    if not batches or batches != reference:
        raise UsageError(
            f"stage '{stage}': perplexity needs the reference's answer to every batch of text, at least one; "
            f"there are {batches} batches and {reference} answers"
        )
