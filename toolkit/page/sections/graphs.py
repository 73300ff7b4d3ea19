"""What became of the graph: operators before and after, number types of the weights, sizes of the files."""

from __future__ import annotations

from collections.abc import Mapping

from toolkit.compiled import built_engines
from toolkit.console import byte_size
from toolkit.page.blocks import Block, Cell, Column, Group, Note, Section, Table, foldable
from toolkit.page.sources import Sources, Subject
from toolkit.page.words import MISSING

__all__ = ["graphs"]


def graphs(sources: Sources) -> Section:
    """A group a bundle."""
    lead = (
        "Operators of the canonical graph that was exported, and of the graph that ships in the runtime's own dialect."
    )
    return Section(
        "graphs", "Operators, weights and files", lead, foldable([_group(each) for each in sources.subjects])
    )


def _group(subject: Subject) -> Group:
    blocks: list[Block] = [
        Note(_told(subject)),
        _operators(subject),
        Group("", (_weights(subject), _files(subject)), beside=True),
    ]
    engines = built_engines(subject.bundle.manifest.engine.details)
    if engines:
        rows = tuple(
            (
                Cell(each.architecture),
                Cell(byte_size(each.bytes), str(each.bytes)),
                Cell(each.fused_words),
                Cell(each.gemm_words),
            )
            for each in engines
        )
        columns = (Column("architecture"), Column("size", True), Column("attentions fused"), Column("products"))
        blocks.append(Table("Engines, as their builder describes them", columns, rows))
    return Group(subject.label, tuple(blocks))


def _told(subject: Subject) -> str:
    graph = subject.graph
    opsets = ", ".join(f"{domain} {version}" for domain, version in graph.opsets.items())
    fused = sum(graph.attention.values())
    quantized = sum(graph.quantized.values())
    return (
        f"The graph that ships ({opsets}) has {quantized} of {graph.linears} Linears quantized "
        f"and {fused} fused attention nodes."
    )


def _operators(subject: Subject) -> Table:
    before = _flat(subject.bundle.manifest.canonical)
    after = _flat(subject.graph.operators)
    names = sorted(before | after, key=lambda name: (-max(before.get(name, 0), after.get(name, 0)), name))
    rows = tuple(
        (
            Cell(name, kind="name"),
            _count(before.get(name, 0)) if before else Cell(MISSING),
            _count(after.get(name, 0)),
            _change(before.get(name, 0), after.get(name, 0)) if before else Cell(MISSING),
        )
        for name in names
    )
    known = "" if before else "; of the canonical graph this bundle records nothing"
    columns = (Column("operator"), Column("canonical", True), Column("shipped", True), Column("change", True))
    return Table(f"Operators before and after{known}", columns, rows)


def _flat(operators: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {
        name if domain == "ai.onnx" else f"{domain}::{name}": count
        for domain, counts in operators.items()
        for name, count in counts.items()
    }


def _count(count: int) -> Cell:
    return Cell(str(count), str(count))


def _change(before: int, after: int) -> Cell:
    return Cell(f"{after - before:+d}" if after != before else "0", str(after - before))


def _weights(subject: Subject) -> Table:
    total = sum(subject.graph.weights.values())
    rows = tuple(
        (Cell(dtype), Cell(byte_size(size), str(size)), Cell(f"{100 * size / total:.1f}%" if total else MISSING))
        for dtype, size in subject.graph.weights.items()
    )
    return Table("Number types of the weights", (Column("type"), Column("size", True), Column("share", True)), rows)


def _files(subject: Subject) -> Table:
    rows = tuple(
        (Cell(name, kind="name"), Cell(byte_size(entry.bytes), str(entry.bytes)))
        for name, entry in subject.bundle.manifest.files.items()
        if not name.startswith("test_data_set_")
    )
    return Table("Files, but golden inputs and outputs", (Column("file"), Column("size", True)), rows)
