"""Race other forms of a lowered encoder, and other session options, against the plain one.

    python benchmarks/lowering.py MODEL[:random]... [--scheme fp32]... [--shape batch=1,sequence=128]... [--json FILE]

A model is what `toolkit export --model` takes. The plain graph is one of stock kernels, before any choice; forms are
in `lowering_forms.py`. Plain graph and form take turns in one process, and a round's ratio is of neighbours in time.
`--clock cpu` counts processor time of one thread, which holds on a machine that is not quiet but says nothing of
threads. What was raced takes its place in the JSON, the rest of the file stays.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from lowering_forms import FORMS, PLAIN, PLAIN_FORM, Form, FormRule

from runtimes._onnxruntime.emit import Emitter
from runtimes._onnxruntime.lowering import Rule, lower_graph
from runtimes._onnxruntime.operators import contents
from runtimes._onnxruntime.session import physical_cores, session_options
from toolkit.bench import REST_SECONDS, sized_inputs
from toolkit.plan import Request, plan
from toolkit.progress import Silent
from toolkit.stages import Stages
from toolkit.types import QuantizedGraph, Step, Tensors

COLUMNS = (
    "model", "scheme", "shape", "clock", "subject", "form", "places", "ms", "times as fast", "p10 to p90", "difference",
)  # fmt: skip
CLOCKS = {"wall": (time.perf_counter, None), "cpu": (time.thread_time, 1)}
"""What reads the time, and how many threads then run: `None` is as many as the toolkit's sessions take."""
TURN_SECONDS = 0.06
_OFF = "sqnr=off,cosine=off,relative_l2=off,max_abs=off,accuracy_drop=off,top1=off,overlap=off"


@dataclass(frozen=True, slots=True)
class Case:
    """A quantized graph and what it is fed: one column of the table."""

    model: str
    scheme: str
    shape: str
    clock: str
    graph: QuantizedGraph
    feeds: Tensors


@dataclass(frozen=True, slots=True)
class Row:
    """A form raced: `ratio` is the plain graph's time over the form's; `difference` is relative L2 of the outputs.

    `places` counts what the rules changed; `absent` says why the form did not run.
    """

    model: str
    scheme: str
    shape: str
    clock: str
    subject: str
    form: str
    places: int = 0
    plain_ms: float = 0.0
    ms: float = 0.0
    ratio: float = 0.0
    p10: float = 0.0
    p90: float = 0.0
    difference: float = 0.0
    absent: str = ""


class Contender:
    """A form of a graph, open."""

    def __init__(self, case: Case, form: Form, folder: Path) -> None:
        """Lower the case's graph into `folder` and open it. What ONNX Runtime raises is left as it is."""
        self.places: list[int] = []
        rules = [self._counted(rule) for rule in form.rules]
        path = lower_graph(case.graph, folder, "ort-cpu", (*PLAIN, *rules)).path
        self._clock, threads = CLOCKS[case.clock]
        options, _ = session_options(contents(path), "CPUExecutionProvider", threads)
        for name, value in form.entries.items():
            options.add_session_config_entry(name, value)
        for name, value in form.attributes.items():
            setattr(options, name, value)
        self._session = ort.InferenceSession(path, options, disabled_optimizers=list(form.without))
        self._feeds = dict(case.feeds)
        self.output = np.asarray(self._session.run(None, self._feeds)[0])

    def turn(self) -> float:
        """Median seconds of a run, after a rest, in which the other's workers stop spinning, and an untimed run."""
        time.sleep(REST_SECONDS)
        self._session.run(None, self._feeds)
        times: list[float] = []
        while len(times) < 2 or (sum(times) < TURN_SECONDS and len(times) < 7):
            start = self._clock()
            self._session.run(None, self._feeds)
            times.append(self._clock() - start)
        return statistics.median(times)

    def _counted(self, rule: FormRule) -> Rule:
        def apply(model: ir.Model, emit: Emitter) -> list[Step]:
            self.places.append(rule(model, emit))
            return []

        return apply


def main() -> int:
    """Race every asked form of every model and print one row for it."""
    options = _options()
    ort.set_default_logger_severity(3)
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    forms = {name: form for name, form in FORMS.items() if not options.form or any(t in name for t in options.form)}
    for model in options.models:
        for case in _cases(model, options.scheme or ["fp32", "int8"], options.shape or [{}], options.clock):
            rows = []
            for row in _rows(case, forms, options.rounds):
                print(_line(row), flush=True)
                rows.append(row)
            if options.json:
                _store(options.json, rows)
    return 0


