"""Drift by module: where along the network the noise appears, and which modules add most of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from toolkit.compare.result import Comparison, ModuleDrift
from toolkit.page.blocks import Block, Cell, Column, Details, Figure, Group, Note, Section, Table, number
from toolkit.page.charts.layers import layer_chart
from toolkit.page.sources import Sources
from toolkit.page.words import counted, decibels, decimals, short

__all__ = ["modules"]

_GUILTY = 8
_COLUMNS = (
    Column("module"), Column("kind"), Column("SQNR, dB", True), Column("noise added", True), Column("cosine", True),
    Column("relative L2", True), Column("max abs", True), Column("verdict"),
)  # fmt: skip


def modules(sources: Sources) -> Section:
    """A chart, the guiltiest and all modules of each comparison; why, where a bundle has none."""
    lead = (
        "The output of each module against the reference's, in the order in which they run. A diamond is below the "
        "threshold; a fall from one module to the next is noise that appears there."
    )
    groups = tuple(_group(index, sources.title(each), each) for index, each in enumerate(sources.comparisons))
    notes = tuple(
        Note(f"{label}: not measured by module: {reason}", missing=True) for label, reason in sources.unmeasured
    )
    return Section("modules", "Drift by module", lead, (*groups, *notes))


def _group(index: int, title: str, comparison: Comparison) -> Group:
    blocks: list[Block] = [Note(_told(comparison))]
    if comparison.modules:
        blocks.append(Figure(layer_chart(f"layers-{index}", comparison), _caption(comparison), wide=True))
        blocks += _guilty(comparison)
        rows = tuple(_row(f"{place + 1}. ", module) for place, module in enumerate(comparison.modules))
        table = Table("All modules in order of execution", _COLUMNS, rows)
        blocks.append(Details(f"All {len(rows)} modules", (table,)))
    if comparison.skipped:
        blocks.append(
            Details(
                f"{counted(len(comparison.skipped), 'module')} that could not be looked at", (_skipped(comparison),)
            )
        )
    return Group(title, tuple(blocks))


def _told(comparison: Comparison) -> str:
    ran = (
        f"Reference: {comparison.reference_ran_on}; candidate: {comparison.candidate_ran_on}; inputs: "
        f"{comparison.inputs}."
    )
    measured = [module for module in comparison.modules if module.sqnr_db is not None]
    if comparison.first_bad is None:
        worst = min(measured, key=lambda module: module.sqnr_db or 0.0, default=None)
        lowest = f" The lowest is {worst.module}, {decibels(worst.sqnr_db)}." if worst else ""
        return f"No module is below {comparison.threshold_db:g} dB.{lowest} {ran}"
    bad = sum(module.bad for module in comparison.modules)
    below = f"{counted(bad, 'module')} of {len(comparison.modules)} below {comparison.threshold_db:g} dB"
    return f"{below}, the first is {comparison.first_bad}. {ran}"


def _caption(comparison: Comparison) -> str:
    stages = ", ".join(f"{stage.stage} ({stage.ran_on})" for stage in comparison.stages)
    return (
        f"Thin lines are the same modules after: {stages}."
        if stages
        else "The numbers are places in the list of all modules."
    )


def _guilty(comparison: Comparison) -> Iterator[Block]:
    found = {module.module: module for module in comparison.modules}
    guilty = [found[name] for name in comparison.guilty if name in found][:_GUILTY]
    if guilty:
        yield Table("Modules that add most noise, worst first", _COLUMNS, tuple(_row("", module) for module in guilty))


def _row(before: str, module: ModuleDrift) -> tuple[Cell, ...]:
    def of(metric: str, words: str, value: float | None) -> Cell:
        return number(words, value, module=module.module, metric=metric)

    return (
        Cell(before + module.module, kind="name"),
        Cell(module.kind),
        of("sqnr_db", decimals(module.sqnr_db, 1), module.sqnr_db),
        of("added", short(module.added), module.added),
        of("cosine", decimals(module.cosine, 6), module.cosine),
        of("relative_l2", short(module.relative_l2), module.relative_l2),
        of("max_abs", short(module.max_abs), module.max_abs),
        _judged(module),
    )


def _judged(module: ModuleDrift) -> Cell:
    if module.failure:
        return Cell(module.failure, kind="fail")
    return Cell("below threshold", kind="fail") if module.bad else Cell("")


def _skipped(comparison: Comparison) -> Table:
    rows: Sequence[tuple[Cell, ...]] = [
        (Cell(name, kind="name"), Cell(why)) for name, why in comparison.skipped.items()
    ]
    return Table("Modules without a tensor of their own", (Column("module"), Column("why")), tuple(rows))
