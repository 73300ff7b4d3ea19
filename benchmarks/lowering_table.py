"""The figures of `benchmarks/lowering.py` as Markdown: `python benchmarks/lowering_table.py FILE.json`.

One row a form, one column a case: how many times as fast as the plain form, in brackets the 10th percentile of rounds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

CASE = ("model", "scheme", "shape", "clock")
FORM = ("subject", "form")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows of the JSON as a table; a dash where a form was not raced, or changes nothing."""
    cases = list(dict.fromkeys(tuple(row[name] for name in CASE) for row in rows))
    forms = sorted(dict.fromkeys(tuple(row[name] for name in FORM) for row in rows))
    cells = {(tuple(row[name] for name in CASE), tuple(row[name] for name in FORM)): _cell(row) for row in rows}
    head = ["subject", "form", *(_heading(*case) for case in cases)]
    lines = [head, ["---"] * len(head)]
    lines += [[*form, *(cells.get((case, form), "-") for case in cases)] for form in forms]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _heading(model: str, scheme: str, shape: str, clock: str) -> str:
    sizes = "x".join(word.split()[-1] for word in shape.split(", "))
    return f"{model} {scheme}, {sizes}, {clock}"


def _cell(row: dict[str, Any]) -> str:
    return "fails" if row["absent"] else f"{row['ratio']:.2f} ({row['p10']:.2f})"


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())["rows"]))
