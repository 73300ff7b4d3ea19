"""Time a bundle, alone or against PyTorch or another bundle, in interleaved rounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.commands import example, json_option

if TYPE_CHECKING:
    from toolkit.bench import BenchReport


@click.command(
    epilog=example(
        "toolkit bench bundles/minilm-ort-cpu-int8 --vs torch --batch 1 --sequence 128",
        "toolkit bench bundles/vit-base-ort-cpu-int8 --vs bundles/vit-base-ort-cpu-fp32 --runs 20 --json",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--vs", metavar="torch|BUNDLE", help="Whom to run against: eager fp32 PyTorch, or another bundle.")
@click.option("--batch", type=click.IntRange(min=1), help="Rows in each run; default: what the engine is tuned for.")
@click.option("--sequence", type=click.IntRange(min=1), help="Tokens in each row; default likewise.")
@click.option("--runs", type=click.IntRange(min=1), default=50, show_default=True, help="Timed runs of each.")
@click.option("--warmup", type=click.IntRange(min=0), default=5, show_default=True, help="Untimed runs before.")
@click.option("--threads", type=click.IntRange(min=1), help="Processors to use; default: all physical cores.")
@json_option
def command(
    *,
    bundle: Path,
    vs: str | None,
    batch: int | None,
    sequence: int | None,
    runs: int,
    warmup: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Time a bundle, alone or against PyTorch or another bundle, in interleaved rounds.

    Each contender runs in a process of its own on the bundle's golden inputs, repeated or cut to size. The ratio
    is the median over rounds, with the 10th and 90th percentile; memory is the peak less the imported libraries.
    """
    from toolkit import console
    from toolkit.bench import Settings, bench_bundle

    wanted = {name: size for name, size in (("batch", batch), ("sequence", sequence)) if size}
    with console.progress().status("timing …"):
        report = bench_bundle(bundle, vs, wanted, Settings(runs=runs, warmup=warmup, threads=threads))
    if as_json:
        console.emit_json(report)
    else:
        _print(report)


def _print(report: BenchReport) -> None:
    from toolkit import console

    sizes = ", ".join(f"{name} {size}" for name, size in report.sizes.items()) or "fixed sizes"
    console.print_table(
        (
            (
                one.label, one.ran_on, f"{one.median_ms:.2f}", f"{one.p90_ms:.2f}", f"{one.min_ms:.2f}",
                console.byte_size(one.memory),
            )
            for one in report.results
        ),
        "contender", "ran on", ">median ms", ">p90", ">min", ">memory",
        title=f"{sizes}; {report.runs} runs each, {report.threads} threads",
    )  # fmt: skip
    if report.ratio:
        first, second = report.results
        ratio = report.ratio
        click.echo(
            f"{first.label} is {ratio.median:.2f} times as fast as {second.label} "
            f"(10th to 90th percentile of rounds: {ratio.p10:.2f} to {ratio.p90:.2f})"
        )
    if report.load and report.load > report.threads / 2:
        click.echo(
            f"warning: the machine was busy (load {report.load:.1f} on {report.threads} threads); "
            "contenders suffer from that in different measure, so measure again when it is quiet",
            err=True,
        )
    for name, value in (report.cosine or {}).items():
        click.echo(f"cosine of '{name}' between the two: {value:.6f}")
