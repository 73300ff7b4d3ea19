"""Encoders and vision transformers beside their peers: `python benchmarks/encoders_peers.py [--work DIR]`.

Makes what it needs (environments, exports, quantizations and bundles, kept in the work folder), races the contenders of
each column in interleaved rounds, measures drift on held-out data, and writes the JSON file and the page. A column that
is asked for with --only replaces what the JSON file had of it; the rest stays, with the time and commit of its own.
`--render` makes the page of the JSON file again. Needs Linux, Python's venv and a C++ compiler (for torch.compile).
"""

from __future__ import annotations

import argparse
import datetime
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import platformdirs
from peers.artefacts import NotMadeError, build_bundles, peer_artefact
from peers.contenders import PEERS, REFERENCE, TARGETS, Contender, own
from peers.data import Given, inputs_of, prepare_data
from peers.environments import ENVIRONMENTS, environment
from peers.models import COLUMNS, MODELS
from peers.race import Entry, Pace, drifts, open_entries, race
from peers.results import Drift, Facts, Raced, Results, replace_section, tables, told

from model_zoo import resolve
from toolkit.atomic import write_whole
from toolkit.bundle.read import open_bundle
from toolkit.errors import ToolkitError
from toolkit.machine import machine

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "benchmarks.md"
JSON = ROOT / "benchmarks" / "results" / "encoders_peers.json"
SECTION = "encoders_peers"
LIBRARIES = ("torch", "transformers", "onnxruntime", "openvino")

Loads = dict[str, tuple[Contender, Path]]


def main() -> int:
    """Measure and write; 1 if any contender was absent."""
    options = _options()
    results = Results.read(options.json, REFERENCE)
    if not options.render:
        facts = _facts(options)
        for model in dict.fromkeys(COLUMNS[key].model for key in options.only):
            columns = [key for key in options.only if COLUMNS[key].model == model]
            _measure(model, columns, options, facts, results)
            if not options.prepare:
                results.write(options.json)
    if options.prepare:
        return 0
    page = options.page.read_text(encoding="utf-8")
    write_whole(options.page, replace_section(page, SECTION, _section(results)))
    print("\n".join(tables(results)))
    return int(any(results.absent.values()))


def _measure(model: str, columns: Sequence[str], options: argparse.Namespace, facts: Facts, results: Results) -> None:
    """One model: its contenders are opened once for all of its columns and for the held-out data."""
    given = prepare_data(options.work, model, MODELS[model])
    absent: dict[str, str] = {}
    loads = _loads(model, given, options, absent)
    if options.prepare:
        return
    _say(f"{MODELS[model].title}: {', '.join(loads)}")
    with open_entries(options.work, model, MODELS[model].embedding, loads, options.threads) as entries:
        for key in columns:
            results.columns[key] = _raced(key, entries, options, facts)
        if MODELS[model].judged:
            moved = drifts(entries, REFERENCE, given.held_out)
            results.drift[model] = Drift(MODELS[model].title, given.source, given.sha256, moved, facts)
        absent |= {entry.key: entry.process.absent for entry in entries if entry.process.absent}
    results.columns = {key: results.columns[key] for key in COLUMNS if key in results.columns}
    results.drift = {key: results.drift[key] for key in MODELS if key in results.drift}
    results.absent[MODELS[model].title] = absent
    _label(results, [*loads, *absent])


def _raced(key: str, entries: Sequence[Entry], options: argparse.Namespace, facts: Facts) -> Raced:
    column, inputs = COLUMNS[key], inputs_of(options.work, key)
    now, load = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"), os.getloadavg()[0]
    _say(f"{column.title}: load {load:.1f}")
    turns = race(entries, inputs, Pace(options.seconds, options.rounds))
    return Raced(column.title, column.model, now, load, turns, drifts(entries, REFERENCE, [inputs]), facts)


def _loads(model: str, given: Given, options: argparse.Namespace, absent: dict[str, str]) -> Loads:
    """What each contender loads; reasons of those that have nothing to load go into `absent`."""
    loads: Loads = {}
    for key in options.peers:
        try:
            environment(options.work, PEERS[key].environment)
            loads[key] = PEERS[key], peer_artefact(options.work, model, given, PEERS[key].artefact)
        except (NotMadeError, RuntimeError, ToolkitError) as error:
            absent[key] = str(error)
    for label, folder in _bundles(model, options, absent).items():
        loads[label] = own(label), folder
    return loads


