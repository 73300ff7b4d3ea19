"""When a run is recorded as a CUDA graph, and when the recording may be replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol

from toolkit.errors import StageError

__all__ = ["Recorder", "Replay"]


class Recorder(Protocol):
    """Who records what is put on a stream."""

    def record(self, enqueue: Callable[[], None]) -> Any:
        """A recording of `enqueue`, which does not run. Raises StageError where that is not possible."""
        ...

    def launch(self, graph: Any) -> None:
        """Run a recording."""
        ...

    def drop(self, graph: Any) -> None:
        """Give a recording back."""
        ...


class Replay:
    """Runs `enqueue`, or its recording.

    A run whose key (profile, shapes, addresses) is new goes plainly: TensorRT settles changed shapes in the first run
    after the change, which must not be part of a recording. The second run with that key is recorded, the following
    ones are replayed. One recording is held: it reads the context's own memory, which any other run overwrites.
    Where recording fails, all runs go plainly from then on, and `reason` says why.
    """

    def __init__(self, recorder: Recorder, *, wanted: bool) -> None:
        self._recorder, self._wanted = recorder, wanted
        self._key: Hashable = None
        self._graph: Any = None
        self.reason = "" if wanted else "CUDA graphs were not asked for"
        self.replays = 0

    def run(self, key: Hashable, enqueue: Callable[[], None]) -> None:
        """Put one run on the stream. Raises what `enqueue` raises."""
        if not self._wanted or key != self._key:
            self.forget()
            enqueue()
            self._key = key
            return
        if self._graph is None:
            self._record(enqueue)
        if self._graph is None:
            enqueue()
        else:
            self._recorder.launch(self._graph)
            self.replays += 1

    def forget(self) -> None:
        """Give the recording back."""
        if self._graph is not None:
            self._recorder.drop(self._graph)
        self._key = self._graph = None

    def _record(self, enqueue: Callable[[], None]) -> None:
        try:
            self._graph = self._recorder.record(enqueue)
        except StageError as error:
            self._wanted, self.reason = False, f"a run could not be recorded: {error}"
