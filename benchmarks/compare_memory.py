"""Peak memory of `toolkit compare`, beside the model's size.

    python benchmarks/compare_memory.py [--model bert-large --weights random] [--target ort-cpu-fp32] [--recipe]

The model is exported first, in a process of its own; then another compares its bundle with the eager PyTorch model.
What counts is the resident peak of that process, less what was resident once the libraries were imported; mapped pages
of weights count. With --recipe no bundle is there: the line is run in the same process, and counts too. Size is that of
the fp32 weights. Linux only (`/proc/self`).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

_COMPARE = """
import json, pathlib, sys, time

def peak():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

import onnx, onnx_ir, onnxruntime, torch, transformers
import exporters.torch_export, toolkit.compare.eager
from toolkit.compare.run import compare

before, start = peak(), time.monotonic()
found = compare("reference", sys.argv[1])
print(json.dumps({"libraries": before, "peak": peak() - before, "seconds": time.monotonic() - start,
                  "modules": len(found.modules), "skipped": len(found.skipped)}))
"""

_SIZE = """
import sys
from model_zoo import resolve
from toolkit import plugins
spec = resolve(sys.argv[1], weights=sys.argv[2], offline=True)
print(sum(each.numel() * 4 for each in plugins.family(spec.family).load(spec).parameters()))
"""


def _python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="bert-large")
    parser.add_argument("--weights", default="random", choices=("random", "pretrained"))
    parser.add_argument("--target", default="ort-cpu-fp32")
    parser.add_argument("--recipe", action="store_true")
    given = parser.parse_args()
    size = int(_python("-c", _SIZE, given.model, given.weights))
    with tempfile.TemporaryDirectory() as work:
        candidate = _recipe(given, work) if given.recipe else _bundle(given, work)
        found = json.loads(_python("-c", _COMPARE, candidate))
    found |= {"size": size, "ratio": round(found["peak"] / size, 2)}
    print(json.dumps({key: round(each / 1e6, 1) if each > 1e5 else each for key, each in found.items()}))


def _recipe(given: argparse.Namespace, work: str) -> str:
    path = Path(work) / "recipe.yaml"
    path.write_text(f"version: 1\nmodel: {given.model}\nweights: {given.weights}\ntargets: [{given.target}]\n")
    return str(path)


def _bundle(given: argparse.Namespace, work: str) -> str:
    chosen = ["--model", given.model, "--weights", given.weights, "--target", given.target]
    _python("-m", "toolkit", "export", *chosen, "--output", work, "--offline", "--json")
    return str(next(path.parent for path in Path(work).glob("*/manifest.json")))


if __name__ == "__main__":
    main()
