"""Attention that looks elsewhere: divergence by layer and head, and the maps of a chosen input as pictures."""

from __future__ import annotations

from toolkit.compare.result import AttentionPicture, Comparison
from toolkit.page.blocks import Block, Cell, Column, Details, Figure, Group, Note, Picture, Section, Table, number
from toolkit.page.charts.heads import head_map
from toolkit.page.picture import png_address
from toolkit.page.sources import Sources
from toolkit.page.words import decimals, short

__all__ = ["attention"]

_COLUMNS = (
    Column("layer"), Column("head", True), Column("divergence, nats", True), Column("entropy of reference", True),
    Column("entropy", True), Column("same top token", True),
)  # fmt: skip

_IN_SIGHT = 3
"""How many layers' maps are shown unfolded."""


def attention(sources: Sources) -> Section:
    """A heat map, its figures and the pictures of each comparison that has attention."""
    lead = (
        "Jensen-Shannon divergence between the reference's attention and the candidate's, a mean over queries: 0 is "
        "the same map, 0.69 nats (ln 2) is nowhere alike."
    )
    groups = tuple(
        _group(index, sources.title(each), each)
        for index, each in enumerate(sources.comparisons)
        if each.attention or each.pictures
    )
    notes = tuple(Note(f"{label}: not drawn: {reason}", missing=True) for label, reason in sources.undrawn)
    why = (
        "No comparison with attention maps was given or made here."
        if sources.comparisons
        else "Attention maps come from a comparison; none was given or made here."
    )
    return Section("attention", "Attention", lead, (*(groups or (Note(why, missing=True),)), *notes))


def _group(index: int, title: str, comparison: Comparison) -> Group:
    blocks: list[Block] = []
    if comparison.attention:
        chart = head_map(f"heads-{index}", comparison.attention)
        blocks.append(Figure(chart, "Divergence in nats; the deeper the colour, the larger.", wide=True))
        blocks.append(Details(f"All {len(comparison.attention)} heads", (_figures(comparison),)))
    blocks += _pictures(comparison)
    return Group(title, tuple(blocks))


def _figures(comparison: Comparison) -> Table:
    rows = tuple(
        (
            Cell(head.module, kind="name"),
            Cell(str(head.head), str(head.head)),
            number(short(head.divergence), head.divergence, module=head.module, metric="divergence"),
            number(decimals(head.reference_entropy, 3), head.reference_entropy),
            number(decimals(head.candidate_entropy, 3), head.candidate_entropy),
            number(f"{decimals(100 * head.top1_agreement, 1)}%", head.top1_agreement),
        )
        for head in comparison.attention
    )
    return Table("Attention by layer and head", _COLUMNS, rows)


def _pictures(comparison: Comparison) -> list[Block]:
    """The pairs of maps, those of the layers that differ most in sight; the tokens of an input once."""
    if not comparison.pictures:
        return []
    apart = {(head.module, head.head): head.divergence for head in comparison.attention}
    ranked = sorted(comparison.pictures, key=lambda each: -apart.get((each.module, each.head), 0.0))
    shown, rest = ranked[:_IN_SIGHT], [each for each in comparison.pictures if each not in ranked[:_IN_SIGHT]]
    blocks: list[Block] = [Note("Rows are queries, columns keys; bright is attended. The head that differs most.")]
    for labels in dict.fromkeys(picture.labels for picture in comparison.pictures if picture.labels):
        blocks.append(Note(f"Tokens: {' '.join(labels)}"))
    blocks += [_pair(picture) for picture in shown]
    if rest:
        blocks.append(Details(f"The maps of {len(rest)} more layers", tuple(_pair(picture) for picture in rest)))
    return blocks


def _pair(picture: AttentionPicture) -> Group:
    what = f"{picture.module}, head {picture.head}, of {picture.input}"
    sides = (("reference", picture.reference_png), ("candidate", picture.candidate_png))
    pictures: list[Block] = [
        Picture(png_address(encoded, f"of {what}"), f"Attention of the {side}: {what}", side) for side, encoded in sides
    ]
    return Group(what, tuple(pictures), beside=True)
