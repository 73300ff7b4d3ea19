"""Memory of an encoder by its sequence length: the own attention, the stock lowered graph, the decomposed graph.

    python benchmarks/attention_memory.py [--lengths 512 2048 8192] [--layers 2] [--threads 2]

A BERT as wide as bert-base (12 heads of 64) with random weights and 8192 positions, batch 1, a quarter of the tokens
padding. It has few layers: what a layer needs is free again when the next begins, so the peak does not grow with them,
and time is shown by layer. Each run is a process of its own; what counts is its resident peak while it runs, less what
was resident after a run on 8 tokens. `decomposed` is the canonical graph, whose attention ONNX Runtime takes apart into
MatMul and Softmax; `stock` the lowered graph without the own kernels. A Markdown table; a form that the
system kills for want of memory has a row that says so. Linux only (`/proc/self`).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from runtimes._onnxruntime.kernels.build import SWITCH

_CONFIG = {
    "model_type": "bert", "architectures": ["BertModel"], "hidden_size": 768, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 8192,
}  # fmt: skip
_EXPORT = """
import sys
from pathlib import Path
from exporters.reference import TorchSession
from exporters.torch_export import export
from model_zoo import resolve
from toolkit import plugins
from toolkit.types import QuantizedGraph
import numpy as np

work = Path(sys.argv[1])
spec = resolve(sys.argv[1], weights="random")
module = plugins.family(spec.family).load(spec)
ids = np.arange(2 * 16, dtype=np.int64).reshape(2, 16)
feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
feeds = {each.name: feeds[each.name] for each in spec.inputs}
graph = export(module, spec, feeds, work / "canonical")
lowered = plugins.runtime("ort-cpu").lower(QuantizedGraph(graph.path, spec, graph.steps), work / "own")
print(graph.path, lowered.path, sep="\\n")
"""
_RUN = """
import json, sys, time
from pathlib import Path
import numpy as np
from runtimes._onnxruntime.session import OrtSession

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

def feeds(length):
    ids = np.arange(length, dtype=np.int64)[None] % 1000 + 1000
    mask = (np.arange(length)[None] < length - length // 4).astype(np.int64)
    all = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {each.name: all[each.name] for each in session.inputs}

session = OrtSession(Path(sys.argv[1]), threads=int(sys.argv[3]))
session.run(feeds(8))
batch = feeds(int(sys.argv[2]))
Path("/proc/self/clear_refs").write_text("5")
before, times = resident("VmRSS"), []
while len(times) < 5 and sum(times) < 5:
    start = time.perf_counter()
    session.run(batch)
    times.append(time.perf_counter() - start)
print(json.dumps({"peak": resident("VmHWM") - before, "seconds": min(times), "on": session.ran_on}))
"""


def main() -> None:
    """Export once, run every form at every length, print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        config = {**_CONFIG, "num_hidden_layers": given.layers}
        Path(work, "config.json").write_text(json.dumps(config))
        canonical, lowered = _python(_EXPORT, work)[-2:]
        forms = {"own": (lowered, ""), "stock": (lowered, "0"), "decomposed": (canonical, "0")}
        print("| tokens | form | peak above idle, MB | ms a layer |\n|---|---|---|---|")
        for length in given.lengths:
            for form, (path, switch) in forms.items():
                _row(length, form, path, switch, given)


def _row(length: int, form: str, path: str, switch: str, given: argparse.Namespace) -> None:
    lines = _python(_RUN, path, str(length), str(given.threads), switch=switch)
    if not lines:
        print(f"| {length} | {form} | killed: it does not fit | |", flush=True)
        return
    answer = json.loads(lines[-1])
    name = f"{form} ({answer['on']})" if length == given.lengths[0] else form
    spent = answer["seconds"] * 1e3 / given.layers
    print(f"| {length} | {name} | {answer['peak'] / 1e6:.0f} | {spent:.0f} |", flush=True)


def _python(script: str, *arguments: str, switch: str = "") -> list[str]:
    """The lines that the script printed; none where the system killed it."""
    environment = {**os.environ, SWITCH: switch}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode == -signal.SIGKILL:
        return []
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return done.stdout.strip().splitlines()


if __name__ == "__main__":
    main()