def _bundles(model: str, options: argparse.Namespace, absent: dict[str, str]) -> dict[str, Path]:
    """Bundles by label: those that were given of this model, and one for each target that none was given of."""
    name = resolve(MODELS[model].name, weights=MODELS[model].weights, offline=True).name
    given = {label: folder for label, folder in options.bundle if open_bundle(folder).manifest.model.name == name}
    wanted = [target for target in options.target if target not in given]
    built, reasons = build_bundles(options.work, model, MODELS[model], wanted)
    absent |= reasons
    return built | given


def _label(results: Results, keys: Sequence[str]) -> None:
    """Name the rows: peers in their own order, then ours in the order in which they came."""
    known = [*results.labels, *keys]
    order = [*(key for key in PEERS if key in known), *(key for key in dict.fromkeys(known) if key not in PEERS)]
    results.labels = {key: PEERS[key].label if key in PEERS else own(key).label for key in order}


def _facts(options: argparse.Namespace) -> Facts:
    here = machine(ROOT)
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit or "unknown",
        "machine": f"{here['cpu']}, {here['usable_cpus']} processors, {', '.join(here['cpu_features'])}",
        "threads": str(options.threads),
        "ours": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    } | {name: ", ".join(pins) for name, pins in ENVIRONMENTS.items()}


def _section(results: Results) -> list[str]:
    held = ", ".join(f"{drift.title} {drift.data} (`{drift.sha256[:8]}`)" for drift in results.drift.values())
    loads = [raced.load for raced in results.columns.values()]
    return [
        "",
        *tables(results),
        "",
        f"- Measured {told(results, '{date} at commit `{commit}`'.format_map)}: "
        f"{told(results, itemgetter('machine'))}; {told(results, itemgetter('threads'))} threads; "
        f"load when a column began {min(loads, default=0):.1f} to {max(loads, default=0):.1f}.",
        f"- Held out: {held or 'nothing measured'}.",
        f"- Ours: {told(results, itemgetter('ours'))}.",
        *(f"- Environment `{name}`: {told(results, itemgetter(name))}." for name in ENVIRONMENTS),
        "",
    ]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    default = [key for key, column in COLUMNS.items() if not column.optional]
    parser.add_argument(
        "bundle", nargs="*", type=_bundle, metavar="[LABEL=]BUNDLE", help="ours to race, instead of building its target"
    )
    parser.add_argument("--work", type=Path, default=default_work(), help="what is kept from run to run")
    parser.add_argument("--only", action="append", choices=COLUMNS, metavar="COLUMN", help=", ".join(COLUMNS))
    parser.add_argument("--peers", action="append", choices=PEERS, metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--target", action="append", metavar="TARGET", help=f"ours to build: {', '.join(TARGETS)}")
    parser.add_argument("--seconds", type=float, default=30, help="how long a column is raced")
    parser.add_argument("--rounds", type=int, default=5, help="at least so many")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepare", action="store_true", help="make what is needed and measure nothing")
    parser.add_argument("--render", action="store_true", help="measure nothing, make the page of the JSON file")
    parser.add_argument("--json", type=Path, default=JSON)
    parser.add_argument("--page", type=Path, default=PAGE, help="the tables are written into it, at its marks")
    options = parser.parse_args()
    options.work = options.work.absolute()
    options.only, options.target = options.only or default, options.target or list(TARGETS)
    options.peers = list(dict.fromkeys([REFERENCE, *(options.peers or PEERS)]))
    return options


def default_work() -> Path:
    """Where environments, exports and bundles are kept."""
    return Path(platformdirs.user_cache_dir("transformer-export-toolkit")) / "peers"


def _bundle(text: str) -> tuple[str, Path]:
    label, _, folder = text.rpartition("=")
    try:
        target = open_bundle(Path(folder)).manifest.target
        return label or f"{target.runtime}-{target.scheme}", Path(folder)
    except ToolkitError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
