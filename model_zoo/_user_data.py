"""The user's own calibration and evaluation data, the same way for every kind of model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np

from model_zoo import _calibration
from model_zoo._labels import class_indices
from model_zoo._samples import Sample
from model_zoo._sampling import draw
from toolkit.drift.dense import CLASS_AXIS
from toolkit.errors import UnsupportedError, UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Dim, Evaluation, ModelSpec, Tensors

__all__ = ["Feed", "calibration", "evaluation", "evaluation_count"]

_ROWS, _BYTES = 256, 256 << 20
_WINDOWS = 8
_NEIGHBOURS = 32


@dataclass(frozen=True, slots=True)
class Feed:
    """How one model takes one source: all its samples in order, from samples to input tensors, and their hashes.

    `start` opens the source for one pass; `name` is what the manifest calls it.
    """

    name: str
    samples: Iterator[Sample]
    start: Callable[[], Callable[[Sequence[Sample]], Tensors]]
    fingerprints: Callable[[Sequence[Sample]], Sequence[frozenset[bytes]]]


def calibration(spec: ModelSpec, data: Data, feed: Feed, wanted: int = 4) -> Calibration:
    """`data.count` of the feed's samples, 64 by default, drawn with the seed, in batches of about `wanted` rows."""
    drawn, total = draw(feed.samples, data.count or _calibration.COUNT, data.seed)
    _require_some(feed, drawn)
    sizes = _sizes(spec, len(drawn), wanted)
    return _calibration.hashed(
        lambda: _batches(feed, drawn, sizes),
        min(len(drawn), sum(sizes)),
        feed.name,
        items=lambda: feed.fingerprints(drawn),
        total=total,
        seed=data.seed,
    )


def evaluation(spec: ModelSpec, data: Data, feed: Feed, wanted: int = 4) -> Evaluation:
    """As many of the feed's samples as `evaluation_count` says, drawn with the seed, and the metric they serve.

    Classifiers get accuracy, those of tokens and pixels their agreement with the reference, language models perplexity,
    all others the overlap of nearest neighbours. Raises UsageError for classes the model has not, for too few samples,
    and where the output is not one vector a sample.
    """
    drawn, total = draw(feed.samples, evaluation_count(spec, data), data.seed)
    _require_some(feed, drawn)
    metric = _metric(spec, labelled=any(sample.label is not None for sample in drawn))
    if metric == "retrieval" and len(drawn) < _NEIGHBOURS:
        raise UsageError(
            f"{feed.name} holds {len(drawn)} samples, too few to compare each one's 10 nearest neighbours",
            hint=f"Give {_NEIGHBOURS} or more.",
        )
    sizes = _sizes(spec, len(drawn), wanted)
    classed = metric == "accuracy" and spec.task not in CLASS_AXIS
    labels = class_indices(drawn, _class_names(spec)) if classed else None
    rows = list(chain.from_iterable(_calibration.chunked(len(drawn), sizes)))
    return _calibration.held_out(
        metric,
        _batches(feed, drawn, sizes),
        None if labels is None else labels[np.array(rows)],
        count=min(len(drawn), sum(sizes)),
        source=feed.name,
        items=lambda: feed.fingerprints(drawn),
        total=total,
        seed=data.seed,
    )


def evaluation_count(spec: ModelSpec, data: Data) -> int:
    """How many samples are evaluated on: what the user says, else 256, or as many as have inputs of 256 MiB.

    A language model gets 8 windows and a masked one 32 texts, since the reference's logits of them all are kept
    during the export.
    """
    if data.count:
        return data.count
    if spec.kind == "decoder":
        return _WINDOWS
    if spec.task == "fill-mask":
        return _NEIGHBOURS
    row = sum(
        np.dtype(item.dtype).itemsize * math.prod(_size(axis, spec) for axis in item.shape[1:]) for item in spec.inputs
    )
    return max(_NEIGHBOURS, min(_ROWS, _BYTES // max(1, row)))


def _size(axis: int | str, spec: ModelSpec) -> int:
    return axis if isinstance(axis, int) else spec.dims[axis].opt


def _require_some(feed: Feed, drawn: Sequence[Sample]) -> None:
    if not drawn:
        raise UsageError(f"{feed.name} holds no samples", hint="Give a source that is not empty.")


def _sizes(spec: ModelSpec, total: int, wanted: int) -> list[int]:
    return _calibration.batch_sizes(total, spec.dims.get("batch", Dim(1, 1, total)), wanted)


def _batches(feed: Feed, drawn: Sequence[Sample], sizes: Sequence[int]) -> Iterator[Tensors]:
    tensors = feed.start()
    for rows in _calibration.chunked(len(drawn), sizes):
        yield tensors([drawn[row] for row in rows])


def _metric(spec: ModelSpec, *, labelled: bool) -> Literal["accuracy", "retrieval", "language"]:
    if spec.kind == "decoder":
        return "language"
    name, shape = _judged(spec)
    classes = spec.task in CLASS_AXIS or spec.task.endswith("classification")
    if classes or (spec.task == "raw" and labelled and len(shape) == 2):
        return "accuracy"
    if all(isinstance(axis, int) for axis in shape[1:]):
        return "retrieval"
    raise UnsupportedError(
        f"an evaluation set has no metric for {spec.name}: its output '{name}' is no vector of one length a sample",
        hint="Leave --evaluation out: its outputs are compared on golden inputs. Classifiers, embeddings, features of "
        "a fixed size and language models can be evaluated.",
    )


def _judged(spec: ModelSpec) -> tuple[str, tuple[int | str, ...]]:
    from toolkit.drift.measure import task_output

    name = task_output(spec)
    return name, next(item.shape for item in spec.outputs if item.name == name)


def _class_names(spec: ModelSpec) -> Sequence[str]:
    if spec.labels:
        return spec.labels
    _, shape = _judged(spec)
    return [str(index) for index in range(int(shape[-1]))]
