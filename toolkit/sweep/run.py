"""One run of a sweep: a recipe with one target, the key it is known by, and the job that a process gets."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import toolkit
from toolkit.plan import Request
from toolkit.recipe.document import Recipe
from toolkit.recipe.request import recipe_of, request_of

__all__ = ["Job", "Run", "Settings"]

_NAME_LENGTH = 100


@dataclass(frozen=True, slots=True)
class Run:
    """What is to be exported. `model` and `variant` are for people; `recipe` has one target and absolute paths.

    `key` is the SHA-256, in hex, of the recipe, the toolkit's version, and the names, sizes and times of change of
    the files that the recipe's paths lead to, folders below them left out.
    """

    model: str
    target: str
    variant: str
    recipe: Recipe
    key: str

    @classmethod
    def of(cls, recipe: Recipe, target: str, variant: str, folder: Path) -> Run:
        """The run that takes the recipe, whose relative paths start from `folder`, to one of its targets."""
        single = recipe.model_copy(update={"targets": (target,)})
        resolved = recipe_of(request_of(single, folder=folder.absolute()))
        return cls(recipe.model, target, variant, resolved, _key(resolved))

    @property
    def name(self) -> str:
        """The name of its folder and its log: like no other run's, in this sweep or another."""
        path = Path(self.recipe.model)
        model = path.name if path.exists() else self.recipe.model
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{model}-{self.target}-{self.variant}").strip("-.")
        return f"{words[:_NAME_LENGTH]}-{self.key[:8]}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all runs of a sweep: where they go, what each may take, what only the command line may allow.

    `seconds` is wall clock, `memory` bytes; None is no limit.
    """

    output: Path
    seconds: float | None = None
    memory: int | None = None
    offline: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """A run with all that another process, or another machine with the same files, needs to do it."""

    run: Run
    settings: Settings
    folder: Path = field(default_factory=Path.cwd)
    search: tuple[str, ...] = field(default_factory=lambda: tuple(filter(None, sys.path)))
    version: str = toolkit.__version__

    @property
    def place(self) -> Path:
        """Where the run's bundle goes."""
        return self.settings.output / self.run.name

    @property
    def log(self) -> Path:
        """Where all that the run says goes."""
        return self.settings.output / f"{self.run.name}.log"

    @property
    def recipe_file(self) -> Path:
        """Where the run's recipe is written."""
        return self.settings.output / f"{self.run.name}.yaml"

    def request(self) -> Request:
        """What `toolkit export --recipe` would be asked for."""
        settings = self.settings
        return request_of(
            self.run.recipe,
            output=self.place,
            offline=settings.offline,
            trust_remote_code=settings.trust_remote_code,
            command=f"toolkit export --recipe {self.recipe_file} --output {self.place}",
        )


def _key(recipe: Recipe) -> str:
    sources = [recipe.model, recipe.calibration.source, recipe.evaluation.source if recipe.evaluation else ""]
    said = {
        "toolkit": toolkit.__version__,
        "recipe": recipe.model_dump(mode="json", by_alias=True),
        "files": [_marks(Path(source)) if source else [] for source in sources],
    }
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _marks(path: Path) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of a file or of the files right in a folder, hidden ones left out."""
    if not path.exists():
        return []
    files = [path] if path.is_file() else sorted(path.iterdir())
    seen = [(file.name, file.stat()) for file in files if file.is_file() and not file.name.startswith(".")]
    return [(name, found.st_size, found.st_mtime_ns) for name, found in seen]
