"""What all contenders of a model are given, as files in the work folder: weights, inputs, calibration, held-out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from held_out import held_out
from peers.models import COLUMNS, Column, Model

from model_zoo import resolve
from toolkit import plugins
from toolkit.bench import sized_inputs
from toolkit.recipe.document import Data
from toolkit.types import ModelSpec, Tensors

__all__ = ["Given", "inputs_of", "prepare_data"]


@dataclass(frozen=True, slots=True)
class Given:
    """`folder` is a Transformers folder, `task` what it was saved for; `source` and `sha256` name the held-out set."""

    folder: Path
    task: str
    calibration: Path
    held_out: tuple[Path, ...]
    source: str = ""
    sha256: str = ""


def prepare_data(work: Path, key: str, model: Model) -> Given:
    """Write what is not there yet.

    Calibration is the family's own samples, one a file with its padding cut off. Weights are those that our export
    takes, saved anew where they are random.
    """
    root, spec = work / "data" / key, _spec(model)
    if not (root / "given.json").is_file():
        shutil.rmtree(root, ignore_errors=True)
        _write_data(root, key, model, spec)
    facts = json.loads((root / "given.json").read_text())
    files = tuple(sorted((root / "held-out").glob("*.npz")))
    return Given(Path(facts["folder"]), spec.task, root / "calibration", files, facts["source"], facts["sha256"])


def inputs_of(work: Path, key: str) -> Path:
    """The inputs of a column."""
    return work / "data" / COLUMNS[key].model / f"{key}.npz"


def _spec(model: Model) -> ModelSpec:
    return resolve(model.name, weights=model.weights, offline=True)


def _write_data(root: Path, key: str, model: Model, spec: ModelSpec) -> None:
    root.mkdir(parents=True)
    family = plugins.family(spec.family)
    _write_all(root / "calibration", _samples(family.calibration(spec, Data()).batches()))
    data = held_out(spec) if model.judged else None
    _write_all(root / "held-out", data.batches() if data else ())
    for name, column in COLUMNS.items():
        if column.model == key:
            np.savez(root / f"{name}.npz", **cast("Any", _inputs(spec, column)))
    folder = root / "model" if model.weights == "random" else Path(spec.source)
    if model.weights == "random":
        cast("Any", family.load(spec)).model.save_pretrained(folder)
    facts = {"folder": str(folder), "source": data.source if data else "", "sha256": data.sha256 if data else ""}
    (root / "given.json").write_text(json.dumps(facts))


def _inputs(spec: ModelSpec, column: Column) -> Tensors:
    sample = plugins.family(spec.family).golden(spec)[0]
    return sized_inputs(spec.inputs, spec.dims, sample, column.sizes)[0]


def _samples(batches: Iterable[Tensors]) -> Iterator[Tensors]:
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            sample = {name: array[row : row + 1] for name, array in batch.items()}
            length = int(sample["attention_mask"].sum()) if "attention_mask" in sample else None
            yield sample if length is None else {name: array[:, :length] for name, array in sample.items()}


def _write_all(folder: Path, batches: Iterable[Tensors]) -> None:
    folder.mkdir(parents=True)
    for index, batch in enumerate(batches):
        np.savez(folder / f"{index:03d}.npz", **cast("Any", dict(batch)))
