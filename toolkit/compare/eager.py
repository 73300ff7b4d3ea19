"""The reference side: the eager fp32 PyTorch model, its modules watched by hooks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from exporters.reference import TorchSession
from toolkit.compare.keys import Key
from toolkit.compare.store import Store
from toolkit.types import Tensors
from toolkit.weight_names import WRAPPERS, canonical_weight

__all__ = ["Watched", "paths_of", "watch"]


@dataclass(slots=True)
class Watched:
    """What the modules of one side are: classes and largest weights by path, and why a module has no tensor."""

    ran_on: str
    kinds: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def watch(module: nn.Module, keys: Collection[Key], batches: Sequence[Tensors], store: Store) -> Watched:
    """Run the module on all batches and put what `keys` name into the store, each tensor as soon as it is there.

    Module outputs are their first floating tensor. A module that runs more than once in a pass has no one output; its
    path is answered with that reason. Raises StageError where the model fails.
    """
    session = TorchSession(module)
    watcher = _Watcher(store, frozenset(keys))
    seen = Watched(session.ran_on)
    hooks = [hook for path, each in _named(module).items() for hook in watcher.attach(path, each)]
    try:
        for index, batch in enumerate(batches):
            watcher.begin(index)
            outputs = session.run(batch)
            watcher.answers(outputs)
    finally:
        for hook in hooks:
            hook.remove()
    _describe(module, seen)
    for path, times in watcher.times.items():
        if times > 1:
            seen.skipped[path] = f"runs {times} times in one pass, so it has no one output"
            store.drop(Key("out", path))
            store.drop(Key("in", path))
    return seen


def paths_of(module: nn.Module) -> frozenset[str]:
    """The paths of the modules in it, as graphs have them."""
    return frozenset(_named(module))


class _Watcher:
    def __init__(self, store: Store, keys: frozenset[Key]) -> None:
        self._store, self._keys = store, keys
        self._batch = 0
        self._calls: Counter[str] = Counter()
        self.times: dict[str, int] = {}

    def begin(self, batch: int) -> None:
        self._batch = batch
        self._calls.clear()

    def attach(self, path: str, module: nn.Module) -> list[Any]:
        def before(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            self._put(Key("in", path), [*arguments, *named.values()])

        def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            self._calls[path] += 1
            self.times[path] = max(self.times.get(path, 0), self._calls[path])
            self._put(Key("out", path), output)

        hooks: list[Any] = []
        if Key("in", path) in self._keys:
            hooks.append(module.register_forward_pre_hook(before, with_kwargs=True))
        if Key("out", path) in self._keys or hooks:
            hooks.append(module.register_forward_hook(after))
        return hooks

    def answers(self, outputs: Tensors) -> None:
        for name, array in outputs.items():
            if Key("answer", name) in self._keys:
                self._store.put(self._batch, Key("answer", name), array)

    def _put(self, key: Key, found: Any) -> None:
        tensor = _first(found)
        if key in self._keys and tensor is not None:
            # Copied, since the model may write into it before the array is on disk.
            self._store.put(self._batch, key, np.ascontiguousarray(tensor.detach().float().numpy()))


def _first(found: Any) -> Tensor | None:
    """The first floating tensor of a tensor, a sequence, or a model's own output class."""
    if isinstance(found, Tensor):
        return found if found.is_floating_point() else None
    if isinstance(found, Mapping):
        found = list(found.values())
    if not isinstance(found, list | tuple):
        return None
    return next((tensor for item in found if (tensor := _first(item)) is not None), None)


def _named(module: nn.Module) -> dict[str, nn.Module]:
    """The modules by the path that graphs have; the model itself has none."""
    named = {_path(name): each for name, each in module.named_modules(remove_duplicate=False)}
    return {path: each for path, each in named.items() if path}


def _path(name: str) -> str:
    # The exporter wraps the module once more before it strips the wrappers.
    return canonical_weight(f"{WRAPPERS[0]}{name}.").removesuffix(".")


def _describe(module: nn.Module, seen: Watched) -> None:
    for path, each in _named(module).items():
        seen.kinds[path] = type(each).__name__
        weight = getattr(each, "weight", None)
        if isinstance(weight, Tensor) and weight.is_floating_point() and weight.numel():
            low, high = weight.detach().aminmax()
            seen.weights[path] = max(abs(float(low)), abs(float(high)))
