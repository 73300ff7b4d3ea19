"""Time a bundle, alone or against PyTorch or another bundle, in interleaved rounds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.commands import example, json_option
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from toolkit.bench import BenchReport, Ratio
    from toolkit.bench_decoder import DecoderReport
    from toolkit.bundle.read import Bundle


@click.command(
    epilog=example(
        "toolkit bench bundles/minilm-ort-cpu-int8 --vs torch --batch 1 --sequence 128",
        "toolkit bench bundles/vit-base-ort-cpu-int8 --vs bundles/vit-base-ort-cpu-fp32 --runs 20 --json",
        "toolkit bench bundles/smollm2-135m-instruct-ort-cpu-int4 --vs torch --prompt-tokens 512 --new-tokens 128",
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--vs", metavar="torch|BUNDLE", help="Whom to run against: eager fp32 PyTorch, or another bundle.")
@click.option("--batch", type=click.IntRange(min=1), help="Rows in each run; default: what the engine is tuned for.")
@click.option("--sequence", type=click.IntRange(min=1), help="Tokens in each row; default likewise.")
@click.option("--prompt-tokens", type=click.IntRange(min=1), help="A language model's prompt; default 128.")
@click.option("--new-tokens", type=click.IntRange(min=2), help="What it adds in each run; default 128.")
@click.option("--runs", type=click.IntRange(min=1), help="Timed runs of each; default 50, of a language model 5.")
@click.option("--warmup", type=click.IntRange(min=0), help="Untimed runs before; default 5, of a language model 1.")
@click.option("--threads", type=click.IntRange(min=1), help="Processors to use; default: all physical cores.")
@json_option
def command(*, bundle: Path, vs: str | None, as_json: bool, **options: int | None) -> None:
    """Time a bundle, alone or against PyTorch or another bundle, in interleaved rounds.

    Each contender runs in a process of its own on the bundle's golden inputs, repeated or cut to size. The ratio
    is the median over rounds, with the 10th and 90th percentile; memory is the peak less the imported libraries.
    A language model continues a prompt: the times are those to its first token and from token to token.
    """
    from toolkit import console
    from toolkit.bundle.read import open_bundle

    given = {name: value for name, value in options.items() if value is not None}
    opened = open_bundle(bundle)
    decodes = opened.manifest.model.kind == "decoder"
    _refuse([name for name in (_OTHERS if decodes else _DECODER) if name in given], opened.manifest.model.kind)
    with console.progress().status("timing …"):
        report = _time_decoder(opened, vs, given) if decodes else _time(bundle, vs, given)
    if as_json:
        console.emit_json(report)
    else:
        _print(report)


_OTHERS = ("batch", "sequence")
_DECODER = ("prompt_tokens", "new_tokens")


def _refuse(names: Sequence[str], kind: str) -> None:
    if not names:
        return
    options = ", ".join(f"--{name.replace('_', '-')}" for name in names)
    instead = _OTHERS if names[0] in _DECODER else _DECODER
    raise UsageError(
        f"{options}: not for a model of kind {kind}",
        hint=f"It takes {', '.join(f'--{name}' for name in instead).replace('_', '-')}.",
    )


def _time(bundle: Path, vs: str | None, given: Mapping[str, int]) -> BenchReport:
    from toolkit.bench import Settings, bench_bundle

    sizes = {name: given[name] for name in _OTHERS if name in given}
    return bench_bundle(bundle, vs, sizes, Settings(**{name: given[name] for name in given if name not in sizes}))


def _time_decoder(bundle: Bundle, vs: str | None, given: Mapping[str, int]) -> DecoderReport:
    from toolkit.bench_decoder import DecoderSettings, bench_decoder

    return bench_decoder(bundle, vs, DecoderSettings(**given))


def _print(report: BenchReport | DecoderReport) -> None:
    from toolkit.bench import BenchReport

    if isinstance(report, BenchReport):
        _print_batch(report)
    else:
        _print_decoder(report)


def _print_batch(report: BenchReport) -> None:
    from toolkit import console

    sizes = ", ".join(f"{name} {size}" for name, size in report.sizes.items()) or "fixed sizes"
    console.print_table(
        (
            (
                one.label, one.ran_on, f"{one.median_ms:.2f}", f"{one.p90_ms:.2f}", f"{one.min_ms:.2f}",
                f"{one.samples_per_second:.1f}", console.byte_size(one.memory),
            )
            for one in report.results
        ),
        "contender", "ran on", ">median ms", ">p90", ">min", ">samples/s", ">memory",
        title=f"{sizes}; {report.runs} runs each, {report.threads} threads",
    )  # fmt: skip
    _print_device_memory(report)
    if report.ratio:
        first, second = report.results
        ratio = report.ratio
        click.echo(
            f"{first.label} is {ratio.median:.2f} times as fast as {second.label} "
            f"(10th to 90th percentile of rounds: {ratio.p10:.2f} to {ratio.p90:.2f})"
        )
    _warn_of_load(report)
    for name, value in (report.cosine or {}).items():
        click.echo(f"cosine of '{name}' between the two: {value:.6f}")


def _print_decoder(report: DecoderReport) -> None:
    from toolkit import console

    console.print_table(
        (
            (
                one.label, one.ran_on, f"{one.ttft_ms:.1f}", f"{one.itl_ms:.2f}", f"{one.itl_p90_ms:.2f}",
                f"{one.tokens_per_second:.1f}", console.byte_size(one.memory), console.byte_size(one.bytes_per_token),
                "-" if one.bandwidth_share is None else f"{one.bandwidth_share:.0%}",
            )
            for one in report.results
        ),
        "contender", "ran on", ">TTFT ms", ">ITL ms", ">p90", ">tokens/s", ">memory", ">read a token",
        ">of the bandwidth",
        title=f"{report.prompt_tokens} prompt tokens, {report.new_tokens} new; {report.runs} runs each, "
        f"{report.threads} threads",
    )  # fmt: skip
    click.echo(
        f"measured bandwidth: {report.bandwidth / 1e9:.1f} GB/s (numpy's maximum of float32, {report.threads} threads)"
    )
    _print_device_memory(report)
    if report.ttft_ratio and report.itl_ratio:
        first, second = report.results
        click.echo(
            f"{first.label} is {_spread(report.ttft_ratio)} times as fast as {second.label} to the first token, "
            f"{_spread(report.itl_ratio)} times from token to token; {report.same_tokens} of {report.new_tokens} "
            "tokens are the same before they first differ"
        )
    _warn_of_load(report)


def _print_device_memory(report: BenchReport | DecoderReport) -> None:
    from toolkit.console import byte_size

    for one in report.results:
        if one.device:
            click.echo(
                f"{one.label} holds {byte_size(one.device.total)} of the device's memory, of which "
                f"{byte_size(one.device.context)} for activations and {byte_size(one.device.buffers)} for inputs, "
                "outputs and cache"
            )


def _spread(ratio: Ratio) -> str:
    return f"{ratio.median:.2f} ({ratio.p10:.2f} to {ratio.p90:.2f})"


def _warn_of_load(report: BenchReport | DecoderReport) -> None:
    if report.load and report.load > report.threads / 2:
        click.echo(
            f"warning: the machine was busy (load {report.load:.1f} on {report.threads} threads); "
            "contenders suffer from that in different measure, so measure again when it is quiet",
            err=True,
        )
