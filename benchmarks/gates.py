"""Drift of every stage of every given model and target, as the table that the schemes' gates are read from.

    python benchmarks/gates.py MODEL… [--target TARGET]… [--arch ARCH]

A model is what `toolkit export --model` takes; `NAME:random` asks for random weights. `--arch sm120` compiles
TensorRT's targets for that one alone, which saves time and changes no figure: the compiled graph runs on the CPU.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from toolkit.bundle.read import open_bundle, report
from toolkit.drift.table import task_words
from toolkit.pipeline import export
from toolkit.plan import Request, plan
from toolkit.types import DEFAULT_OPTIONS, TargetOptions

_TARGETS = (
    "ort-cpu-fp32", "ort-cpu-fp16", "ort-cpu-int8", "ort-cpu-int8-dynamic",
    "trt-fp16", "trt-bf16", "trt-int8", "trt-fp8", "trt-nvfp4",
)  # fmt: skip
_OFF = "sqnr=off,cosine=off,relative_l2=off,max_abs=off,accuracy_drop=off,top1=off,overlap=off"


def rows(model: str, targets: list[str], options: TargetOptions) -> Iterator[str]:
    name, _, weights = model.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        request = Request(
            model=name,
            targets=targets,
            output=Path(folder),
            weights="random" if weights == "random" else "pretrained",
            drift_gate=_OFF,
            options=options,
        )
        for bundle in map(open_bundle, export(plan(request))):
            last = report(bundle).stages[-1]
            worst = last.worst()
            yield (
                f"| {bundle.manifest.model.name} | {bundle.folder.name.removeprefix(bundle.manifest.model.name + '-')} "
                f"| {worst.sqnr_db:.1f} | {worst.cosine:.6f} | {worst.relative_l2:.2g} | {worst.max_abs:.2g} "
                f"| {task_words(last.task)} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--target", action="append", dest="targets")
    parser.add_argument("--arch")
    options = parser.parse_args()
    wanted = TargetOptions(architectures=(options.arch,)) if options.arch else DEFAULT_OPTIONS
    print("| model | target | SQNR dB | cosine | relative L2 | max abs | task |\n|---|---|---|---|---|---|---|")
    for model in options.models:
        for row in rows(model, options.targets or list(_TARGETS), wanted):
            print(row, flush=True)


if __name__ == "__main__":
    main()
