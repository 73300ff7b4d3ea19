"""Tasks and the model classes that answer them, by transformers' own auto mappings."""

from __future__ import annotations

from collections.abc import Mapping

from transformers.models.auto import modeling_auto as auto

from toolkit.errors import UnsupportedError, UsageError
from toolkit.types import ModelRequest

__all__ = ["HEADS", "LABELLED", "chosen", "task_of"]

_Classes = Mapping[str, str | tuple[str, ...]]

_MAPPINGS: Mapping[str, tuple[str, _Classes]] = {
    "fill-mask": ("ForMaskedLM", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    "image-classification": ("ForImageClassification", auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES),
    "question-answering": ("ForQuestionAnswering", auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES),
    "semantic-segmentation": ("ForSemanticSegmentation", auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES),
    "text-classification": ("ForSequenceClassification", auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
    "token-classification": ("ForTokenClassification", auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
}
HEADS = tuple(_MAPPINGS)
"""The tasks that need a head beyond the encoder."""

LABELLED = ("image-classification", "semantic-segmentation", "text-classification", "token-classification")
"""The tasks whose answers are classes with names."""


def task_of(architecture: str) -> str:
    """The task that a class is made for; `features` for an encoder without a head, `raw` for a head unknown here."""
    heads = [task for task, (ending, _) in _MAPPINGS.items() if ending in architecture]
    return heads[0] if heads else "features" if architecture.endswith("Model") else "raw"


def chosen(request: ModelRequest, own: str, *, pooled: bool = False) -> str:
    """The class for the requested task, of a checkpoint saved from the class `own`; `own` where no task is given.

    Where it is not known (an empty `own`), loading shows whether a head is there.
    `pooled` says that the checkpoint is a sentence encoder, which answers `embedding`. Raises UnsupportedError with
    the tasks that there are for a task this model type lacks, UsageError for a head that pretrained weights lack.
    """
    task, kind = request.task, str(request.config.get("model_type"))
    if not task or task == task_of(own) or (task == "embedding" and pooled):
        return own
    classes = _classes(kind)
    if task not in classes:
        known = sorted({*classes, task_of(own), *(["embedding"] if pooled else [])} - {"raw"})
        raise UnsupportedError(f"no task '{task}' for a model of type '{kind}'", hint=f"Its tasks: {', '.join(known)}.")
    if own and task != "features" and request.weights == "pretrained" and not own.endswith("ForPreTraining"):
        raise UsageError(
            f"no head for {task} is in {request.source}: it was saved from {own}, so the head would be random",
            hint=f"Give a checkpoint that was trained for {task}, or leave --task out.",
        )
    return classes[task]


def _classes(kind: str) -> dict[str, str]:
    """The class of each task that transformers has for this model type."""
    named = {"features": auto.MODEL_MAPPING_NAMES, **{task: names for task, (_, names) in _MAPPINGS.items()}}
    found = {task: names[kind] for task, names in named.items() if kind in names}
    return {task: names if isinstance(names, str) else names[0] for task, names in found.items()}
