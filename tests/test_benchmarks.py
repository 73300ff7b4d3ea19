"""What is arithmetic and text in `benchmarks/`, its held-out data, and the processes that take turns."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import own_scripts
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from encoder_contenders import embedding  # noqa: E402
from export_race import OURS, THEIRS, table  # noqa: E402
from held_out import CROPS, PASSAGES, held_out, passages, photographs  # noqa: E402
from peers.results import Drift, Raced, Results, replace_section, speedup, tables, told  # noqa: E402
from turns import worker  # noqa: E402

from model_zoo import resolve  # noqa: E402
from model_zoo._text import shipped_passages  # noqa: E402

FIRST = {"date": "2026-11-28", "commit": "aaa"}


def raced(turns: dict[str, list[list[float]]], **moved: float) -> Raced:
    return Raced("MiniLM 1x128", "minilm", "2026-11-28T12:00+00:00", 0.1, turns, moved, FIRST)


def results(column: Raced, **absent: dict[str, str]) -> Results:
    labels = {"pytorch": "PyTorch", "fast": "Fast", "gone": "Gone"}
    drift = {"minilm": Drift("MiniLM", "72 held-out passages", "abc", {"fast": 0.0612}, FIRST)}
    return Results("pytorch", labels, {"minilm-1x128": column}, drift, dict(absent))


def test_a_ratio_is_the_median_over_rounds_of_ratios_of_medians() -> None:
    # The second round was disturbed for both, which leaves its ratio alone; one slow run leaves a turn's median alone.
    found = speedup(
        raced({"pytorch": [[30, 30, 90], [60, 60, 60]], "fast": [[10, 10, 10], [20, 20, 20]]}), "fast", "pytorch"
    )
    assert found is not None
    assert (found.p10, found.median, found.p90) == (3, 3, 3)
    assert speedup(raced({"pytorch": [[1.0]]}), "fast", "pytorch") is None


def test_the_table_has_a_row_for_who_ran_and_a_reason_for_who_did_not() -> None:
    lines = list(tables(results(raced({"pytorch": [[30.0]], "fast": [[10.0]]}), MiniLM={"gone": "no\nsuch wheel"})))
    assert "| contender | MiniLM 1x128 | drift MiniLM |" in lines
    assert "| PyTorch | 1 | - |" in lines
    assert "| Fast | 3.00 (3.00 to 3.00) | 0.061 |" in lines
    assert "| Fast | 10.0 |" in lines
    assert "- Absent on MiniLM: Gone (no such wheel)" in lines
    assert not any(line.startswith("| Gone") for line in lines)


def test_who_answers_something_else_is_said() -> None:
    lines = "\n".join(tables(results(raced({"pytorch": [[30.0]], "fast": [[1.0]]}, fast=1.2))))
    assert "Fast answers something else on MiniLM 1x128: relative L2 1.20" in lines


def test_results_survive_their_file(tmp_path: Path) -> None:
    kept = results(raced({"pytorch": [[30.0]]}, fast=float("inf")))
    kept.write(tmp_path / "results.json")
    assert Results.read(tmp_path / "results.json", "pytorch") == kept
    assert Results.read(tmp_path / "none.json", "pytorch") == Results("pytorch")


def test_a_column_keeps_when_it_was_measured_and_the_page_says_where_it_differs(tmp_path: Path) -> None:
    def when(measured: Results) -> str:
        return told(measured, "{date} at commit `{commit}`".format_map)

    kept = results(raced({"pytorch": [[30.0]]}))
    assert when(kept) == "2026-11-28 at commit `aaa`"
    # An older file has it once, for all columns.
    old = asdict(kept)
    for each in (*old["columns"].values(), *old["drift"].values()):
        del each["facts"]
    (tmp_path / "old.json").write_text(json.dumps({**old, "facts": FIRST}))
    read = Results.read(tmp_path / "old.json", "pytorch")
    assert read == kept
    again = {"date": "2026-11-29", "commit": "bbb"}
    read.columns["vit"] = replace(read.columns["minilm-1x128"], title="ViT", facts=again)
    read.write(tmp_path / "new.json")
    assert when(Results.read(tmp_path / "new.json", "pytorch")) == (
        "2026-11-28 at commit `aaa` (MiniLM 1x128, drift MiniLM) and 2026-11-29 at commit `bbb` (ViT)"
    )


def test_only_the_section_is_replaced() -> None:
    page = "# Head\n<!-- a -->\nold\n<!-- end of a -->\ntail\n"
    assert replace_section(page, "a", ["new"]) == "# Head\n<!-- a -->\nnew\n<!-- end of a -->\ntail\n"
    with pytest.raises(ValueError, match="no <!-- b -->"):
        replace_section(page, "b", ["new"])


def test_export_times_are_compared_round_by_round() -> None:
    ours = [{"seconds": 4.0, "peak": 1e9}, {"seconds": 8.0, "peak": 1e9}]
    theirs = [{"seconds": 6.0, "peak": 2e9}, {"seconds": 12.0, "peak": 2e9}]
    lines = list(table({OURS: ours, THEIRS: theirs}))
    assert f"| `{THEIRS}` | 9.0 (6.0 to 12.0) | 2000 | 1.50 |" in lines


def test_an_embedding_leaves_padding_out() -> None:
    hidden = np.array([[[3.0, 0.0], [0.0, 3.0], [9.0, 9.0]]], np.float32)
    found = embedding({"last_hidden_state": hidden}, {"attention_mask": np.array([[1, 1, 0]])}, "mean")
    np.testing.assert_allclose(found, [[0.5**0.5, 0.5**0.5]], rtol=1e-6)
    np.testing.assert_array_equal(embedding({"last_hidden_state": hidden}, {}, "cls"), [[3.0, 0.0]])
    np.testing.assert_array_equal(embedding({"embedding": hidden[0]}, {}, "mean"), hidden[0])


def test_held_out_passages_are_no_familys() -> None:
    found = passages()
    assert len(set(found)) == PASSAGES
    assert not set(found) & {
        text for split in ("golden", "calibration", "evaluation") for text in shipped_passages(split)
    }


def test_held_out_photographs_are_not_calibrated_on() -> None:
    crops = own_scripts.load("make_sample_data").PHOTOS.items()
    calibrated = {source for name, (source, _) in crops if name.startswith("calibration/")}
    assert not calibrated & {path.name for path in photographs()}
    data = held_out(resolve("vit-digits"))
    assert sum(len(batch["pixel_values"]) for batch in data.batches()) == data.count == CROPS


ECHO = """
import sys
sys.path.insert(0, {folder!r})
from turns import serve
def load():
    print("libraries print what they like")
    return lambda request: {{"twice": 2 * request["number"]}}
serve(load)
"""


def test_a_contender_answers_or_says_why_not(tmp_path: Path) -> None:
    script = ECHO.format(folder=str(ROOT / "benchmarks"))
    with worker([sys.executable, "-c", script], 1, tmp_path / "said.txt") as process:
        assert process.ask({"number": 21}) == {"twice": 42}
        assert process.ask({}) is None
        assert process.absent == "KeyError: 'number'"
        assert process.ask({"number": 21}) is None


def test_a_contender_that_died_is_absent(tmp_path: Path) -> None:
    script = ECHO.format(folder=str(ROOT / "benchmarks")).replace("lambda request:", "lambda request: exit(3) or")
    with worker([sys.executable, "-c", script], 1, tmp_path / "said.txt") as process:
        assert process.ask({"number": 1}) is None
        assert process.absent == "its process ended: 3"
        process.absent = ""
        assert process.ask({"number": 1}) is None
        assert process.absent == "its process ended: 3"
