"""A compiled model on the CPU device, as the line runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes.openvino.library import CPU, as_stage_error, core, properties, version
from toolkit.errors import StageError, UnsupportedError, UsageError
from toolkit.inputs import check_tensors
from toolkit.types import Tensors, TensorSpec

__all__ = ["ENGINE_FILE", "OpenVinoSession", "open_session"]

ENGINE_FILE = "model.xml"


class OpenVinoSession:
    """An intermediate representation compiled for this processor. Inputs are read where they lie, outputs are copied.

    `inputs` are the model's own, whose named dimensions the representation does not keep.
    Raises MissingDependencyError without the library, StageError where the file is missing or does not load.
    """

    def __init__(self, path: Path, inputs: Sequence[TensorSpec]) -> None:
        if not path.is_file():
            raise StageError("session", f"there is no engine file {path}", hint="Export it first, or check the path.")
        self.inputs = tuple(inputs)
        self.ran_on = f"{version()} {CPU}"
        with as_stage_error("session", f"cannot open {path}"):
            self.compiled: Any = core().compile_model(path, CPU, dict(properties()))
            self._request: Any = self.compiled.create_infer_request()
        self._outputs = [(sorted(port.get_names()), port) for port in self.compiled.outputs]

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name.

        Raises UsageError for what it does not take, or when the session is closed; StageError where OpenVINO fails.
        """
        if self._request is None:
            raise UsageError("the session is closed", hint="Open it again.")
        feeds = {name: np.asarray(array) for name, array in inputs.items()}
        check_tensors(feeds, self.inputs, {})
        with as_stage_error("run", "the engine"):
            results = self._request.infer(
                {name: np.ascontiguousarray(array) for name, array in feeds.items()}, share_inputs=True
            )
            return {name: results[port] for names, port in self._outputs for name in names}

    def close(self) -> None:
        """Free the compiled model, its weights and its threads."""
        self._request = self.compiled = None
        self._outputs = []


def open_session(folder: Path, engine: Mapping[str, Any]) -> OpenVinoSession:
    """The session of a bundle's engine entry.

    Raises UnsupportedError where nothing was built, UsageError for an entry that does not say what the engine takes.
    """
    if ENGINE_FILE not in engine.get("files", ()):
        raise UnsupportedError(f"there is no OpenVINO engine, only its graph: {engine.get('reason', '')}")
    try:
        inputs = [TensorSpec(**{**item, "shape": tuple(item["shape"])}) for item in engine["details"]["inputs"]]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"the engine's entry in {folder} does not say what it takes",
            hint="The bundle's manifest is damaged; export it again.",
        ) from error
    return OpenVinoSession(folder / ENGINE_FILE, inputs)
