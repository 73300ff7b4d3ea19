"""Your own `nn.Module`, given as `module:factory`; it says what it takes with `example_inputs`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from model_zoo import _calibration, _dims, _user_data
from model_zoo._arrays import array_feed
from model_zoo._calibration import OWN
from model_zoo._user_data import Feed
from toolkit.data_source import parse_source
from toolkit.errors import StageError, UsageError
from toolkit.recipe.document import Data
from toolkit.types import Calibration, Evaluation, ModelRequest, ModelSpec, Tensors, TensorSpec

__all__ = ["FAMILY", "MODEL_TYPES", "NAMES"]

MODEL_TYPES: list[str] = []
NAMES: dict[str, str] = {}

_WANTED = (
    "Let the factory return the module, with `example_inputs` (a dict of tensors by argument name, or a function "
    "that returns one) on it, or the pair (module, example_inputs). Axis 0 of each tensor is the batch."
)
_GOLDEN_ROWS = (1, 3)


class NamedOutputs(nn.Module):
    """Any module with its outputs as a dict: a single tensor becomes `output`, a tuple `output_0`, `output_1`, …"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """The module's tensors by name."""
        result = self.model(**inputs)
        if isinstance(result, torch.Tensor):
            return {"output": result}
        if isinstance(result, Mapping):
            return {str(name): value for name, value in result.items() if isinstance(value, torch.Tensor)}
        return {f"output_{index}": value for index, value in enumerate(result) if isinstance(value, torch.Tensor)}


class Module:
    """A factory is called with no arguments under `seed`; what it returns is exported as it is."""

    def describe(self, request: ModelRequest) -> ModelSpec:
        """The spec; outputs and their batch axis are learnt by running the example."""
        if request.weights == "random":
            raise UsageError(
                "--weights random does not go with module:factory",
                hint="The factory makes the weights; seed with --seed.",
            )
        model, example = _make(request.source, request.seed)
        rows = _rows(example)
        spec_inputs = tuple(
            TensorSpec(name, _dtype(tensor), ("batch", *tensor.shape[1:])) for name, tensor in example.items()
        )
        return ModelSpec(
            name=request.name,
            family="module",
            kind="module",
            task="raw",
            source=request.source,
            architecture=type(model.model).__name__,
            inputs=spec_inputs,
            outputs=_outputs(model, example, rows),
            dims=_dims.merge({"batch": _dims.BATCH}, request.dims, {}),
            seed=request.seed,
        )

    def load(self, spec: ModelSpec) -> nn.Module:
        """The module in eval mode, fp32. Raises UsageError for a NaN in its weights."""
        model, _ = _make(spec.source, spec.seed)
        for name, tensor in model.model.named_parameters():
            if not torch.isfinite(tensor).all():
                raise UsageError(f"weight '{name}' holds NaN or infinity", hint="Load sound weights in the factory.")
        return model

    def golden(self, spec: ModelSpec) -> tuple[Tensors, ...]:
        """The example inputs, then their rows repeated to other batch sizes."""
        _, example = _make(spec.source, spec.seed)
        own = _rows(example)
        sizes = dict.fromkeys(_dims.within(rows, spec.dims["batch"]) for rows in (own, *_GOLDEN_ROWS))
        return tuple(_numpy(_resized(example, rows)) for rows in sizes)

    def calibration(self, spec: ModelSpec, data: Data = OWN) -> Calibration:
        """An `.npz` of inputs, or the example inputs."""
        if data.source:
            return _user_data.calibration(spec, data, _feed(spec, data), 8)
        _, example = _make(spec.source, spec.seed)
        rows = _dims.within(min(_rows(example), data.count or _calibration.COUNT), spec.dims["batch"])
        batch = _numpy(_resized(example, rows))
        return _calibration.hashed(lambda: iter([batch]), rows, "the module's own example inputs")

    def evaluation(self, spec: ModelSpec, data: Data = OWN) -> Evaluation | None:
        """An `.npz` of inputs, with `labels` where the output is scores of classes; none of its own."""
        return _user_data.evaluation(spec, data, _feed(spec, data), 8) if data.source else None

    def assets(self, spec: ModelSpec) -> tuple[Path, ...]:
        """None."""
        del spec
        return ()


def _feed(spec: ModelSpec, data: Data) -> Feed:
    source = parse_source(data)
    if source.suffix != ".npz" or source.path is None:
        raise UsageError(
            f"{data.source} cannot feed your own module", hint="Give an .npz file, one array for each input."
        )
    return array_feed(source.path, spec)


def _make(source: str, seed: int) -> tuple[NamedOutputs, dict[str, torch.Tensor]]:
    factory = _import(source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            made = factory()
            pair = made if isinstance(made, tuple) and len(made) == 2 else (made, getattr(made, "example_inputs", None))
            model, example = pair
            example = example() if callable(example) else example
        except Exception as error:
            raise StageError(
                "resolve", f"{source}() raised {type(error).__name__}: {error}", hint="It is called with no arguments."
            ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{source}() returned a {type(model).__name__}, not an nn.Module", hint=_WANTED)
    return NamedOutputs(model).eval().float(), _checked(source, example)


def _import(source: str) -> Callable[[], Any]:
    module, _, name = source.partition(":")
    try:
        found: Callable[[], Any] | None = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"cannot import '{module}': {error}", hint="Run from the folder that holds it, or install it."
        ) from error
    except Exception as error:
        raise StageError("resolve", f"importing {module} raised {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UsageError(f"'{module}' has no function '{name}'", hint=_WANTED)
    return found


def _checked(source: str, example: Any) -> dict[str, torch.Tensor]:
    if not isinstance(example, Mapping) or not example:
        raise UsageError(f"{source}() gave no example inputs", hint=_WANTED)
    odd = [name for name, value in example.items() if not isinstance(value, torch.Tensor) or value.ndim == 0]
    if odd:
        raise UsageError(f"example inputs {', '.join(map(str, odd))} are not tensors with a batch axis", hint=_WANTED)
    if len({len(value) for value in example.values()}) != 1:
        raise UsageError("example inputs differ in their size along axis 0", hint=_WANTED)
    return {str(name): value.detach() for name, value in example.items()}


def _outputs(model: nn.Module, example: Mapping[str, torch.Tensor], rows: int) -> tuple[TensorSpec, ...]:
    small, large = (_run(model, _resized(example, size)) for size in (rows + 1, rows + 2))
    if not small:
        raise UsageError("the module returns no tensors", hint="Return a tensor, a tuple or a dict of tensors.")
    for name, value in small.items():
        if not value.ndim or (len(value), len(large[name])) != (rows + 1, rows + 2):
            raise UsageError(
                f"output '{name}' has the shape {tuple(value.shape)} for {rows + 1} rows",
                hint="Axis 0 of each output must be the batch, as it is for the inputs.",
            )
    return tuple(TensorSpec(name, _dtype(value), ("batch", *value.shape[1:])) for name, value in small.items())


@torch.no_grad()
def _run(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    try:
        result: dict[str, torch.Tensor] = model(**inputs)
    except Exception as error:
        rows = _rows(inputs)
        raise UsageError(
            f"the module fails on its example inputs with {rows} rows: {type(error).__name__}: {error}", hint=_WANTED
        ) from error
    return result


def _rows(example: Mapping[str, torch.Tensor]) -> int:
    return len(next(iter(example.values())))


def _resized(example: Mapping[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
    order = torch.arange(rows) % _rows(example)
    return {name: tensor[order] for name, tensor in example.items()}


def _numpy(example: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy() for name, tensor in example.items()}


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


FAMILY = Module()
