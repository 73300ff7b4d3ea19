"""A saved package as something that answers: interpreted on any machine, or by Core ML itself on macOS."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtimes.coreml.interpreter import Interpreter, held
from runtimes.coreml.program import Declared, Feature, Program, read_program
from toolkit.errors import StageError, UnsupportedError

__all__ = ["Interpreted", "Model", "Native", "State", "package_of"]

_PACKAGE = ".mlpackage"
_NEWEST = "Core ML runs on macOS 15 and iOS 18 or newer"


class State(Protocol):
    """What a model keeps between calls, by name."""

    def read(self, name: str) -> NDArray[Any]:
        """A copy of one state."""
        ...

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Replace one state by an array of its shape."""
        ...


class Model(Protocol):
    """A package that was opened; sizes and dtypes of `inputs` and `outputs` are those that it declares."""

    ran_on: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    states: tuple[Declared, ...]

    def new_state(self) -> State:
        """States as a model begins with them: zeros."""
        ...

    def run(self, feeds: Mapping[str, NDArray[Any]], state: State) -> dict[str, NDArray[Any]]:
        """All outputs by name; changes the state. Raises StageError where the model cannot run."""
        ...


class Interpreted:
    """The package read back and run in torch; its weights are those that were saved."""

    def __init__(self, package: Path) -> None:
        program = read_program(package)
        self._set(program)
        self._interpreter = Interpreter(program)
        self.ran_on = (
            f"MIL interpreter (torch {torch.__version__.partition('+')[0]}), float16 rounded; "
            "Apple's kernels were not run"
        )

    def _set(self, program: Program) -> None:
        self.inputs, self.outputs, self.states = program.inputs, program.outputs, program.states

    def new_state(self) -> _Held:
        """Zeros."""
        return _Held(self._interpreter.new_states(), {item.name: item.dtype for item in self.states})

    def run(self, feeds: Mapping[str, NDArray[Any]], state: State) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises StageError where an operator does not take what it was given."""
        if not isinstance(state, _Held):
            raise TypeError("a state of another model")
        return self._interpreter.run(feeds, state.values)


class _Held:
    """The interpreter's states."""

    def __init__(self, values: dict[str, Tensor], dtypes: Mapping[str, str]) -> None:
        self.values, self._dtypes = values, dtypes

    def read(self, name: str) -> NDArray[Any]:
        """In the dtype that the program declares."""
        return self.values[name].numpy().astype(self._dtypes[name])

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Rounded to the declared dtype."""
        value = held(array, self._dtypes[name])
        if value.shape != self.values[name].shape:
            raise ValueError(f"state '{name}' is {list(self.values[name].shape)}, not {list(array.shape)}")
        self.values[name] = value


class Native:
    """Core ML's own runtime, which chooses among the processor, the GPU and the Neural Engine; on macOS only."""

    def __init__(self, package: Path) -> None:
        # Asked of the module, not of `sys.platform`, which type checkers take for a constant.
        if platform.system() != "Darwin":
            raise UnsupportedError(
                f"{_NEWEST}; this is {platform.system()}", hint="Run the bundle's selftest.swift on a Mac or a device."
            )
        import coremltools as ct

        program = read_program(package)
        self.inputs, self.outputs, self.states = program.inputs, program.outputs, program.states
        try:
            self._model = ct.models.MLModel(str(package))
        except Exception as error:  # the framework's errors come as RuntimeError, coremltools' own as Exception
            raise StageError("session", f"Core ML refused {package}: {error}", hint=f"{_NEWEST}.") from error
        self.ran_on = f"Core ML (coremltools {ct.__version__}), all compute units"

    def new_state(self) -> State:
        """What the framework makes; a model without states has none."""
        return _Native(self._model.make_state() if self.states else None)

    def run(self, feeds: Mapping[str, NDArray[Any]], state: State) -> dict[str, NDArray[Any]]:
        """All outputs by name. Raises StageError with the framework's own words."""
        if not isinstance(state, _Native):
            raise TypeError("a state of another model")
        try:
            answer = self._model.predict(dict(feeds), state=state.own)
        except Exception as error:
            raise StageError("session", f"Core ML: {error}", hint="See the device's log.") from error
        return {item.name: np.asarray(answer[item.name]) for item in self.outputs}


class _Native:
    """`coremltools.models.model.MLState`, or nothing."""

    def __init__(self, own: Any) -> None:
        self.own = own

    def read(self, name: str) -> NDArray[Any]:
        """A copy of the framework's buffer."""
        return np.asarray(self.own.read_state(name))

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Into the framework's buffer."""
        self.own.write_state(name, array)


def package_of(folder: Path, engine: Mapping[str, Any]) -> Path:
    """The `.mlpackage` among an engine's files. Raises UnsupportedError where there is none."""
    for file in engine.get("files", ()):
        for part in (PurePosixPath(file), *PurePosixPath(file).parents):
            if part.suffix == _PACKAGE:
                return folder / part
    raise UnsupportedError(
        f"{folder} holds no Core ML package",
        hint="Export again where coremltools is installed: pip install 'transformer-export-toolkit[coreml]'.",
    )
