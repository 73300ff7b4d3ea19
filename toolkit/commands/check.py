"""Verify a bundle again from its own files: hashes, golden inputs, drift gates."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.commands import example, json_option
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from toolkit.bundle.read import Bundle
    from toolkit.bundle.replay import Replayed
    from toolkit.drift.report import DriftReport
    from toolkit.types import TargetOptions


@click.command(
    epilog=example(
        "toolkit check bundles/vit-digits-ort-cpu-int8", "toolkit check bundles/vit-digits-trt-rtx-int8 --rebuild"
    )
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--on-cpu", is_flag=True, help="Measure the engine's graph on ONNX Runtime's CPU provider instead.")
@click.option("--rebuild", is_flag=True, help="Compile the engines again and compare, instead of measuring drift.")
@click.option("--build-timeout", "seconds", type=click.FloatRange(min=1), help="Seconds that one build may take.")
@click.option("--build-memory", "memory", type=click.IntRange(min=1), help="MiB that one build may take.")
@json_option
def command(
    bundle: Path, on_cpu: bool, rebuild: bool, seconds: float | None, memory: int | None, as_json: bool
) -> None:
    """Verify a bundle again from its own files: hashes, golden inputs, drift gates.

    Needs no PyTorch and no network. An engine that was built elsewhere is measured itself where it runs here; where
    it does not, its hash is verified and the graph it was built from is measured on ONNX Runtime. A Core ML package
    is read back and interpreted, which needs PyTorch and coremltools. The graphs before and after the model are run on
    their samples. Exit code 6 if a gate fails or such a graph differs. With --rebuild,
    engines are compiled again from the bundle's own graph as engine.lock.json says: exit code 5 if one has other
    bytes, 4 if that version of the library is not here.
    """
    if rebuild:
        if on_cpu:
            raise UsageError("--rebuild measures nothing, so --on-cpu says nothing", hint="Give one of them.")
        _rebuild(bundle, _limits(seconds, memory), as_json)
        return
    if (seconds, memory) != (None, None):
        raise UsageError("--build-timeout and --build-memory are for --rebuild", hint="Leave them out here.")
    _check(bundle, on_cpu, as_json)


def _limits(seconds: float | None, memory: int | None) -> TargetOptions:
    from toolkit.types import DEFAULT_OPTIONS, TargetOptions

    usual = DEFAULT_OPTIONS
    return TargetOptions(
        seconds=usual.seconds if seconds is None else seconds, memory=usual.memory if memory is None else memory << 20
    )


def _rebuild(folder: Path, options: TargetOptions, as_json: bool) -> None:
    from toolkit import console
    from toolkit.bundle.check import raise_if_different, rebuild
    from toolkit.bundle.read import open_bundle

    rebuilt = rebuild(open_bundle(folder), options)
    same = sum(entry.same for entry in rebuilt.files)
    if as_json:
        files = [{**asdict(entry), "same": entry.same} for entry in rebuilt.files]
        console.emit_json(
            {"bundle": str(folder), "builder": rebuilt.builder, "same": same == len(files), "engines": files}
        )
    else:
        console.print_table(
            (
                (entry.name, entry.bytes, f"{entry.seconds:.1f}", entry.sha256, "same" if entry.same else "DIFFERENT")
                for entry in rebuilt.files
            ),
            "architecture", ">bytes", ">seconds", "SHA-256", "",
        )  # fmt: skip
        click.echo(f"{folder}: {same} of {len(rebuilt.files)} engines are the same, built again by {rebuilt.builder}")
    raise_if_different(rebuilt)


def _check(bundle: Path, on_cpu: bool, as_json: bool) -> None:
    from toolkit.bundle.check import check, describe_status
    from toolkit.bundle.read import open_bundle
    from toolkit.bundle.replay import raise_if_moved, replay
    from toolkit.drift.gates import raise_if_failed
    from toolkit.sessions import EngineOrGraph

    opened = open_bundle(bundle)
    choice = EngineOrGraph(opened, on_cpu=on_cpu)
    report = check(opened, choice.open)
    replayed = replay(opened)
    ran_on = report.stages[-1].ran_on
    told = describe_status(opened, ran_on, executes=choice.executes, interprets=choice.interprets)
    if not (choice.executes or choice.interprets) and opened.manifest.engine.status == "built":
        told += " The engine's own bytes were verified by their hash only."
        if choice.reason and choice.reason not in opened.manifest.engine.reason:
            told += f" It did not run now either: {choice.reason}."
    if as_json:
        _print_json(opened, report, replayed, told, ran_on)
    else:
        _print(opened, report, replayed, told)
    raise_if_failed(report)
    raise_if_moved(replayed)


def _print(bundle: Bundle, report: DriftReport, replayed: Sequence[Replayed], told: str) -> None:
    from toolkit import console
    from toolkit.drift.table import render, render_text

    out = console.results()
    if out.is_terminal:
        out.print(render(report))
    else:
        click.echo(render_text(report))
    click.echo(told)
    for one in replayed:
        click.echo(str(one))
    files = len(bundle.manifest.files)
    verdict = "passed" if report.passed else "FAILED"
    click.echo(f"{bundle.folder}: {files} files unchanged, drift {verdict}")


def _print_json(bundle: Bundle, report: DriftReport, replayed: Sequence[Replayed], told: str, ran_on: str) -> None:
    from toolkit import console

    manifest = bundle.manifest
    console.emit_json(
        {
            "bundle": str(bundle.folder),
            "target": f"{manifest.target.runtime}-{manifest.target.scheme}",
            "engine_status": manifest.engine.status,
            "ran_on": ran_on,
            "told": told,
            "files_unchanged": len(manifest.files),
            "passed": report.passed and all(one.verdict != "differs" for one in replayed),
            "processing": [asdict(one) for one in replayed],
            "drift": report.model_dump(mode="json"),
        }
    )
