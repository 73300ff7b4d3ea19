"""Peak memory of an export, beside the model's size.

    python benchmarks/export_memory.py FOLDER

Two figures, each from processes of their own:
- stage: the resident peak of the export stage, less what was resident when it began (libraries and the memory-mapped
  model); the exporter's own code, which loads lazily, counts;
- line: the peak of the whole line to `ort-cpu-fp32` (reference, export, both verifications), less the peak of the same
  for a two-layer model of the same architecture; the model itself counts, and so do mapped pages of files.
Both are given as multiples of the size of the weights. Linux only (`/proc/self`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

_STAGE = """
import json, sys, tempfile, pathlib
from model_zoo import resolve
from toolkit import plugins
from exporters.torch_export import export

def resident(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

spec = resolve(sys.argv[1])
family = plugins.family(spec.family)
module, sample = family.load(spec), family.golden(spec)[0]
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = resident("VmRSS")
with tempfile.TemporaryDirectory() as work:
    export(module, spec, sample, pathlib.Path(work))
print(json.dumps(resident("VmHWM") - before))
"""

_LINE = """
import resource, sys, tempfile
from toolkit.plan import Request, plan
from toolkit.pipeline import export

with tempfile.TemporaryDirectory() as work:
    from pathlib import Path
    export(plan(Request(model=sys.argv[1], targets=["ort-cpu-fp32"], output=Path(work))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""

_SMALL = """
import sys
from transformers import AutoConfig, AutoModel
config = AutoConfig.from_pretrained(sys.argv[1])
config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.vocab_size = 2, 48, 64, 30522
AutoModel.from_config(config).save_pretrained(sys.argv[2])
"""


def _python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""


def main(folder: str) -> None:
    weights = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as small:
        _python(_SMALL, folder, small)
        stage = int(_python(_STAGE, folder))
        line = int(_python(_LINE, folder)) - int(_python(_LINE, small))
    print(
        json.dumps(
            {
                "weights_mb": round(weights / 1e6, 1),
                "stage_extra_mb": round(stage / 1e6, 1),
                "stage_ratio": round(stage / weights, 2),
                "line_extra_mb": round(line / 1e6, 1),
                "line_ratio": round(line / weights, 2),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
