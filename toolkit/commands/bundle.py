"""Write a program around bundles (C++, Kotlin, Swift, Node, browser), or lay them out for a server."""

from __future__ import annotations

from pathlib import Path

import click

from toolkit.commands import example, json_option


@click.command(
    "bundle",
    epilog=example(
        "toolkit bundle bundles/all-minilm-l6-v2-ort-cpu-int8 --lang cpp --output my-app",
        "toolkit bundle bundles/* --layout triton --output model-repository",
    ),
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE…")
@click.option("--lang", metavar="LANGUAGE", help="What the program is written in; an unknown one lists them.")
@click.option("--layout", metavar="LAYOUT", help="How a server wants its folders; an unknown one lists them.")
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, help="The folder to write: new, empty, or made by this."
)
@json_option
def command(bundles: tuple[Path, ...], lang: str | None, layout: str | None, output: Path, as_json: bool) -> None:
    """Write a program around bundles (C++, Kotlin, Swift, Node, browser), or lay them out for a server.

    A bundle's files are verified first. A program comes with `selftest`, which replays the bundle's golden inputs where
    it runs and says how far it is from what PyTorch gave.
    """
    from toolkit import console
    from toolkit.write_project import write_project

    said = write_project(bundles, lang, layout, output)
    if as_json:
        console.emit_json({"output": str(output), "next": said.splitlines()})
        return
    click.echo(f"wrote {output}\n{said}".rstrip())