def _cases(model: str, schemes: list[str], shapes: list[dict[str, int]], clock: str) -> Iterator[Case]:
    """Export the model once, quantize it for each scheme, and size its golden input for each shape."""
    name, _, weights = model.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        made = plan(
            Request(
                model=name,
                targets=[f"ort-cpu-{scheme}" for scheme in schemes],
                output=Path(folder),
                weights="random" if weights == "random" else "pretrained",
                drift_gate=_OFF,
            )
        )
        with Stages.open(made, Silent()) as line:
            reference, exported = line.from_pytorch()
            for target in made.targets:
                graph = line.quantize(exported, reference, target)
                for shape in shapes:
                    wanted = {key: size for key, size in shape.items() if key in made.spec.dims}
                    feeds, sizes = sized_inputs(made.spec.inputs, made.spec.dims, reference.golden[0], wanted)
                    said = ", ".join(f"{key} {size}" for key, size in sizes.items())
                    yield Case(Path(name).name, target.scheme, said, clock, graph, feeds)


def _rows(case: Case, forms: dict[str, Form], rounds: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as scratch:
        plain = Contender(case, FORMS[PLAIN_FORM], Path(scratch) / "plain")
        for name, form in forms.items():
            row = Row(case.model, case.scheme, case.shape, case.clock, form.subject, name)
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                if (raced := _raced(row, case, plain, form, Path(folder), rounds)) is not None:
                    yield raced


def _raced(row: Row, case: Case, plain: Contender, form: Form, folder: Path, rounds: int) -> Row | None:
    """The row with its figures; None where one of its rules finds nothing to change."""
    head = (row.model, row.scheme, row.shape, row.clock, row.subject, row.form)
    try:
        contender = Contender(case, form, folder)
    except Exception as error:  # ONNX Runtime's errors share no class; the table says which it was
        return Row(*head, absent=str(error).splitlines()[0][:160])
    if not all(contender.places):
        return None
    turns = [(plain.turn(), contender.turn()) for _ in range(rounds)]
    ratios = [first / second for first, second in turns]
    milliseconds = [1e3 * statistics.median(column) for column in zip(*turns, strict=True)]
    spread = [float(np.percentile(ratios, percentile)) for percentile in (10, 90)]
    figures = [round(number, 3) for number in (*milliseconds, statistics.median(ratios), *spread)]
    difference = np.linalg.norm(contender.output - plain.output) / np.linalg.norm(plain.output)
    return Row(*head, sum(contender.places), *figures, difference=float(f"{difference:.1e}"))


def _line(row: Row) -> str:
    head = (row.model, row.scheme, row.shape, row.clock, row.subject, row.form, str(row.places or "-"))
    if row.absent:
        return f"| {' | '.join(head)} | - | - | - | {row.absent} |"
    figures = (f"{row.ms:.2f}", f"{row.ratio:.2f}", f"{row.p10:.2f} to {row.p90:.2f}", f"{row.difference:.1e}")
    return f"| {' | '.join((*head, *figures))} |"


def _store(path: Path, rows: list[Row]) -> None:
    kept = json.loads(path.read_text())["rows"] if path.exists() else []
    made = [asdict(row) for row in rows]
    raced = {_key(row) for row in made}
    document = {
        "onnxruntime": ort.__version__,
        "machine": f"{platform.machine()}, {physical_cores()} cores",
        "rows": [row for row in kept if _key(row) not in raced] + made,
    }
    path.write_text(json.dumps(document, indent=1) + "\n")


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("model", "scheme", "shape", "clock", "form"))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scheme", action="append", help="default: fp32 and int8")
    parser.add_argument("--shape", type=_shape, action="append", help="as batch=1,sequence=128; repeatable")
    parser.add_argument("--form", action="append", help="race only forms with this text in their name; repeatable")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: processor time of one thread")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, help="put the figures into this file")
    return parser.parse_args()


def _shape(text: str) -> dict[str, int]:
    return {name: int(size) for name, _, size in (pair.partition("=") for pair in text.split(","))}


if __name__ == "__main__":
    sys.exit(main())
