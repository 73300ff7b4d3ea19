"""From what the user typed to checked input tensors: image files, texts, or an `.npz` of raw tensors."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from toolkit.errors import UsageError
from toolkit.types import Dim, ModelSpec, Tensors, TensorSpec

__all__ = ["check_tensors", "encodings", "read_inputs", "read_npz", "read_text", "read_texts"]


_MASK = "[MASK]"


def read_inputs(
    arguments: Sequence[str], spec: ModelSpec, assets: Path | None, question: str | None = None
) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """What each row is called, and the input tensors.

    One `.npz` holds raw tensors for any model. Otherwise a vision model takes image files; an encoder takes
    texts, `@file` and `-` (standard input), one text a line; a model that answers questions takes the `question` too.
    In texts for a model that guesses words, [MASK] is any model's mask. Raises UsageError that names what does not fit.
    """
    if len(arguments) == 1 and arguments[0].endswith(".npz"):
        tensors = read_npz(Path(arguments[0]), spec.inputs)
        names: tuple[str, ...] = ()
    elif spec.kind == "vision":
        names, tensors = tuple(arguments), _images(arguments, spec, assets)
    elif spec.kind == "encoder":
        names = tuple(read_texts(arguments))
        tensors = _tokens(names, spec, assets, question)
    else:
        raise UsageError(
            f"the model '{spec.name}' takes raw tensors",
            hint=f"Give one .npz file with {_describe(spec.inputs)}.",
        )
    check_tensors(tensors, spec.inputs, spec.dims)
    return names, tensors


def read_npz(path: Path, specs: Sequence[TensorSpec]) -> dict[str, NDArray[Any]]:
    """The arrays of the file by name. Pickled objects are refused, not loaded."""
    hint = f"Save it with numpy.savez; it must hold {_describe(specs)}."
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}", hint=hint) from error
    except (OSError, ValueError, EOFError, KeyError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"cannot read {path} as plain arrays", hint=hint) from error
    return arrays


def read_texts(arguments: Sequence[str]) -> list[str]:
    """The arguments as texts, with `@file` and `-` replaced by the lines they hold, save blank ones."""
    texts: list[str] = []
    for argument in arguments:
        if argument == "-":
            texts += _lines(sys.stdin.read())
        elif argument.startswith("@"):
            texts += _lines(_file(Path(argument[1:])))
        else:
            texts.append(argument)
    if not texts:
        raise UsageError("there is no text", hint="Give a text, @file or - with one text a line.")
    return texts


def read_text(argument: str) -> str:
    """The argument as one text; `@file` and `-` (standard input) stand for all that they hold."""
    if argument == "-":
        return sys.stdin.read()
    return _file(Path(argument[1:])) if argument.startswith("@") else argument


def check_tensors(tensors: Tensors, specs: Sequence[TensorSpec], dims: Mapping[str, Dim]) -> None:
    """Raises UsageError for a wrong name, dtype, rank or size, and for a dimension outside its range."""
    _check_names(tensors, specs)
    sizes: dict[str, int] = {}
    for spec in specs:
        array = tensors[spec.name]
        if array.dtype.name != spec.dtype or array.ndim != len(spec.shape):
            raise UsageError(
                f"input '{spec.name}' is {array.dtype.name} {list(array.shape)}",
                hint=f"It takes {_describe([spec])}.",
            )
        for dim, size in zip(spec.shape, array.shape, strict=True):
            _check_size(spec, dim, size, dims)
            if isinstance(dim, str) and sizes.setdefault(dim, size) != size:
                raise UsageError(
                    f"dimension '{dim}' is {size} in '{spec.name}' and {sizes[dim]} in another input",
                    hint=f"It must be the same in all: {_describe(specs)}.",
                )


def _check_names(tensors: Tensors, specs: Sequence[TensorSpec]) -> None:
    known = {spec.name for spec in specs}
    wrong = [f"'{name}' is missing" for name in sorted(known - set(tensors))]
    wrong += [f"'{name}' is unknown" for name in sorted(set(tensors) - known)]
    if wrong:
        raise UsageError(f"wrong inputs: {', '.join(wrong)}", hint=f"It takes {_describe(specs)}.")


def _check_size(spec: TensorSpec, dim: int | str, size: int, dims: Mapping[str, Dim]) -> None:
    if isinstance(dim, int):
        if dim != size:
            raise UsageError(
                f"input '{spec.name}' has {size} where the model has {dim}",
                hint=f"It takes {_describe([spec])}.",
            )
        return
    allowed = dims.get(dim)
    if allowed and not allowed.min <= size <= allowed.max:
        raise UsageError(
            f"dimension '{dim}' of input '{spec.name}' is {size}, outside its range {allowed.min} to {allowed.max}",
            hint=f"Give sizes within it, or export again with --dim {dim}=MIN:OPT:MAX.",
        )


def _images(arguments: Sequence[str], spec: ModelSpec, assets: Path | None) -> dict[str, NDArray[Any]]:
    from model_zoo import _preprocess

    only = _only_input(spec)
    return {only.name: _preprocess.images([Path(argument) for argument in arguments], assets, only.shape)}


def _only_input(spec: ModelSpec) -> TensorSpec:
    if len(spec.inputs) != 1 or len(spec.inputs[0].shape) != 4:
        raise UsageError(
            f"images are not all that '{spec.name}' takes",
            hint=f"Give one .npz with {_describe(spec.inputs)}.",
        )
    return spec.inputs[0]


def encodings(texts: Sequence[str], spec: ModelSpec, assets: Path | None, question: str | None = None) -> list[Any]:
    """The tokenizer's encodings of texts as `read_inputs` feeds them: which token stands where in its text."""
    from model_zoo import _preprocess

    return _preprocess.encode(_asked(texts, spec, assets, question), assets, **_lengths(spec))


def _tokens(
    texts: Sequence[str], spec: ModelSpec, assets: Path | None, question: str | None
) -> dict[str, NDArray[Any]]:
    from model_zoo import _preprocess

    names = [item.name for item in spec.inputs]
    return _preprocess.texts(_asked(texts, spec, assets, question), assets, names, **_lengths(spec))


def _asked(
    texts: Sequence[str], spec: ModelSpec, assets: Path | None, question: str | None
) -> Sequence[str] | Sequence[tuple[str, str]]:
    from model_zoo import _preprocess

    if spec.task == "question-answering":
        if not (question and question.strip()):
            raise UsageError("there is no question", hint='Give --question "Who …?" beside the text that answers it.')
        return [(question, text) for text in texts]
    if spec.task == "fill-mask" and any(_MASK in text for text in texts):
        token, _ = _preprocess.mask_token(assets)
        return [text.replace(_MASK, token) for text in texts]
    return texts


def _lengths(spec: ModelSpec) -> dict[str, int]:
    sequence = spec.dims.get("sequence")
    return {"max_length": sequence.max, "min_length": sequence.min} if sequence else {}


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _file(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}", hint="Give a UTF-8 text file.") from error


def _describe(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]" for spec in specs)
