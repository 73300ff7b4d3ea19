"""Write one HTML page on bundles: verdict, drift by stage and module, sizes, where everything comes from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit.commands import example, json_option
from toolkit.errors import UsageError

if TYPE_CHECKING:
    from toolkit.page.sources import Sources


@click.command(
    epilog=example(
        "toolkit report bundles/vit-digits-ort-cpu-int8",
        "toolkit report bundles/* --compare drift.json --tune tune/ --output report.html",
    )
)
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE…")
@click.option(
    "--output", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True, help="The page."
)
@click.option(
    "--compare", "compared", multiple=True, type=click.Path(path_type=Path), help="What `toolkit compare` wrote."
)
@click.option("--tune", "tuned", multiple=True, type=click.Path(path_type=Path), help="A search's folder or tune.json.")
@click.option("--no-layers", is_flag=True, help="Compare no modules here: faster, and needs no PyTorch.")
@click.option(
    "--picture",
    default="0",
    show_default=True,
    metavar="INPUT",
    help="Draw attention for a row of the golden inputs, a text or an image.",
)
@click.option(
    "--open", "opens", type=click.Choice(["no", "yes"]), default="no", show_default=True, help="Show it in a browser."
)
@json_option
def command(
    bundles: tuple[Path, ...],
    output: Path,
    compared: tuple[Path, ...],
    tuned: tuple[Path, ...],
    no_layers: bool,
    picture: str,
    opens: str,
    as_json: bool,
) -> None:
    """Write one HTML page on bundles: verdict, drift by stage and module, sizes, where everything comes from.

    The page is one file that loads nothing and needs no script. Each bundle's hashes are verified first, and its golden
    inputs are run again. The exit code says whether the page was written; gates are for `toolkit check`.
    """
    from toolkit.atomic import write_whole
    from toolkit.page.gather import gather
    from toolkit.page.render import render

    if output.is_dir() or not output.absolute().parent.is_dir():
        # Before anything is measured, which may take minutes.
        raise UsageError(f"cannot write {output}", hint="Give a file name in an existing folder: --output report.html.")
    sources = gather(bundles, compared, tuned, layers=not no_layers, picture=picture)
    write_whole(output, render(sources))
    _tell(sources, output, as_json)
    if opens == "yes":
        click.launch(str(output))


def _tell(sources: Sources, output: Path, as_json: bool) -> None:
    from toolkit import console

    if as_json:
        bundles = [{"bundle": str(each.bundle.folder), "passed": each.passed} for each in sources.subjects]
        console.emit_json(
            {"report": str(output), "passed": all(each.passed for each in sources.subjects), "bundles": bundles}
        )
        return
    for each in sources.subjects:
        click.echo(f"{each.label}: drift {'passed' if each.passed else 'FAILED'}")
    click.echo(f"{output}: {console.byte_size(output.stat().st_size)}")
