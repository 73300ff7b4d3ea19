"""Exporting MiniLM beside `optimum-cli export onnx`: `python benchmarks/export_race.py [--work DIR]`.

Whole processes take turns, each writing into a new folder; an untimed turn first. Wall time is from start to exit, the
peak that of the largest process of either (`ru_maxrss`). Either runs in an environment of its own with what its users
install, as in `encoders_peers.py`. Writes a JSON file and its section of the page. Linux and macOS.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from encoders_peers import PAGE, ROOT, default_work
from peers.environments import environment
from peers.results import replace_section

from model_zoo import resolve
from toolkit.atomic import write_whole

JSON = ROOT / "benchmarks" / "results" / "export_race.json"
SECTION = "export_race"
OURS, THEIRS = "toolkit export --evaluation none", "optimum-cli export onnx"
_WHOLE, _TOKENS = "toolkit export", f"{THEIRS} --library transformers"
_UNIT = 1 if sys.platform == "darwin" else 1024

Turn = dict[str, float]
"""`seconds` and `peak` in bytes of one export."""


def main() -> int:
    """Measure and write; a process that fails ends it all with what it said."""
    options = _options()
    if options.render:
        measured = json.loads(options.json.read_text(encoding="utf-8"))
    else:
        measured = _measure(options)
        write_whole(options.json, json.dumps(measured))
    lines = list(table(measured["turns"]))
    facts = f"- Measured {measured['date']}, {measured['rounds']} rounds, load at the start {measured['load']:.1f}."
    page = options.page.read_text(encoding="utf-8")
    write_whole(options.page, replace_section(page, SECTION, ["", *lines, "", facts, ""]))
    print("\n".join(lines))
    return 0


def table(turns: Mapping[str, Sequence[Turn]]) -> Iterator[str]:
    """A row for each contender: medians over its turns with the extremes, and the ratio of times to ours."""
    yield "| export of MiniLM | seconds | peak memory MB | times as long |"
    yield "|---|---|---|---|"
    for label, done in turns.items():
        seconds, peaks = [turn["seconds"] for turn in done], [turn["peak"] / 1e6 for turn in done]
        pairs = zip(done, turns[OURS], strict=True)
        ratio = statistics.median(theirs["seconds"] / ours["seconds"] for theirs, ours in pairs)
        spread = f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
        yield f"| `{label}` | {spread} | {statistics.median(peaks):.0f} | {ratio:.2f} |"


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    commands = _commands(options)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="export-race-") as folder:
        rounds = [
            {label: _turn(command, Path(folder) / f"{index}-{place}") for place, (label, command) in
             enumerate(commands.items())}
            for index in range(options.rounds + 1)
        ]  # fmt: skip
    turns = {label: [each[label] for each in rounds[1:]] for label in commands}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": today, "rounds": options.rounds, "load": load, "turns": turns}


def _commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """What is run, up to the folder that it writes."""
    folder = resolve(options.model, offline=True).source
    toolkit = environment(options.work, "toolkit").with_name("toolkit")
    optimum = environment(options.work, "optimum-export").with_name("optimum-cli")
    ours = [str(toolkit), "export", "--model", options.model, "--target", "ort-cpu-fp32", "--offline"]
    theirs = [str(optimum), "export", "onnx", "--model", folder, "--task", "feature-extraction"]
    return {
        OURS: [*ours, "--evaluation", "none", "--output"],
        THEIRS: theirs,
        _TOKENS: [*theirs, "--library", "transformers"],
        _WHOLE: [*ours, "--output"],
    }


def _turn(command: Sequence[str], output: Path) -> Turn:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        process = subprocess.Popen([*command, str(output)], env=variables, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed: {said.read().decode(errors='replace')[-1000:]}")
    return {"seconds": round(seconds, 2), "peak": usage.ru_maxrss * _UNIT}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=default_work(), help="where optimum's environment is kept")
    parser.add_argument("--render", action="store_true", help="measure nothing, make the page of the JSON file")
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--page", type=Path, default=PAGE)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
