"""What `toolkit run` answers, by the task of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from toolkit import answers, label_map, token_answers
from toolkit.drift.measure import task_output
from toolkit.errors import UsageError
from toolkit.inputs import encodings
from toolkit.types import ModelSpec

__all__ = ["Asked", "answer", "save"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What was run: the images or texts by row (none for raw tensors), the question, the outputs, and how many labels.

    `assets` is the folder with the model's tokenizer.
    """

    spec: ModelSpec
    names: Sequence[str]
    outputs: Mapping[str, NDArray[Any]]
    top_k: int = 5
    question: str | None = None
    assets: Path | None = None

    @property
    def main(self) -> NDArray[Any]:
        """The output that the task is about."""
        return self.outputs[task_output(self.spec)]


def answer(asked: Asked) -> dict[str, Any]:
    """`rows` with labels, embeddings, entities, words, answers or classes of pixels; else `outputs` in numbers.

    Raw tensors came without texts, so that answers about a text's words are numbers for them.
    """
    task, rank = asked.spec.task, asked.main.ndim
    for tasks, wanted, by_text, form in _FORMS:
        if task in tasks and rank == wanted and (asked.names or not by_text):
            return form(asked)
    return {"outputs": answers.summaries(asked.outputs)}


def save(path: Path, asked: Asked) -> None:
    """Write all outputs as .npz, or for a name that ends in .png the label map of the one image that was run."""
    if path.suffix.lower() != ".png":
        answers.save_npz(path, asked.outputs)
        return
    if asked.spec.task != "semantic-segmentation" or len(asked.main) != 1:
        raise UsageError(
            f"{path} can hold the label map of one image, this is {asked.spec.task} of {len(asked.main)}",
            hint="Give --output FILE.npz for all outputs.",
        )
    label_map.save_map(path, _maps(asked)[0])


def _rows(asked: Asked, key: str, values: Sequence[Any]) -> dict[str, Any]:
    called = asked.names or [f"row {index}" for index in range(len(values))]
    return {"rows": [{"input": name, key: value} for name, value in zip(called, values, strict=True)]}


def _labels(asked: Asked) -> dict[str, Any]:
    return _rows(asked, "labels", answers.top_labels(asked.main, asked.spec.labels, asked.top_k))


def _embeddings(asked: Asked) -> dict[str, Any]:
    similar = {"cosine": answers.cosines(asked.main)} if len(asked.main) > 1 else {}
    return {**_rows(asked, "embedding", answers.embeddings(asked.main)), **similar}


def _entities(asked: Asked) -> dict[str, Any]:
    read = encodings(asked.names, asked.spec, asked.assets)
    found = token_answers.tokens(asked.main, read, asked.spec.labels)
    rows = zip(asked.names, found, strict=True)
    return {
        "rows": [{"input": text, "tokens": row, "entities": token_answers.entities(row, text)} for text, row in rows]
    }


def _fills(asked: Asked) -> dict[str, Any]:
    from model_zoo import _preprocess

    read = encodings(asked.names, asked.spec, asked.assets)
    _, mask = _preprocess.mask_token(asked.assets)
    found = token_answers.fills(
        asked.main, read, mask, asked.top_k, lambda index: _preprocess.token_text(index, asked.assets)
    )
    return _rows(asked, "masks", found)


def _spans(asked: Asked) -> dict[str, Any]:
    read = encodings(asked.names, asked.spec, asked.assets, asked.question)
    starts, ends = (asked.outputs[name] for name in ("start_logits", "end_logits"))
    found = _rows(asked, "answers", token_answers.spans(starts, ends, read, asked.names, asked.top_k))
    return {"question": asked.question, **found}


def _classes(asked: Asked) -> dict[str, Any]:
    return _rows(asked, "classes", [label_map.class_shares(labels, asked.spec.labels) for labels in _maps(asked)])


def _maps(asked: Asked) -> NDArray[Any]:
    height, width = (int(size) for size in asked.spec.inputs[0].shape[-2:])
    return label_map.label_maps(asked.main, (height, width))


_FORMS: tuple[tuple[tuple[str, ...], int, bool, Callable[[Asked], dict[str, Any]]], ...] = (
    (("image-classification", "text-classification"), 2, False, _labels),
    (("embedding",), 2, False, _embeddings),
    (("token-classification",), 3, True, _entities),
    (("fill-mask",), 3, True, _fills),
    (("question-answering",), 2, True, _spans),
    (("semantic-segmentation",), 4, False, _classes),
)
"""Tasks, the rank of their main output, whether the texts are needed, and the form of their answer."""
