"""What a search leaves in its folder after every trial: `tune.json`, the best recipe so far, and the plot.

Each file appears whole or not at all, so whatever ends the process, the folder holds a search that can be taken up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.atomic import write_whole
from toolkit.errors import UsageError
from toolkit.recipe.document import Recipe
from toolkit.recipe.file import write_recipe
from toolkit.tune.decide import decide
from toolkit.tune.plot import pareto_svg
from toolkit.tune.result import Trial, TuneResult, read_tuning
from toolkit.tune.words import byte_words, changes_of, speed_words

__all__ = ["PLOT", "RECIPE", "RESULT", "Record"]

RESULT, RECIPE, PLOT = "tune.json", "recipe.yaml", "pareto.svg"
_ELSEWHERE = "Choose another --output."
_OTHER = "Give another --output, or move that folder away to begin anew."


@dataclass
class Record:
    """The trials so far and where they are written; `header` is all of a TuneResult that is known beforehand.

    `recipe` makes a trial's recipe file, `ran_on` is what the fp32 trial ran on.
    """

    folder: Path
    header: Mapping[str, Any]
    recipe: Callable[[Trial], Recipe]
    trials: list[Trial] = field(default_factory=list)
    ran_on: str = ""

    def take_up(self) -> None:
        """Read the trials of an earlier run. Raises UsageError where that had other settings or is damaged."""
        path = self.folder / RESULT
        if not path.exists():
            return
        try:
            earlier = read_tuning(path)
        except UsageError as error:
            raise UsageError(str(error), hint=_OTHER) from error
        if other := [name for name, value in self._flat(self.header) if dict(self._flat(vars(earlier)))[name] != value]:
            raise UsageError(f"{path} holds a search of other settings ({', '.join(other)} differ)", hint=_OTHER)
        self.trials, self.ran_on = list(earlier.trials), earlier.ran_on

    def find(self, target: str, quantization: Mapping[str, Any]) -> Trial | None:
        """The trial of that recipe, if it was tried."""
        same = (trial for trial in self.trials if (trial.target, trial.quantization) == (target, quantization))
        return next(same, None)

    def append(self, trial: Trial) -> None:
        """Add a trial and write everything."""
        self.trials.append(trial)
        self.write(finished=False)

    def write(self, *, finished: bool) -> TuneResult:
        """Write the three files and answer what `tune.json` says."""
        result = self._result(finished)
        write_whole(self.folder / RESULT, result.model_dump_json(indent=2) + "\n", hint=_ELSEWHERE)
        write_whole(self.folder / PLOT, pareto_svg(result), hint=_ELSEWHERE)
        if result.winner is not None:
            winner = result.trials[result.winner]
            write_recipe(self.recipe(winner), self.folder / RECIPE, _comment(result, winner))
        return result

    def _result(self, finished: bool) -> TuneResult:
        decision = decide(self.trials, self.header["objective"], self.header["gate"], finished=finished)
        return TuneResult(
            **self.header,
            ran_on=self.ran_on,
            trials=tuple(self.trials),
            pareto=decision.pareto,
            winner=decision.winner,
            verdict=decision.verdict,
            finished=finished,
        )

    def _flat(self, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
        own = [(name, values[name]) for name in self.header if name != "settings"]
        return [*own, *((name, values["settings"].get(name)) for name in self.header["settings"])]


def _comment(result: TuneResult, winner: Trial) -> str:
    base = result.trials[0]
    level = "" if winner.sqnr_db is None else f"SQNR {winner.sqnr_db:.1f} dB"
    facts = ", ".join(filter(None, [speed_words(winner) if winner.index else "", byte_words(winner, base), level]))
    return "\n".join(
        [
            f"toolkit tune, objective {result.objective}: trial {winner.index} of {len(result.trials)}, "
            f"{changes_of(winner)}" + ("" if result.finished else " (the search is not finished)"),
            f"measured: {facts}; {result.shape}",
            f"on {result.machine}, {result.ran_on}",
        ]
    )
