"""Peak memory of `toolkit compare`, beside the model's size.

    python benchmarks/compare_memory.py [--model bert-large --weights random] [--target ort-cpu-fp32] [--recipe]
    python benchmarks/compare_memory.py --of recipe.yaml

The model is exported first, in a process of its own; then another compares its bundle with the eager PyTorch model.
What counts is the resident peak of that process, less what was resident once the libraries were imported; mapped pages
of weights count. With --recipe no bundle is there: the line is run in the same process, and counts too. Size is that of
the fp32 weights; all sizes are in bytes. Linux only (`/proc/self`).
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

watch, size = toolkit.compare.eager.watch, 0

def counted(module, *rest):
    global size
    size = sum(each.numel() * 4 for each in module.parameters())
    return watch(module, *rest)

toolkit.compare.eager.watch = counted
before, start = peak(), time.monotonic()
found = compare("reference", sys.argv[1])
print(json.dumps({"size": size, "libraries": before, "peak": peak() - before, "seconds": time.monotonic() - start,
                  "modules": len(found.modules), "skipped": len(found.skipped)}))
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
    parser.add_argument("--of", help="A recipe or bundle to compare instead, as it is.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        candidate = given.of or (_recipe(given, work) if given.recipe else _bundle(given, work))
        found = json.loads(_python("-c", _COMPARE, candidate))
    print(json.dumps(found | {"ratio": round(found["peak"] / found["size"], 2)}))


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
