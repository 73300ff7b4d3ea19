"""Where everything comes from: command, data, libraries, and the hash of each file."""

from __future__ import annotations

from collections.abc import Iterator

from toolkit.bundle.manifest import Manifest
from toolkit.bundle.testdata import EVALUATION
from toolkit.bundle.write import RECIPE
from toolkit.page.blocks import Block, Cell, Column, Details, Group, Section, Table, foldable
from toolkit.page.sources import Sources, Subject

__all__ = ["provenance"]

_FACTS = (Column("fact"), Column("value"))


def provenance(sources: Sources) -> Section:
    """A group a bundle."""
    lead = "The hash of every file was computed again before this page was drawn; a bundle that differs is refused."
    return Section("provenance", "Provenance", lead, foldable([_group(each) for each in sources.subjects]))


def _group(subject: Subject) -> Group:
    manifest = subject.bundle.manifest
    libraries = tuple((Cell(name, kind="name"), Cell(version)) for name, version in manifest.libraries.items())
    files = tuple((Cell(name, kind="name"), Cell(entry.sha256, kind="name")) for name, entry in manifest.files.items())
    blocks: tuple[Block, ...] = (
        Table("How it was made", _FACTS, tuple((Cell(name), Cell(value)) for name, value in _facts(subject))),
        Table("Libraries", (Column("library"), Column("version")), libraries),
        Details(f"SHA-256 of {len(files)} files", (Table("Files", (Column("file"), Column("SHA-256")), files),)),
        *_recipe(subject),
    )
    return Group(subject.label, blocks)


def _facts(subject: Subject) -> Iterator[tuple[str, str]]:
    manifest = subject.bundle.manifest
    model, calibration = manifest.model, manifest.calibration
    yield "command", manifest.command
    yield "made", f"{manifest.created:%Y-%m-%d %H:%M:%S} UTC by toolkit {manifest.toolkit}"
    yield "model", f"{model.source}" + (f" at {model.revision}" if model.revision else "")
    yield "weights", f"{model.weights}, seed {model.seed}" if model.weights == "random" else model.weights
    if manifest.allow_unfused:
        yield "attention not fused", ", ".join(manifest.allow_unfused)
    if calibration:
        yield "calibration", f"{calibration.count} samples, {calibration.method}: {calibration.source}"
        yield "calibration, SHA-256", calibration.sha256 or "not recorded"
    else:
        yield "calibration", "none: this scheme needs no data"
    held_out = manifest.files.get(EVALUATION)
    yield "evaluation", f"{manifest.evaluation}, in {EVALUATION}" if manifest.evaluation else "no task metric"
    if held_out:
        yield "evaluation, SHA-256 of the file", held_out.sha256
    yield from _data(manifest)
    for name, dim in manifest.dims.items():
        yield f"dim {name}", f"{dim.min} to {dim.max}, tuned for {dim.opt}"


def _data(manifest: Manifest) -> Iterator[tuple[str, str]]:
    data, overlap = manifest.evaluation_data, manifest.overlap
    if data:
        drawn = f" of {data.total}, seed {data.seed}" if data.total is not None else ""
        yield "evaluation data", f"{data.count} samples{drawn}: {data.source}"
        yield "evaluation data, SHA-256", data.sha256
    if overlap:
        yield "evaluation samples that were calibrated on too", str(overlap)


def _recipe(subject: Subject) -> Iterator[Details]:
    """The recipe that the bundle carries, line by line, where it carries one."""
    if RECIPE not in subject.bundle.manifest.files:
        return
    lines = subject.bundle.path(RECIPE).read_text(encoding="utf-8", errors="replace").splitlines()
    table = Table(RECIPE, (Column("line"),), tuple((Cell(line, kind="name"),) for line in lines))
    yield Details("The recipe it was made with", (table,))
