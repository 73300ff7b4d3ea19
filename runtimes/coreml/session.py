"""Sessions over a Core ML package: the canonical inputs go in, the canonical outputs come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.coreml.model import Model, State
from runtimes.coreml.names import coreml_name
from runtimes.coreml.program import Feature
from toolkit.cache_names import ATTENTION_MASK, WRITE_INDICES, is_past, present_of
from toolkit.errors import UsageError
from toolkit.generation.rows import Rows
from toolkit.generation.static_cache import buffer_feeds, growing, has_static_cache
from toolkit.types import DecoderSpec, Session, Tensors, TensorSpec

__all__ = ["CoreMLDecoder", "CoreMLSession", "StatefulSession", "inputs_of", "open_session"]

_IDS = "input_ids"
_LENGTH_AXIS = 2
_ACCEPTED = {
    "int32": ("int64", "int32", "bool"),
    "int8": ("int8",),
    "float16": ("float32", "float16"),
    "float32": ("float32",),
    "float64": ("float64", "float32"),
}
_ANSWERED = {"float16": "float32", "int32": "int64"}
"""Core ML has no int64, and what it answers in float16 is compared in float32."""


def open_session(model: Model, engine: Mapping[str, Any]) -> Session:
    """The model behind the canonical interface, by the engine's entry in a manifest."""
    inputs, outputs = inputs_of(engine), engine.get("details", {}).get("graph_outputs", ())
    if has_static_cache(inputs):
        return growing(StatefulSession(model, inputs))
    return CoreMLSession(model, outputs)


def inputs_of(engine: Mapping[str, Any]) -> tuple[TensorSpec, ...]:
    """What the graph takes that the package was made of, by the engine's entry in a manifest."""
    given = engine.get("details", {}).get("graph_inputs", ())
    return tuple(TensorSpec(each["name"], each["dtype"], tuple(each["shape"])) for each in given)


