"""How long `toolkit --help` takes, and what it imports: `python benchmarks/startup.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 20
COMMAND = [sys.executable, "-m", "toolkit", "--help"]
HEAVY = ("numpy", "onnx", "onnxruntime", "pydantic", "rich", "torch", "transformers")


def main() -> int:
    """Print the median and the extremes of 20 runs; 1 if a heavy library was imported."""
    seconds = sorted(_timed(COMMAND) for _ in range(RUNS))
    bare = statistics.median(_timed([sys.executable, "-c", "pass"]) for _ in range(RUNS))
    print(f"toolkit --help: median {statistics.median(seconds) * 1000:.0f} ms of {RUNS} runs "
          f"(from {seconds[0] * 1000:.0f} to {seconds[-1] * 1000:.0f}); bare Python {bare * 1000:.0f} ms")  # fmt: skip
    modules = _modules()
    packages = sorted({name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names))
    print(f"{len(modules)} modules; packages outside the standard library: {', '.join(packages)}")
    heavy = [name for name in HEAVY if name in packages]
    if heavy:
        print(f"heavy libraries imported: {', '.join(heavy)}", file=sys.stderr)
    return min(len(heavy), 1)


def _timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def _modules() -> list[str]:
    """What is loaded when help has been shown, by Python's own import log."""
    log = subprocess.run([sys.executable, "-X", "importtime", *COMMAND[1:]], capture_output=True, text=True, check=True)
    return [line.rpartition("|")[2].strip() for line in log.stderr.splitlines() if line.startswith("import time:")][1:]


if __name__ == "__main__":
    sys.exit(main())
