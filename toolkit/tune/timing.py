"""Timing an engine against the fp32 one, in interleaved rounds in this process.

A round is a turn of each: an untimed run that wakes its threads, then a few timed ones, then a rest in which the
runtime's spinning workers go to sleep, as in `toolkit.bench`. Here both live in one process, because a search opens
dozens of engines and needs no memory figures; what they share beside the process is nothing but the processor, which
they use in turn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from toolkit.bench import REST_SECONDS, Ratio, turn_ratio
from toolkit.tune.workload import Contender

__all__ = ["ROUNDS", "Stopwatch", "Timing"]

ROUNDS = 20
_TURN_SECONDS = 0.08
_FEWEST, _MOST = 2, 50
"""A turn of a small model must be longer than what other processes take the processor for."""


@dataclass(frozen=True, slots=True)
class Timing:
    """The median in milliseconds, and how many times as fast as fp32, by the medians of rounds."""

    median_ms: float
    ratio: Ratio


@dataclass
class Stopwatch:
    """The fp32 engine, kept open, against which the others run."""

    baseline: Contender
    rounds: int = ROUNDS
    runs: int = field(init=False, default=_FEWEST)

    def __post_init__(self) -> None:
        self.baseline.run()
        start = time.perf_counter()
        self.baseline.run()
        once = time.perf_counter() - start
        self.runs = int(np.clip(_TURN_SECONDS / max(once, 1e-9), _FEWEST, _MOST))

    def alone(self) -> Timing:
        """The fp32 engine by itself; its ratio is 1 by definition."""
        turns = [self._turn(self.baseline) for _ in range(self.rounds)]
        return Timing(float(np.median(np.concatenate(turns))), Ratio(1.0, 1.0, 1.0))

    def against(self, contender: Contender) -> Timing:
        """The contender beside fp32, turn by turn."""
        self._turn(contender)
        theirs, own = [], []
        for _ in range(self.rounds):
            own.append(self._turn(self.baseline))
            theirs.append(self._turn(contender))
        return Timing(float(np.median(np.concatenate(theirs))), turn_ratio(own, theirs))

    def _turn(self, contender: Contender) -> list[float]:
        """Milliseconds of the runs after one that is not counted, and a rest."""
        contender.run()
        taken = [contender.run() for _ in range(self.runs)]
        time.sleep(REST_SECONDS)
        return taken
