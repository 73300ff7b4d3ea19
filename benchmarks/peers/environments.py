"""Virtual environments of the peers, each with pinned packages and none of this toolkit's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ENVIRONMENTS", "EXPORTERS", "OWN", "environment"]

OWN = "own"
"""The environment that the benchmark runs in: this toolkit's."""
_ROOT = Path(__file__).parents[2]

ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "inductor": ("torch==2.13.0+cpu", "transformers==5.23.0", "torchao==0.18.0"),
    "optimum": (
        "torch==2.13.0+cpu", "transformers==4.57.6", "optimum-onnx[onnxruntime]==0.1.0", "onnxruntime==1.32.0",
        "datasets==4.8.5", "pillow==12.2.0",
    ),
    "openvino": ("openvino==2026.4.1", "nncf==3.4.0"),
}  # fmt: skip
"""`torch==…+cpu` is the build without CUDA: pip takes it from a local index or folder (`--find-links`), or from
PyTorch's own index of CPU builds."""

EXPORTERS: Mapping[str, tuple[str, ...]] = {
    "optimum-export": (
        "torch==2.13.0+cpu",
        "transformers==4.57.6",
        "optimum-onnx[onnxruntime]==0.1.0",
        "onnxruntime==1.32.0",
        "sentence-transformers==5.7.0",
        "accelerate==1.15.0",
    ),
    "toolkit": ("--constraint", str(_ROOT / "constraints.txt"), "--editable", str(_ROOT)),
}
"""As above: what those install who export. `toolkit` has none of the extras nor of what develops it, `optimum-export`
what `optimum-cli` asks for when it exports a sentence encoder."""

_INSTALLED = "installed.txt"


def environment(work: Path, name: str) -> Path:
    """The environment's Python, made where it is not there yet or other packages are pinned. Raises RuntimeError."""
    if name == OWN:
        return Path(sys.executable)
    packages = {**ENVIRONMENTS, **EXPORTERS}[name]
    folder, pins = work / "environments" / name, "\n".join(packages)
    python, record = folder / "bin" / "python", folder / _INSTALLED
    if record.is_file() and record.read_text() == pins:
        return python
    print(f"installing {' '.join(packages)}", file=sys.stderr)
    _run(sys.executable, "-m", "venv", str(folder))
    _run(str(python), "-m", "pip", "install", "--quiet", *packages)
    record.write_text(pins)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-500:]}")
