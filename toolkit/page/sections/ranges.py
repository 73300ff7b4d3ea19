"""Ranges of weights and activations: what a narrow number type must hold, and where it does not."""

from __future__ import annotations

from toolkit.compare.result import Comparison, ModuleDrift
from toolkit.page.blocks import Block, Cell, Column, Details, Figure, Group, Note, Section, Table, foldable, number
from toolkit.page.charts.ranges import range_chart, widest
from toolkit.page.sources import Sources
from toolkit.page.words import counted, short

__all__ = ["ranges"]

_COLUMNS = (
    Column("module"), Column("weight", True), Column("reference output", True), Column("candidate output", True),
    Column(""),
)  # fmt: skip


def ranges(sources: Sources) -> Section:
    """A chart and its figures for each comparison that measured magnitudes."""
    lead = (
        "The largest magnitude of each module's weight (square), of its output in the reference (dot) and in the "
        "candidate (ring). What lies beyond the candidate's number type is marked as overflow."
    )
    groups = foldable(
        [
            _group(index, sources.title(each), each)
            for index, each in enumerate(sources.comparisons)
            if widest(each.modules)
        ]
    )
    why = "Ranges come from a comparison by module; none was given or made here."
    return Section("ranges", "Ranges of weights and activations", lead, groups or (Note(why, missing=True),))


def _group(index: int, title: str, comparison: Comparison) -> Group:
    shown = widest(comparison.modules)
    over = [module.module for module in comparison.modules if module.overflow]
    blocks: list[Block] = [Note(f"Beyond the candidate's number type: {', '.join(over)}.")] if over else []
    caption = f"The {len(shown)} largest of {len(comparison.modules)} modules, in order of execution."
    blocks.append(Figure(range_chart(f"ranges-{index}", comparison.modules), caption, wide=True))
    table = Table("Largest magnitudes", _COLUMNS, tuple(map(_row, comparison.modules)))
    blocks.append(Details(f"Magnitudes of all {len(comparison.modules)} modules", (table,)))
    told = f"{counted(len(over), 'module')} overflow" if over else "nothing overflows"
    return Group(f"{title}: {told}", tuple(blocks))


def _row(module: ModuleDrift) -> tuple[Cell, ...]:
    values = (
        ("weight_absmax", module.weight_absmax),
        ("reference_absmax", module.reference_absmax),
        ("candidate_absmax", module.candidate_absmax),
    )
    return (
        Cell(module.module, kind="name"),
        *(number(short(value), value, module=module.module, metric=name) for name, value in values),
        Cell("overflow", kind="fail") if module.overflow else Cell(""),
    )
