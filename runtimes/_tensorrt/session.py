"""A `Session` over an engine: arrays go to the device and come back, through buffers that are allocated once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtimes._onnxruntime.feeds import check_feeds
from runtimes._tensorrt.memory import Staging
from runtimes._tensorrt.program import Program
from toolkit.types import DeviceMemory, Tensors

__all__ = ["EngineSession"]


class EngineSession:
    """Runs a program on host arrays; closing it closes the program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._staging = Staging(program.memory)
        self.inputs, self.outputs, self.ran_on = program.inputs, program.outputs, program.ran_on

    def run(self, inputs: Tensors) -> dict[str, NDArray[Any]]:
        """All outputs by name, in the engine's own dtypes; bf16 is `ml_dtypes.bfloat16`.

        Raises UsageError for inputs that the engine does not take, or when closed; StageError where the device fails.
        """
        feeds = check_feeds(inputs, self.inputs)
        shapes = self._program.shape({name: array.shape for name, array in feeds.items()})
        for name, array in feeds.items():
            self._program.bind(name, self._staging.send(name, array))
        sizes = {spec.name: np.dtype(spec.dtype).itemsize * _count(shapes[spec.name]) for spec in self.outputs}
        # What is written in place comes out of the input's own buffers.
        places = {name: self._program.aliases.get(name, name) for name in sizes}
        for name, size in sizes.items():
            self._program.bind(name, self._staging.reserve(places[name], size))
        self._program.enqueue()
        for name, size in sizes.items():
            self._staging.prepare(places[name], size)
            self._staging.fetch(places[name], size)
        self._program.memory.synchronize()
        return {
            spec.name: self._staging.read(places[spec.name], spec.dtype, shapes[spec.name]) for spec in self.outputs
        }

    def device_memory(self) -> DeviceMemory:
        """What the session holds of the device's memory."""
        return self._program.device_memory(self._staging.device_bytes)

    def close(self) -> None:
        """Free buffers, engine and stream; a closed session may be closed again."""
        self._staging.close()
        self._program.close()


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))