class CoreMLSession:
    """A model without states. int64 is fed as int32, float32 as the package's float16; answers are wide again."""

    def __init__(self, model: Model, outputs: Sequence[str] = ()) -> None:
        self.ran_on = model.ran_on
        self._model = model
        self._names = {coreml_name(name): name for name in outputs}

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises UsageError for a name, dtype, rank or size that the package does not take."""
        feeds = checked_feeds(inputs, self._model.inputs)
        answers = self._model.run(feeds, self._model.new_state())
        return {self._names.get(name, name): _wide(array) for name, array in answers.items()}

    def close(self) -> None:
        """The model goes with the session."""


class StatefulSession:
    """A language model whose cache Core ML keeps as states, run with any cache: it goes in and comes out as buffers.

    Rows go one by one, each with states of its own. For checking, not for speed.
    """

    def __init__(self, model: Model, inputs: Sequence[TensorSpec]) -> None:
        self.ran_on = model.ran_on
        self.inputs = tuple(inputs)
        self._model = model
        self._caches = [item.name for item in inputs if is_past(item.name)]

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name, and each `present` [B, Hkv, L, D] as its state was left."""
        _check_names([item.name for item in self.inputs], inputs)
        rows = [
            self._row({name: np.asarray(array)[row : row + 1] for name, array in inputs.items()})
            for row in range(len(next(iter(inputs.values()))))
        ]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def close(self) -> None:
        """The model goes with the session."""

    def _row(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        state = self._model.new_state()
        for name in self._caches:
            state.write(coreml_name(name), inputs[name])
        feeds = checked_feeds(_without_unused(inputs), self._model.inputs)
        answers = {name: _wide(array) for name, array in self._model.run(feeds, state).items()}
        return answers | {present_of(name): _wide(state.read(coreml_name(name))) for name in self._caches}


class CoreMLDecoder(Rows):
    """Drives a package whose cache is kept as states, a state a row; see `Decoder`.

    Raises UsageError for a limit beyond the states' length, or a limit or rows below 1.
    """

    def __init__(self, model: Model, inputs: Sequence[TensorSpec], spec: DecoderSpec, *, limit: int, rows: int) -> None:
        super().__init__(spec, limit=limit, rows=rows)
        self.ran_on = model.ran_on
        self._model = model
        self._length = next(int(item.shape[_LENGTH_AXIS]) for item in inputs if is_past(item.name))
        if limit > self._length:
            raise UsageError(
                f"a cache of {limit} positions, the package's states hold {self._length}",
                hint=f"Give --context {self._length} or less, or export again with a larger --dim total_sequence.",
            )
        self.start(rows)

    def start(self, rows: int) -> None:
        """Begin anew with empty states. Raises UsageError for more rows than were asked for."""
        super().start(rows)
        self._states: list[State] = [self._model.new_state() for _ in range(rows)]

    def forward(
        self, tokens: NDArray[np.int64], lengths: NDArray[np.int64], *, every: bool = False
    ) -> NDArray[np.float32]:
        """Append tokens, each row without its padding, and answer logits; see `Decoder.forward`."""
        self._check(tokens, lengths, every)
        rows = []
        for row, real in enumerate(lengths):
            logits = self._row(row, tokens[row : row + 1, :real])
            missing = 0 if self._spec.last_logits else tokens.shape[1] - int(real)
            rows.append(np.pad(logits, ((0, 0), (0, missing), (0, 0))))
        self._lengths = self._lengths + lengths
        return self._answer(np.concatenate(rows), lengths, every)

    def close(self) -> None:
        """Let the states go."""
        self._states = []

    def _row(self, row: int, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits [1, S or 1, V] of one row's new tokens."""
        before, count = self._lengths[row : row + 1], np.array([tokens.shape[1]])
        names = {feature.name for feature in self._model.inputs}
        every = buffer_feeds(tokens, before, count, int(before[0]) + tokens.shape[1])
        feeds = checked_feeds(
            {name: array for name, array in every.items() if coreml_name(name) in names}, self._model.inputs
        )
        return _wide(self._model.run(feeds, self._states[row])["logits"]).astype(np.float32, copy=False)


def _without_unused(inputs: Tensors) -> dict[str, NDArray[Any]]:
    """One row's inputs beside its cache, the mask cut behind the last new token: no place beyond it is then read."""
    feeds = {name: np.asarray(array) for name, array in inputs.items() if not is_past(name)}
    if ATTENTION_MASK in feeds:
        end = int(feeds[WRITE_INDICES][0]) + feeds[_IDS].shape[1]
        feeds[ATTENTION_MASK] = feeds[ATTENTION_MASK][:, :end]
    return feeds


def checked_feeds(inputs: Tensors, features: Sequence[Feature]) -> dict[str, NDArray[Any]]:
    """The inputs by the package's names, in its dtypes.

    Raises UsageError for a name, dtype, rank, size or integer that it does not take.
    """
    named = {coreml_name(name): (name, np.asarray(array)) for name, array in inputs.items()}
    _check_names([feature.name for feature in features], named)
    return {feature.name: _fed(*named[feature.name], feature) for feature in features}


def _check_names(known: Sequence[str], given: Mapping[str, Any]) -> None:
    missing, unknown = [name for name in known if name not in given], [name for name in given if name not in known]
    if missing or unknown:
        said = [f"missing: {', '.join(missing)}"] if missing else []
        said += [f"unknown: {', '.join(unknown)}"] if unknown else []
        raise UsageError(f"wrong input names ({'; '.join(said)})", hint=f"It takes: {', '.join(known)}.")


def _fed(name: str, array: NDArray[Any], feature: Feature) -> NDArray[Any]:
    accepted = _ACCEPTED[feature.dtype]
    if array.dtype.name not in accepted:
        raise UsageError(
            f"input '{name}' is {array.dtype.name}, not {accepted[0]}", hint=f"It takes: {_described(name, feature)}."
        )
    fits = len(feature.ranges) == array.ndim and all(
        low <= size and (high is None or size <= high)
        for size, (low, high) in zip(array.shape, feature.ranges, strict=True)
    )
    if not fits:
        raise UsageError(
            f"input '{name}' has shape {list(array.shape)}", hint=f"It takes: {_described(name, feature)}."
        )
    fed = array.astype(feature.dtype)
    if feature.dtype == "int32" and (fed != array).any():
        raise UsageError(f"input '{name}' holds numbers beyond int32", hint="Core ML has no wider integers.")
    return fed


def _described(name: str, feature: Feature) -> str:
    sizes = [str(low) if low == high else f"{low} to {high or 'any'}" for low, high in feature.ranges]
    return f"{name} {_ACCEPTED[feature.dtype][0]} [{', '.join(sizes)}]"


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(_ANSWERED.get(array.dtype.name, array.dtype), copy=False)
