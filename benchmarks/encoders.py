"""A Markdown table of what bundles gain over eager fp32 PyTorch: `python benchmarks/encoders.py BUNDLE...`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from toolkit.bench import BenchReport, Settings, bench_bundle
from toolkit.bundle.read import open_bundle
from toolkit.errors import ToolkitError

COLUMNS = (
    "bundle",
    "shape",
    "PyTorch ms",
    "ms",
    "p90",
    "times as fast",
    "rounds p10 to p90",
    "memory MB (PyTorch)",
    "cosine",
)


def main() -> int:
    """Measure each bundle in each shape that it has and print one row for it; 1 if any failed."""
    options = _options()
    settings = Settings(runs=options.runs, threads=options.threads)
    print(f"| {' | '.join(COLUMNS)} |")
    print(f"|{'---|' * len(COLUMNS)}", flush=True)
    failed = 0
    for folder in options.bundles:
        for shape in options.shape or [{}]:
            failed += _measure(folder, shape, settings)
    return min(failed, 1)


def _measure(folder: Path, shape: dict[str, int], settings: Settings) -> int:
    try:
        known = open_bundle(folder).manifest.dims
        report = bench_bundle(folder, "torch", {name: n for name, n in shape.items() if name in known}, settings)
    except ToolkitError as error:
        print(f"{folder}: {error}", file=sys.stderr)
        return 1
    print(_row(report), flush=True)
    return 0


def _row(report: BenchReport) -> str:
    ours, torch = report.results
    ratio, cosines = report.ratio, report.cosine or {}
    gain = (f"{ratio.median:.2f}", f"{ratio.p10:.2f} to {ratio.p90:.2f}") if ratio else ("-", "-")
    cells = (
        ours.label,
        ", ".join(f"{name} {size}" for name, size in report.sizes.items()),
        f"{torch.median_ms:.1f}",
        f"{ours.median_ms:.1f}",
        f"{ours.p90_ms:.1f}",
        *gain,
        f"{ours.memory / 1e6:.0f} ({torch.memory / 1e6:.0f})",
        f"{min(cosines.values()):.5f}" if cosines else "not comparable",
    )
    return f"| {' | '.join(cells)} |"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--shape", type=_shape, action="append", help="as batch=1,sequence=128; repeatable")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


def _shape(text: str) -> dict[str, int]:
    pairs = (part.partition("=") for part in text.split(","))
    return {name: int(size) for name, _, size in pairs}


if __name__ == "__main__":
    sys.exit(main())
